// 500 texts that would like to be more than text, in every place in which a target or an agent can say something to the page of a terminal.
import { readFileSync } from "node:fs";
import { end, expect, fail, open, url } from "./browser.mjs";

const payloads = JSON.parse(readFileSync(process.env.GATEHOUSE_WEB_PAYLOADS, "utf8"));
const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
await context.addInitScript(() => { window.ran = (n) => console.error(`RAN ${n} at ${location.pathname}`); });
page.on("dialog", (d) => {
	if (d.type() === "beforeunload") return d.accept(); // leaving a session is asked about
	fail(`a dialog: ${d.message().slice(0, 80)}`);
	return d.dismiss();
});
context.on("page", (p) => fail(`a window was opened: ${p.url()}`));

// The link is put in the place of the real one: what it gives is what an agent
// could send. It has no ends of its own; the page's own part is what is tried.
const link = `
export class Refused extends Error {}
export class Session {
	static async open() { return Object.assign(new Session(), { id: "x" }); }
	async connect() { return new Stream(); }
	async over() { return ""; }
	async end() {}
}
const bytes = (s) => new TextEncoder().encode(s);
const json = (v) => bytes(JSON.stringify(v));
class Stream {
	constructor() { this.over = false; this.frames = frames; }
	message() { return true; }
	frame() { return true; }
	took() {}
	close() { this.over = true; }
	async way() { return "relay"; }
	async reply() { return { terminal: "t", at: 0, recorded: true }; }
	async next() {
		const f = this.frames.shift();
		if (!f) return new Promise(() => {});
		return { kind: f[0], content: f[0] === "o" || f[0] === "e" ? bytes(f[1]) : json(f[1]) };
	}
}`;
await page.route("**/assets/link.js*", (route) => route.fulfill({ contentType: "text/javascript", body: `const frames = ${JSON.stringify(now)};${link}` }));
let now = [];

// calm says what in the page is not ours.
async function calm(where) {
	const wrong = await page.evaluate(() => {
		const found = [...document.querySelectorAll("#terminal :is(img, iframe, object, embed, video, audio, base, meta, style, math, template, script, body, title, x)")].map((e) => e.outerHTML);
		for (const e of document.querySelectorAll("*")) {
			for (const { name, value } of e.attributes) {
				if (name.startsWith("on") || name === "srcdoc" || ["href", "action", "src", "formaction"].includes(name) && !/^[/#]/.test(value)) found.push(`${e.tagName} ${name}=${value}`);
			}
		}
		return found.map((s) => s.slice(0, 120));
	});
	for (const w of wrong) fail(`${where}: ${w}`);
}

const part = (name) => page.textContent(`[data-part=${name}]`);
const begin = async (frames) => {
	now = frames;
	await page.goto(`${url}/sessions/terminal?target=1`);
};

// As titles, output, links, the clipboard, and the reason of the end.
const all = [];
for (const p of payloads) {
	all.push(["o", `${p}\r\n`], ["o", `\u001b]2;${p}\u0007`], ["o", `\u001b]0;${p}\u001b\\`], ["o", `\u001b]52;c;${btoa("evil")}\u0007`], ["e", `\u001b]8;;${p}\u001b\\${p}\u001b]8;;\u001b\\`]);
}
// A terminal that is set back shows what comes, whatever came before.
all.push(["o", "\u001b\\\u001bcstill a terminal\r\n\u001b]2;the last title\u0007\u001b]8;;javascript:ran(1)\u001b\\click\u001b]8;;\u001b\\"]);
await begin(all);
await page.waitForFunction(() => document.querySelector(".xterm-rows")?.textContent.includes("still a terminal"), null, { timeout: 60000 });
expect(await part("title") === "the last title", "titles are followed to the last");
await calm("output and titles");
const box = await page.locator(".xterm-rows > div >> nth=1").boundingBox();
await page.mouse.move(box.x + 12, box.y + box.height / 2);
await page.waitForTimeout(200);
await page.mouse.click(box.x + 12, box.y + box.height / 2);
await page.waitForTimeout(200);
expect(await page.locator("dialog[open]").count() === 0, "a link that is no page's is not even asked about");
expect((await page.title()).startsWith("shell"), "the title of the window is the page's");

// In the question about a host key, and as the reason of the end.
for (let i = 0; i < payloads.length; i += 10) {
	const [a, b, c, why] = [0, 1, 2, 3].map((n) => payloads[(i + n) % payloads.length]);
	await begin([["q", { target: a, algorithm: b, fingerprint: c }]]);
	await page.waitForSelector("dialog[open][data-ask=key]");
	await calm("the question");
	await begin([["x", { status: -1, reason: why }]]);
	await page.waitForFunction(() => document.getElementById("terminal").dataset.state === "over");
	const said = await part("state");
	expect(!/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/.test(said) && said.length < 500, `the reason is one clean line: ${JSON.stringify(said.slice(0, 80))}`);
	await calm("the end");
}
await end(browser);
