// Plays an asciicast with xterm.js. What is played was sent by a machine that
// nobody has to trust: it draws on the screen and can do nothing else. Links in
// it lead nowhere, and what the terminal would answer goes to nobody.

const root = document.getElementById("player");
const screen = root.querySelector(".screen");
const play = root.querySelector("[data-do=play]");
const bar = root.querySelector("[type=range]");
const out = root.querySelector("output");
const speed = root.querySelector("select");
const skip = root.querySelector("[type=checkbox]");
const find = root.querySelector("form");
const words = find.querySelector("input");
const says = root.querySelector("[role=status]");

const most = 32 << 20; // characters that are fetched
const pause = 2; // seconds: what is longer is skipped, where that is wanted
const clamp = (n, from, to) => Math.min(Math.max(Math.trunc(n) || 0, from), to);
const say = (text) => { says.textContent = text; };

function clock(seconds) {
	const s = Math.trunc(seconds);
	const two = (n) => String(n).padStart(2, "0");
	return s >= 3600 ? `${Math.trunc(s / 3600)}:${two(Math.trunc(s / 60) % 60)}:${two(s % 60)}` : `${Math.trunc(s / 60)}:${two(s % 60)}`;
}

// fetchCast gives the text of the recording, and whether it is all of it.
async function fetchCast() {
	const r = await fetch(root.dataset.cast);
	if (!r.ok) {
		const page = new DOMParser().parseFromString(await r.text(), "text/html");
		throw new Error(page.querySelector("main p")?.textContent || `the box answered ${r.status}`);
	}
	const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
	let text = "";
	for (;;) {
		const { done, value } = await reader.read();
		if (done) return { text, all: true };
		text += value;
		if (text.length > most) {
			await reader.cancel();
			return { text: text.slice(0, text.lastIndexOf("\n")), all: false };
		}
	}
}

// parse reads asciicast v2. A line that is none ends it: what follows is not known.
function parse(text) {
	const lines = text.split("\n");
	const head = JSON.parse(lines[0]);
	const events = [];
	let problem = "";
	let last = 0;
	for (let i = 1; i < lines.length; i++) {
		if (lines[i] === "") continue;
		let e;
		try {
			e = JSON.parse(lines[i]);
		} catch {
			e = null;
		}
		if (!Array.isArray(e) || !(e[0] >= 0) || typeof e[1] !== "string" || typeof e[2] !== "string") {
			problem = `Line ${i + 1} of the recording cannot be read; it is played up to there.`;
			break;
		}
		last = Math.max(last, e[0]);
		events.push({ at: last, kind: e[1], text: e[2] });
	}
	return { cols: clamp(head.width, 2, 400), rows: clamp(head.height, 1, 200), events, problem };
}

// shown is what a person could read in an event: without the sequences that
// move the cursor and choose colours.
const sequences = /\u001b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[ -/]+[0-~]|[0-Z\\^-~])|[\u0000-\u0009\u000b-\u001f\u007f]/g;

// index joins what was shown, with the place of each event in it, to search in.
function index(events) {
	const starts = new Uint32Array(events.length + 1);
	const parts = [];
	let n = 0;
	events.forEach((e, i) => {
		starts[i] = n;
		if (e.kind !== "o") return;
		const t = e.text.replace(sequences, "").toLowerCase();
		parts.push(t);
		n += t.length;
	});
	starts[events.length] = n;
	return { starts, text: parts.join("") };
}

function eventAt(starts, place) {
	let low = 0;
	let high = starts.length - 2;
	while (low < high) {
		const middle = (low + high + 1) >> 1;
		if (starts[middle] <= place) low = middle;
		else high = middle - 1;
	}
	return low;
}

async function start() {
	const [{ Terminal }, { text, all }] = await Promise.all([import(root.dataset.xterm), fetchCast()]);
	const cast = parse(text);
	const { events } = cast;
	const length = events.length ? events[events.length - 1].at : 0;
	const searchable = index(events);

	const term = new Terminal({
		cols: cast.cols, rows: cast.rows, scrollback: 2000, disableStdin: true, cursorBlink: false, fontSize: 14, allowProposedApi: false,
		fontFamily: getComputedStyle(root).getPropertyValue("--mono"), linkHandler: { activate() {} },
		theme: { background: "#10171a", foreground: "#e6ecee", cursor: "#e6ecee", selectionBackground: "#66500f", selectionInactiveBackground: "#66500f" },
	});
	term.open(screen);
	term.attachCustomKeyEventHandler(() => false);
	term.textarea.tabIndex = -1;

	// The whole width is shown: letters are made smaller until it fits.
	function fit() {
		term.options.fontSize = 14;
		const wide = screen.querySelector(".xterm-screen").offsetWidth;
		if (wide > screen.clientWidth) term.options.fontSize = Math.max(5, Math.floor(14 * screen.clientWidth / wide * 2) / 2);
	}
	fit();
	new ResizeObserver(fit).observe(root);

	let at = 0; // seconds
	let next = 0; // event that has not been drawn
	let playing = false;
	let seen = 0;
	let work = Promise.resolve(); // drawing goes in turn
	let wanted = 0; // the newest seek; older ones stop

	const write = (s) => new Promise((done) => term.write(s, done));

	// draw brings the screen from event to event, up to a time.
	async function draw(until, mine) {
		while (next < events.length && events[next].at <= until) {
			if (mine !== wanted) return;
			const e = events[next];
			if (e.kind === "r") {
				const size = /^(\d{1,5})x(\d{1,5})$/.exec(e.text);
				if (size) {
					term.resize(clamp(size[1], 2, 400), clamp(size[2], 1, 200));
					fit();
				}
				next++;
				continue;
			}
			let s = "";
			while (next < events.length && events[next].at <= until && events[next].kind !== "r" && s.length < 1 << 18) {
				if (events[next].kind === "o") s += events[next].text;
				else if (events[next].kind === "m") say(`Marker: ${events[next].text}`);
				next++;
			}
			await write(s);
		}
	}

	function show() {
		bar.value = at;
		bar.setAttribute("aria-valuetext", `${clock(at)} of ${clock(length)}`);
		out.textContent = `${clock(at)} / ${clock(length)}`;
	}

	function seek(to) {
		at = Math.min(Math.max(to, 0), length);
		const mine = ++wanted;
		show();
		work = work.then(async () => {
			if (mine !== wanted) return;
			if (next > 0 && events[next - 1].at > at) {
				term.reset();
				term.resize(cast.cols, cast.rows);
				next = 0;
			}
			await draw(at, mine);
		});
		return work;
	}

	let drawing = false;
	function tick(now) {
		if (!playing) return;
		if (!drawing) {
			at += Math.min(now - seen, 1000) / 1000 * Number(speed.value);
			seen = now;
			if (skip.checked && next < events.length && events[next].at - at > pause) at = events[next].at - 0.5;
			drawing = true;
			seek(at).then(() => { drawing = false; });
			if (at >= length) stop();
		}
		requestAnimationFrame(tick);
	}

	function stop() {
		playing = false;
		play.textContent = "Play";
	}

	function toggle() {
		if (playing) {
			stop();
			return;
		}
		if (at >= length) seek(0);
		term.clearSelection();
		playing = true;
		play.textContent = "Stop";
		seen = performance.now();
		requestAnimationFrame(tick);
	}

	// mark selects the hit on the screen, the lowest one that is there.
	function mark(what) {
		const lines = term.buffer.active;
		for (let y = lines.length - 1; y >= 0; y--) {
			const line = lines.getLine(y)?.translateToString(true).toLowerCase() ?? "";
			const x = line.lastIndexOf(what);
			if (x >= 0) {
				term.select(x, y, what.length);
				term.scrollToLine(Math.max(0, y - Math.trunc(term.rows / 2)));
				return;
			}
		}
	}

	let hit = -1;
	let sought = "";
	async function search(back) {
		const what = words.value.toLowerCase();
		if (what === "") {
			say("Type what to look for.");
			return;
		}
		if (what !== sought) hit = -1;
		sought = what;
		stop();
		let place = back ? searchable.text.lastIndexOf(what, hit < 0 ? Infinity : hit - 1) : searchable.text.indexOf(what, hit + 1);
		if (back && hit === 0) place = -1;
		let again = "";
		if (place < 0) {
			place = back ? searchable.text.lastIndexOf(what) : searchable.text.indexOf(what);
			again = back ? " Begun again at the end." : " Begun again at the start.";
		}
		if (place < 0) {
			term.clearSelection();
			say("That was never shown.");
			return;
		}
		hit = place;
		const when = events[eventAt(searchable.starts, place + what.length - 1)].at;
		await seek(when);
		mark(what);
		say(`Shown at ${clock(when)}.${again}`);
	}

	play.addEventListener("click", toggle);
	bar.addEventListener("input", () => seek(Number(bar.value)));
	find.addEventListener("submit", (e) => {
		e.preventDefault();
		search(e.submitter?.value === "back");
	});
	// Keys count while the player has the focus, and not where they are typed or choose something.
	root.addEventListener("keydown", (e) => {
		if (e.ctrlKey || e.altKey || e.metaKey || e.target === words || e.target === speed) return;
		const on = e.target.closest("button, input");
		const key = e.key;
		if (key === "/") words.focus();
		else if (key === " " && !on) toggle();
		else if (key === "ArrowLeft" && e.target !== bar) seek(at - 5);
		else if (key === "ArrowRight" && e.target !== bar) seek(at + 5);
		else if (key === "Home" && e.target !== bar) seek(0);
		else if (key === "End" && e.target !== bar) seek(length);
		else return;
		e.preventDefault();
	});
	words.addEventListener("keydown", (e) => {
		if (e.key === "Escape") screen.focus();
	});

	bar.max = length;
	root.dataset.ready = "true";
	show();
	await seek(0);
	say([cast.problem, all ? "" : "It is too long for this page, which has its beginning. The download has the whole.", events.length ? "" : "Nothing was shown."].filter(Boolean).join(" "));
	screen.focus({ preventScroll: true });
}

start().catch((e) => say(`It cannot be played: ${e.message}`));
