// 500 texts that would like to be more than text, on every page that shows what targets and agents send.
import { readFileSync } from "node:fs";
import { end, expect, fail, open, url } from "./browser.mjs";

const printed = JSON.parse(readFileSync(process.env.GATEHOUSE_WEB_PRINTED, "utf8"));
const told = JSON.parse(readFileSync(process.env.GATEHOUSE_WEB_PAYLOADS, "utf8"));
const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
await context.addInitScript(() => { window.ran = (n) => console.error(`RAN ${n} at ${location.pathname}`); });
page.on("dialog", (d) => { fail(`a dialog at ${page.url()}: ${d.message().slice(0, 80)}`); d.dismiss(); });
context.on("page", (p) => fail(`a window was opened: ${p.url()}`));
const ours = /^\/(targets|sessions|recordings|audit|status|card|assets)(\/|$)|^\/$|^\/favicon/;
page.on("request", (r) => { if (!ours.test(new URL(r.url()).pathname)) fail(`a text made the page ask for ${r.url().slice(0, 120)}`); });

// calm says what in the page is not ours: elements and addresses that a text made.
async function calm(where) {
	const wrong = await page.evaluate(() => {
		const found = [...document.querySelectorAll("main :is(img, iframe, object, embed, video, audio, base, meta, style, math, template, body, title, x, textarea:not(#private-key, .xterm-helper-textarea)), main svg :is(script, animate)")].map((e) => e.outerHTML);
		for (const e of document.querySelectorAll("*")) {
			for (const { name, value } of e.attributes) {
				if (name.startsWith("on") || name === "srcdoc" || ["href", "action", "src", "formaction"].includes(name) && !/^[/#]/.test(value)) found.push(`${e.tagName} ${name}=${value}`);
			}
		}
		for (const e of document.scripts) if (!e.src.startsWith(`${location.origin}/assets/`)) found.push(e.outerHTML);
		return found.map((s) => s.slice(0, 120));
	});
	for (const w of wrong) fail(`${where}: ${w}`);
}

// reads says which texts a page shows, as they are.
async function reads(seen) {
	for (const t of await page.$$eval("bdi, main strong", (l) => l.map((e) => e.textContent))) seen.add(t);
}

function whole(seen, where) {
	const missing = told.filter((t) => !seen.has(t));
	expect(missing.length === 0, `${where}: ${missing.length} texts are not shown as they are, such as ${JSON.stringify(missing.slice(0, 3))}`);
}

for (const path of ["/targets", "/recordings"]) {
	await page.goto(url + path);
	const seen = new Set();
	await reads(seen);
	whole(seen, path);
	await calm(path);
	for (const width of [360, 1280]) {
		await page.setViewportSize({ width, height: 800 });
		const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
		expect(over <= 0, `${path} ${width}: ${over} px wider than the window`);
	}
}
const reasons = new Set();
for (let i = 0; i < 5; i++) {
	await page.goto(url + "/sessions");
	for (const t of await page.$$eval("section:nth-of-type(2) td:nth-child(5) bdi", (l) => l.map((e) => e.textContent))) reasons.add(t);
	await calm("/sessions");
}
whole(reasons, "reasons of the end");
const seen = new Set();
await reads(seen);
whole(seen, "/sessions");
await page.waitForResponse((r) => r.url().endsWith("/sessions/live") && r.ok());
await page.waitForTimeout(500);
await calm("/sessions after it refreshed itself");
await page.goto(url + "/card");
await calm("/card");

// What agents report of their machines, and what of all that is in the audit log.
await page.goto(url + "/");
const agents = new Set();
await reads(agents);
whole(agents, "the status");
await calm("the status");
const log = new Set();
await page.goto(url + "/audit");
for (;;) {
	await reads(log);
	await calm("/audit");
	const older = page.locator("main a:has-text('Older entries')");
	if (await older.count() === 0) break;
	// Not by a click, which does not wait for what follows on a busy machine: a
	// page would be left unread.
	await page.goto(new URL(await older.getAttribute("href"), page.url()).href);
}
expect(printed.every((t) => log.has(t)), `the audit log does not show as it is: ${JSON.stringify(printed.filter((t) => !log.has(t)).slice(0, 3))}`);

// Each in one of the pages of a single target.
const single = ["edit", "remove", "credential", "host-key"];
for (let i = 0; i < told.length; i++) {
	const path = `/targets/${single[i % 5 === 1 || i % 5 === 2 ? i % 2 : Math.trunc(i / 5) % 4]}?id=${i + 1}`;
	await page.goto(url + path);
	expect(await page.locator("main h1").count() === 1, `${path} is not its page`);
	await calm(path);
}

// The player: each text as output, marker, size and title, and then it still is a terminal.
await page.goto(url + "/recordings/play?session=" + process.env.GATEHOUSE_WEB_ALL);
await page.waitForSelector("#player[data-ready]");
await page.keyboard.press("End");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("still a terminal"));
await calm("the player");
const box = await page.locator(".xterm-rows > div >> nth=1").boundingBox();
await page.mouse.move(box.x + 12, box.y + box.height / 2);
await page.waitForTimeout(200);
await page.mouse.click(box.x + 12, box.y + box.height / 2);
await page.waitForTimeout(300);
for (const t of ["ran(0)", "javascript:", "<script>"]) {
	await page.fill("#player [type=search]", t);
	await page.keyboard.press("Enter");
	await page.waitForFunction(() => /Shown at|never/.test(document.querySelector("#player [role=status]").textContent));
}
await calm("the player after a search");
await page.goto(url + "/recordings/play?session=" + process.env.GATEHOUSE_WEB_FIRST);
await page.waitForSelector("#player[data-ready]");
await calm("the player of a broken one");
await page.goto(url + "/recordings/text?session=" + process.env.GATEHOUSE_WEB_ALL);
expect(await page.evaluate(() => document.contentType) === "text/plain", "the transcript is text");
await end(browser);
