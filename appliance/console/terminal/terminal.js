// The terminal of a session. What it shows comes from a machine that nobody has
// to trust: it draws in the terminal and can do nothing else. Links are asked
// about, titles are text, and the clipboard is the person's alone.

const root = document.getElementById("terminal");
const glass = root.querySelector(".glass");
const part = (name) => root.querySelector(`[data-part=${name}]`);
const act = (name) => root.querySelector(`[data-act=${name}]`);
const { Session, Refused, atWork } = await import(root.dataset.link);
const { Terminal, FitAddon } = await import(root.dataset.xterm);

const patience = 110; // seconds of trying to come back; the agent has 120
const wait = (ms) => new Promise((done) => { setTimeout(done, ms); });

// clean makes one line of a text of the other side.
const clean = (s, most = 200) => String(s).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, "\ufffd").slice(0, most);

const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = {
	dark: { background: "#10171a", foreground: "#e6ecee", cursor: "#e6ecee", cursorAccent: "#10171a", selectionBackground: "#66500f", selectionInactiveBackground: "#66500f" },
	light: {
		background: "#ffffff", foreground: "#1b2528", cursor: "#1b2528", cursorAccent: "#ffffff", selectionBackground: "#f6dd8f", selectionInactiveBackground: "#f6dd8f",
		black: "#1b2528", red: "#a3170f", green: "#1c6b2c", yellow: "#7a5200", blue: "#1f4fa8", magenta: "#87309c", cyan: "#0b6570", white: "#5c686c",
		brightBlack: "#4d595d", brightRed: "#bf2118", brightGreen: "#217c34", brightYellow: "#8a5e00", brightBlue: "#2a60c6", brightMagenta: "#9c3bb3", brightCyan: "#0d7582", brightWhite: "#1b2528",
	},
};

const term = new Terminal({
	fontSize: 14, fontFamily: getComputedStyle(root).getPropertyValue("--mono"), scrollback: 10000, minimumContrastRatio: 4.5,
	theme: themes[dark.matches ? "dark" : "light"], allowProposedApi: false, macOptionIsMeta: false,
	linkHandler: { activate: (_, address) => link(address), allowNonHttpProtocols: false },
});
const fit = new FitAddon();
term.loadAddon(fit);
term.open(glass);
fit.fit();
new ResizeObserver(() => fit.fit()).observe(glass);
dark.addEventListener("change", () => { term.options.theme = themes[dark.matches ? "dark" : "light"]; });

// The target may not write the clipboard, nor ask what is in it.
term.parser.registerOscHandler(52, () => true);
term.onTitleChange((title) => { part("title").textContent = clean(title); });

const reader = act("reader");
reader.checked = localStorage.getItem("gatehouse-reader") === "1";
const read = () => {
	term.options.screenReaderMode = reader.checked;
	localStorage.setItem("gatehouse-reader", reader.checked ? "1" : "0");
};
reader.addEventListener("change", read);
read();

// ask shows a question until it is answered; leaving it is a no.
function ask(name) {
	const dialog = root.querySelector(`dialog[data-ask=${name}]`);
	if (dialog.open) dialog.close("no"); // a question of a way that is gone
	dialog.returnValue = "no";
	dialog.showModal();
	return new Promise((done) => {
		dialog.addEventListener("close", () => {
			term.focus();
			done(dialog.returnValue === "yes");
		}, { once: true });
	});
}

function link(address) {
	const url = new URL(address);
	if (url.protocol !== "http:" && url.protocol !== "https:") return;
	part("open-address").textContent = clean(url.href, 2000);
	part("open-link").href = url.href;
	part("open-link").onclick = () => root.querySelector("dialog[data-ask=open]").close("yes");
	ask("open");
}

let session = null; // that was granted
let stream = null; // while there is a way
let terminal = ""; // the name by which the agent knows it
let seen = 0; // bytes of its output that came
let over = false;
const leaving = new AbortController();

function say(state, text) {
	root.dataset.state = state;
	part("state").textContent = text;
	act("end").hidden = state === "over" || !session;
	act("again").hidden = state !== "over";
}

// finish ends it here: the reason stands on the page, the screen stays.
function finish(text) {
	if (over) return;
	over = true;
	stream?.close();
	term.options.disableStdin = true;
	term.options.cursorBlink = false;
	part("path").textContent = "";
	say("over", text);
}

const sentence = (s) => {
	const one = clean(s, 400).trim();
	return one === "" ? "" : one[0].toUpperCase() + one.slice(1) + (/[.!?]$/.test(one) ? "" : ".");
};

const encoder = new TextEncoder();
function type(bytes) {
	if (!over && stream) atWork();
	if (!over && stream && !stream.frame("i", bytes)) part("state").textContent = "That is more than the connection takes at once; it was not sent.";
}
term.onData((s) => type(encoder.encode(s)));
term.onBinary((s) => type(Uint8Array.from(s, (c) => c.charCodeAt(0) & 255)));
term.onResize(({ cols, rows }) => {
	const size = new Uint8Array(4);
	new DataView(size.buffer).setUint16(0, cols);
	new DataView(size.buffer).setUint16(2, rows);
	stream?.frame("s", size);
});

// Pasted text is text: what could end the bracket around it, or press a key, is taken out.
glass.addEventListener("paste", async (e) => {
	e.preventDefault();
	e.stopImmediatePropagation();
	const pasted = (e.clipboardData?.getData("text/plain") || "").replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, "");
	if (pasted === "" || over) return;
	const lines = pasted.replace(/\r?\n$/, "").split(/\r\n|\r|\n/).length;
	if (lines > 1 && !term.modes.bracketedPasteMode) {
		part("paste-lines").textContent = String(lines);
		part("paste-text").textContent = pasted.slice(0, 4000) + (pasted.length > 4000 ? " …" : "");
		if (!await ask("paste")) return;
	}
	term.paste(pasted);
}, true);

term.attachCustomKeyEventHandler((e) => {
	if (!e.ctrlKey || !e.shiftKey || e.altKey || e.metaKey) return true;
	switch (e.code) {
	case "KeyC":
		e.preventDefault();
		if (e.type === "keydown" && term.hasSelection()) navigator.clipboard?.writeText(term.getSelection());
		return false;
	case "KeyV":
		return false; // the browser pastes
	case "KeyL":
		e.preventDefault();
		if (e.type === "keydown") (act("end").hidden ? act("again") : act("end")).focus();
		return false;
	}
	return true;
});

// serve uses a stream until it ends, and says how: true, for good.
async function serve() {
	const open = { do: root.dataset.do, width: term.cols, height: term.rows, term: "xterm-256color" };
	if (terminal) Object.assign(open, { resume: terminal, seen });
	stream.message(open);
	const reply = await stream.reply();
	const at = reply.at || 0;
	let skip = 0;
	if (terminal && at < seen) skip = seen - at;
	else if (terminal && at > seen) term.write(`\r\n[${at - seen} bytes of output were lost]\r\n`);
	if (!terminal || at > seen) seen = at;
	terminal = reply.terminal || "";
	part("recorded").textContent = reply.recorded ? "This terminal is being recorded." : "This terminal is not recorded.";
	live();
	for (let frame = await stream.next(); frame; frame = await stream.next()) {
		switch (frame.kind) {
		case "o":
		case "e":
			output(frame.content, Math.min(skip, frame.content.length));
			skip -= Math.min(skip, frame.content.length);
			break;
		case "q": {
			stream.took(frame.content.length);
			const q = JSON.parse(new TextDecoder().decode(frame.content));
			part("key-target").textContent = clean(q.target);
			part("key-algorithm").textContent = clean(q.algorithm, 60);
			part("key-fingerprint").textContent = clean(q.fingerprint, 120);
			const on = stream;
			ask("key").then((yes) => on.frame("y", Uint8Array.of(yes ? 1 : 0)));
			break;
		}
		case "x": {
			const end = JSON.parse(new TextDecoder().decode(frame.content));
			finish(end.reason ? sentence(end.reason) : end.status > 0 ? `It ended with status ${Math.trunc(end.status)}.` : "It ended.");
			return true;
		}
		default:
			stream.took(frame.content.length);
		}
	}
	return false;
}

// output shows what is new of a frame, and lets the agent send more once it is shown.
function output(content, known) {
	const from = stream;
	seen += content.length - known;
	term.write(content.subarray(known), () => from.took(content.length));
}

// live says so, and which way is used.
async function live() {
	const on = stream;
	say("live", `Connected with ${root.dataset.name}.`);
	if (document.activeElement === document.body) term.focus();
	for (; stream === on && !on.over; await wait(2000)) {
		const way = await on.way();
		if (stream === on && !on.over && !over) {
			part("path").textContent = { relay: "Through the gateway, which cannot read it.", direct: "Directly, without the gateway." }[way] || "";
		}
	}
}

// listen shows when all sessions end, should the box be about to restart.
async function listen() {
	for (; !over; await wait(30000)) {
		try {
			news(await session.notice());
		} catch {
			// If not now, then in half a minute.
		}
	}
	news(null);
}

function news(notice) {
	const at = new Date(notice?.at);
	act("news").hidden = over || !notice;
	if (act("news").hidden) return;
	const minutes = Math.max(0, Math.round((at - Date.now()) / 60000));
	const when = minutes < 1 ? "now" : minutes < 120 ? `in ${minutes} min` : `in ${Math.round(minutes / 60)} h`;
	part("news").textContent = `This session ends at ${at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}, ${when}: ${clean(notice.text, 300)}.`;
}

// attempt connects and serves; true: it is over.
async function attempt() {
	stream = await session.connect(leaving.signal);
	try {
		return await serve();
	} finally {
		stream.close();
		stream = null;
	}
}

// run begins, and comes back as long as the agent keeps the terminal.
async function run() {
	session = await Session.open(root.dataset.target, root.dataset.record === "1");
	say("", "Looking for the agent.");
	listen();
	let since = performance.now();
	for (let pause = 500; !over; pause = Math.min(2 * pause, 5000)) {
		try {
			if (await attempt()) return;
			since = performance.now(); // it was there until now
			pause = 250;
		} catch (e) {
			if (over) return;
			if (e instanceof Refused) throw e;
			if (terminal === "" && performance.now() - since > 45000) throw e;
		}
		if (over) return;
		if (terminal) say("lost", "The connection was lost. It is being made again; what runs goes on.");
		part("path").textContent = "";
		await wait(pause);
		let reason = "";
		try {
			reason = await session.over();
		} catch (e) {
			if (e instanceof Refused) throw e; // else the box cannot be reached either
		}
		if (reason) return finish(`The session ended: ${clean(reason, 400)}.`);
		if (performance.now() - since > patience * 1000) throw new Error("There was no way to the agent for too long. It ends what runs.");
	}
}

act("again").addEventListener("click", () => location.reload());
act("end").addEventListener("click", async () => {
	finish("You ended the session.");
	await session?.end();
});
addEventListener("beforeunload", (e) => {
	if (root.dataset.state === "live" || root.dataset.state === "lost") e.preventDefault();
});
addEventListener("pagehide", () => {
	leaving.abort();
	if (!over) session?.end();
});

if (!globalThis.RTCPeerConnection) {
	finish("This browser has no WebRTC, or it is switched off. The tool opens the target too: gatehouse connect.");
} else {
	say("", "Asking the box for a session.");
	run().catch((e) => finish(sentence(e.message || String(e)))).finally(() => {
		if (over) session?.end().catch(() => {});
	});
}
