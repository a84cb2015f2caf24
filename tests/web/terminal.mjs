// A terminal in Chromium, from a running box's pages to a shell behind it.
import { writeFileSync } from "node:fs";
import { end, expect, look, open, url } from "./browser.mjs";

const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
const target = process.env.GATEHOUSE_WEB_TARGET;
const order = (name) => writeFileSync(`${process.env.GATEHOUSE_WEB_ORDERS}/${name}`, ""); // to the test around this

const state = () => page.getAttribute("#terminal", "data-state");
const said = () => page.textContent("[data-part=state]");
const shown = () => page.evaluate(() => document.querySelector(".xterm-rows").textContent);
const shows = async (text) => {
	try {
		await page.waitForFunction((t) => document.querySelector(".xterm-rows").textContent.includes(t), text, { timeout: 30000 });
	} catch {
		throw new Error(`the terminal does not show ${text}: ${await said()}\n${await shown()}`);
	}
};
const is = async (want) => {
	try {
		await page.waitForFunction((s) => document.getElementById("terminal").dataset.state === s, want, { timeout: 40000 });
	} catch {
		throw new Error(`not ${want} but ${await state()}: ${await said()}`);
	}
};
const type = async (text) => {
	await page.focus(".xterm-helper-textarea");
	await page.keyboard.type(text);
	await page.keyboard.press("Enter");
};

// The box's own console first: no target is needed for it.
// The box says of itself that it is about to restart (tests/boot has one that is).
const notice = { at: new Date(Date.now() + 290000), text: "the box restarts into version 1.5.0" };
await page.route("**/api/v1/sessions/notice", (r) => r.fulfill({ json: { notice } }));
await page.goto(`${url}/sessions/terminal?target=0`);
await is("live");
await page.waitForFunction(() => document.querySelector("[data-part=news]").textContent.includes("in 5 min: the box restarts into version 1.5.0."));
await type("status");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("gatehouse"));
await look(page, "80-terminal-box");
page.on("dialog", (d) => d.accept()); // leaving a session is asked about
await page.click("[data-act=end]");
await is("over");
expect((await said()).includes("You ended"), "who ended it is told");
await page.unroute("**/api/v1/sessions/notice");

// A shell: its host key is asked about once, a refusal ends it.
await page.goto(`${url}/targets`);
await page.click(`a[href$="target=${target}"]`);
await page.waitForSelector("dialog[open][data-ask=key]");
expect((await page.textContent("[data-part=key-fingerprint]")) === process.env.GATEHOUSE_WEB_PRINT, "the fingerprint as ssh shows it");
await look(page, "81-terminal-key");
await page.keyboard.press("Escape");
await is("over");
const refusal = await said();
await page.click("[data-act=again]");
await page.waitForSelector("dialog[open][data-ask=key]");
await page.click("dialog[open] button[value=yes]");
await is("live");
await shows("#");
await type("PS1='$ '; clear; echo begin-$((6*7))");
await shows("begin-42");
await page.waitForFunction(() => document.querySelector("[data-part=path]").textContent !== "", null, { timeout: 10000 });
expect((await page.textContent("[data-part=path]")).startsWith("Through the gateway"), "the way is told");
expect(refusal.includes("was not taken"), `a refused key is told: ${refusal}`);
expect((await page.textContent("[data-part=recorded]")).includes("not recorded"), "whether it is recorded is told");
await look(page, "82-terminal");

// Size, letters beyond ASCII, third-level keys, titles, colours under the policy.
const before = await page.evaluate(() => document.querySelector(".xterm-rows").children.length);
await page.setViewportSize({ width: 900, height: 560 });
await page.waitForFunction((n) => document.querySelector(".xterm-rows").children.length !== n, before);
await type("clear; stty size | tr ' ' x");
const rows = await page.evaluate(() => document.querySelector(".xterm-rows").children.length);
await shows(`${rows}x`);
await page.setViewportSize({ width: 1280, height: 800 });
await page.focus(".xterm-helper-textarea");
await page.keyboard.insertText("echo 'größer 漢字 @{}|'");
await page.keyboard.press("Enter");
await shows("größer 漢字 @{}|");
await type("clear; printf '\\033]2;<img src=x onerror=alert(1)>\\007\\033[38;2;200;80;20mtrue''-colour\\033[0m\\n'");
await shows("true-colour");
expect((await page.textContent("[data-part=title]")) === "<img src=x onerror=alert(1)>", "a title is text");
expect((await page.evaluate(() => [...document.querySelectorAll(".xterm-rows span")].find((s) => s.textContent === "true-colour")?.style.color || "")) !== "", "its colour is there");

// The clipboard is not the target's, links are asked about, pasted lines too.
await page.evaluate(() => navigator.clipboard.writeText("mine"));
await type("clear; printf '\\033]52;c;ZXZpbA==\\007'; printf '\\033]8;;https://example.net/x\\033\\\\a''-link\\033]8;;\\033\\\\\\n'");
await shows("a-link");
expect(await page.evaluate(() => navigator.clipboard.readText()) === "mine", "the target wrote the clipboard");
const box = await page.locator(".xterm-rows span", { hasText: "a-link" }).first().boundingBox();
await page.mouse.move(box.x + 10, box.y + box.height / 2);
await page.waitForTimeout(200);
await page.mouse.click(box.x + 10, box.y + box.height / 2);
await page.waitForSelector("dialog[open][data-ask=open]");
expect((await page.textContent("[data-part=open-address]")) === "https://example.net/x", "the address is shown");
await page.click("dialog[open] button[value=no]");
await page.evaluate(() => navigator.clipboard.writeText("echo pasted-\u001b[201~one\necho two\n"));
await type("clear; bind 'set enable-bracketed-paste off' 2>/dev/null; cat > /dev/null");
await page.waitForTimeout(300);
await page.keyboard.press("Control+Shift+V");
await page.waitForSelector("dialog[open][data-ask=paste]");
await page.click("dialog[open] button[value=yes]");
await shows("pasted-[201~one");
await page.focus(".xterm-helper-textarea");
await page.keyboard.press("Control+c");

// A flood stops when it is told to, and the page stays usable.
await type("clear; yes flood");
await shows("flood");
await page.waitForTimeout(1500);
await page.focus(".xterm-helper-textarea");
await page.keyboard.press("Control+c");
await type("clear; echo quiet-$((2*21))");
await shows("quiet-42");

// The way is lost, and comes back with the screen and what runs.
await type("clear; echo kept-$((3*14)); sleep 3 && echo woke-$((5+37)) &");
await shows("kept-42");
order("cut-gateway");
await is("lost");
await page.waitForFunction(() => document.getElementById("terminal").dataset.state === "live", null, { timeout: 40000 });
await shows("kept-42");
await shows("woke-42");
await type("echo back-$((1+41))");
await shows("back-42");

// Where UDP gets through, the direct way takes over; the gateway may go then.
order("let-udp");
await page.waitForFunction(() => document.querySelector("[data-part=path]").textContent.startsWith("Directly"), null, { timeout: 30000 });
order("cut-gateway");
await page.waitForTimeout(3000);
expect(await state() === "live", "without the gateway it goes on");
await type("echo direct-$((1+41))");
await shows("direct-42");

// By keyboard out of the terminal, and the end of the shell told.
await page.focus(".xterm-helper-textarea");
await page.keyboard.press("Control+Shift+L");
expect(await page.evaluate(() => document.activeElement.dataset.act === "end"), "the keys lead out of the terminal");
await type("exit 3");
await is("over");
expect((await said()).includes("status 3"), `the end is told: ${await said()}`);
await look(page, "83-terminal-over");
await end(browser);
