// The technician's end of a session in a browser: how it is granted, how the
// agent is found and known, and the bytes of a stream. docs/sessions.md, Browsers.

// Refused is what the box or the agent said no with; trying again is no use.
export class Refused extends Error {
	constructor(text, code = "") {
		super(text);
		this.code = code;
	}
}

async function call(path, body) {
	const r = await fetch(path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
	let answer = null;
	try {
		answer = await r.json();
	} catch {
		// What is no JSON is an error below.
	}
	if (r.status === 401) throw new Refused("You are signed out. Sign in again, and open the terminal anew.");
	if (r.status >= 400 && r.status < 500 && r.status !== 408 && r.status !== 429) throw new Refused(answer?.detail || `The box answered ${r.status}.`);
	if (!r.ok || !answer) throw new Error(answer?.detail || `The box answered ${r.status}.`);
	return answer;
}

// atWork says to the box that its person is at work here, so that the sign-in,
// with which the session ends, does not end for idleness.
let said = performance.now();
export function atWork() {
	if (performance.now() - said < 300000) return;
	said = performance.now();
	fetch("/api/v1/session").catch(() => {}); // then at the next key
}

const text = (base64) => new TextDecoder().decode(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)));

// prints are the certificates that a description names, as the grant writes them.
function prints(sdp) {
	return [...sdp.matchAll(/^a=fingerprint:(\S+) (\S+)\r?$/gm)].map(([, kind, hex]) => (kind.toLowerCase() === "sha-256" ? hex.replaceAll(":", "").toLowerCase() : ""));
}

const same = (list, want) => list.length > 0 && list.every((p) => p === want);

// Private addresses of IPv4 on ports of the web are refused by Chromium as
// candidates, but not names. An address with a dot behind it is a name that
// leads there and nowhere else.
function candidates(sdp) {
	const lines = [...sdp.matchAll(/^a=(candidate:.*?)\r?$/gm)].map((m) => m[1]);
	const more = [];
	for (const line of lines) {
		const f = line.split(" ");
		if (f[2] === "tcp" && (f[5] === "443" || f[5] === "80")) {
			const at = /^\d+(\.\d+){3}$/.test(f[4]) ? `${f[4]}.` : /[a-z]/i.test(location.hostname) && !location.hostname.includes(":") ? location.hostname : "";
			if (at) more.push(line.replace(f[4], at));
		}
	}
	return [...lines, ...more];
}

// Session is one that was granted to this page.
export class Session {
	// open makes the browser's key, and has the session granted to it.
	static async open(target, record) {
		const s = new Session();
		s.certificate = await RTCPeerConnection.generateCertificate({ name: "ECDSA", namedCurve: "P-256" });
		const probe = new RTCPeerConnection({ certificates: [s.certificate] });
		probe.createDataChannel("probe");
		const [key] = prints((await probe.createOffer()).sdp);
		probe.close();
		const granted = await call("/api/v1/sessions", { target: String(target), transport: "webrtc", key, ...(record ? { record } : {}) });
		s.id = granted.session;
		s.until = new Date(granted.until);
		s.grant = JSON.parse(text(JSON.parse(text(granted.grant)).message));
		if (s.grant.id !== s.id || s.grant.transport !== "webrtc" || s.grant.key !== key || !/^[0-9a-f]{64}$/.test(s.grant.agent) || s.grant.agent === key) {
			throw new Refused("The grant is not for this page.");
		}
		return s;
	}

	// connect finds the agent, and opens a stream.
	async connect(signal) {
		const pc = new RTCPeerConnection({ certificates: [this.certificate], iceServers: [] });
		const stop = () => pc.close();
		signal.addEventListener("abort", stop);
		try {
			const channel = pc.createDataChannel("stream");
			channel.binaryType = "arraybuffer";
			const gathered = new Promise((done) => {
				pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && done();
				setTimeout(done, 1000);
			});
			await pc.setLocalDescription();
			await gathered;
			const { sdp } = await call("/api/v1/sessions/signal", { session: this.id, sdp: pc.localDescription.sdp });
			if (!same(prints(sdp), this.grant.agent)) throw new Refused("Who answered is not the agent that this session was granted for. Nothing was sent to it.");
			await pc.setRemoteDescription({ type: "answer", sdp: sdp.replace(/^a=(candidate:|end-of-candidates).*\r?\n/gm, "") });
			for (const candidate of candidates(sdp)) {
				try {
					await pc.addIceCandidate({ candidate, sdpMid: /^a=mid:(\S+)/m.exec(sdp)[1] });
				} catch {
					// A browser that does not take one has the others.
				}
			}
			await opened(pc, channel);
			return new Stream(pc, channel);
		} catch (e) {
			pc.close();
			throw e;
		} finally {
			signal.removeEventListener("abort", stop);
		}
	}

	// over says why the session has ended; "": it has not.
	async over() {
		const { sessions } = await call("/api/v1/sessions");
		const mine = (sessions || []).find((s) => s.id === this.id);
		return !mine || mine.state === "ended" ? mine?.reason || "the session is over" : "";
	}

	// notice is when all sessions end, {at, text}, and null while nobody plans that.
	async notice() {
		return (await call("/api/v1/sessions/notice")).notice || null;
	}

	// end ends it, while the page goes away too.
	end() {
		return fetch("/api/v1/sessions/end", { method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ session: this.id }) });
	}
}

const patience = 15000; // ms until a way is given up

function opened(pc, channel) {
	return new Promise((done, fail) => {
		const timer = setTimeout(() => fail(new Error("The agent cannot be reached through the gateway.")), patience);
		const failed = () => {
			clearTimeout(timer);
			fail(new Error("The connection to the agent failed."));
		};
		channel.onopen = () => {
			clearTimeout(timer);
			done();
		};
		channel.onclose = failed;
		pc.onconnectionstatechange = () => (pc.connectionState === "failed" || pc.connectionState === "closed") && failed();
	});
}

const windowSize = 128 << 10; // bytes on their way that the other side has not taken
const maxMessage = 16 << 10;
const maxQueue = 16 << 20;

// Stream is one data channel: binary messages are bytes, text ones say how many
// bytes were taken, and that no more come.
export class Stream {
	constructor(pc, channel) {
		Object.assign(this, { pc, channel, sent: 0, has: 0, taken: 0, told: 0, queue: [], queued: 0, inbox: new Uint8Array(0), waiting: null, over: false });
		channel.onmessage = ({ data }) => this.#message(data);
		channel.onclose = () => this.#lost();
		let doubt = 0;
		pc.onconnectionstatechange = () => {
			clearTimeout(doubt);
			if (pc.connectionState === "disconnected") doubt = setTimeout(() => this.#lost(), 1500);
			if (pc.connectionState === "failed" || pc.connectionState === "closed") this.#lost();
		};
	}

	#message(data) {
		if (typeof data === "string") {
			if (data.startsWith("read ")) {
				this.has = Number(data.slice(5));
				this.#flush();
			} else if (data === "end") this.ended = true;
		} else {
			const all = new Uint8Array(this.inbox.length + data.byteLength);
			all.set(this.inbox);
			all.set(new Uint8Array(data), this.inbox.length);
			this.inbox = all;
		}
		this.waiting?.();
	}

	#lost() {
		if (this.over) return;
		this.over = true;
		this.pc.close();
		this.waiting?.();
	}

	close() {
		this.#lost();
	}

	// read gives n bytes, or null when the stream has ended.
	async read(n) {
		while (this.inbox.length < n) {
			if (this.over || this.ended) return null;
			await new Promise((more) => { this.waiting = more; });
			this.waiting = null;
		}
		const b = this.inbox.slice(0, n);
		this.inbox = this.inbox.slice(n);
		return b;
	}

	// took tells the agent that bytes were dealt with, so that it sends more.
	took(n) {
		this.taken += n;
		if (this.taken - this.told >= windowSize / 4 && this.channel.readyState === "open") {
			this.told = this.taken;
			this.channel.send(`read ${this.taken}`);
		}
	}

	// write queues bytes; false: too many wait.
	write(b) {
		if (this.over || this.queued + b.length > maxQueue) return false;
		this.queue.push(b);
		this.queued += b.length;
		this.#flush();
		return true;
	}

	#flush() {
		while (this.queue.length && this.channel.readyState === "open") {
			const room = Math.min(windowSize - (this.sent - this.has), maxMessage);
			if (room <= 0) return;
			const part = this.queue[0].subarray(0, room);
			if (part.length === this.queue[0].length) this.queue.shift();
			else this.queue[0] = this.queue[0].subarray(part.length);
			this.channel.send(part);
			this.sent += part.length;
			this.queued -= part.length;
		}
	}

	// message writes a length (2) and JSON.
	message(value) {
		const b = new TextEncoder().encode(JSON.stringify(value));
		const all = new Uint8Array(2 + b.length);
		new DataView(all.buffer).setUint16(0, b.length);
		all.set(b, 2);
		return this.write(all);
	}

	// frame writes kind (1), length (2) and content; long input is several.
	frame(kind, content = new Uint8Array(0)) {
		for (let at = 0; at === 0 || at < content.length; at += maxMessage) {
			const part = content.subarray(at, at + maxMessage);
			const all = new Uint8Array(3 + part.length);
			all[0] = kind.charCodeAt(0);
			new DataView(all.buffer).setUint16(1, part.length);
			all.set(part, 3);
			if (!this.write(all)) return false;
		}
		return true;
	}

	async reply() {
		const head = await this.read(2);
		const b = head && await this.read(head[0] << 8 | head[1]);
		if (!b) throw new Error("The connection to the agent was cut.");
		this.took(2 + b.length);
		const reply = JSON.parse(new TextDecoder().decode(b));
		if (reply.error || reply.code) throw new Refused(reply.error || "The agent refuses it.", reply.code);
		return reply;
	}

	// next gives a frame, or null when the stream has ended. Who dealt with an
	// output says so by took.
	async next() {
		const head = await this.read(3);
		if (!head) return null;
		const content = await this.read(head[1] << 8 | head[2]);
		if (!content) return null;
		this.took(3);
		return { kind: String.fromCharCode(head[0]), content };
	}

	// way says which way is used: relay, direct, or "" while it is not known.
	async way() {
		const stats = await this.pc.getStats();
		let pair = null;
		for (const s of stats.values()) {
			if (s.type === "transport" && s.selectedCandidatePairId) pair = stats.get(s.selectedCandidatePairId);
			if (!pair && s.type === "candidate-pair" && (s.selected || (s.nominated && s.state === "succeeded"))) pair = s;
		}
		const local = pair && stats.get(pair.localCandidateId);
		return local ? (local.protocol === "tcp" ? "relay" : "direct") : "";
	}
}
