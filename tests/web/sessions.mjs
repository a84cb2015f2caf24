// Targets, sessions and recordings of a box that is at work: every page, the player by keyboard, and that what machines send stays text.
import { at, end, expect, look, open, url } from "./browser.mjs";

const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);

await page.goto(url + "/targets");
await look(page, "60-targets");
await page.click("a[aria-label$='the credential of nas']");
await look(page, "61-credential");
await page.goto(url + "/targets/host-key?id=1");
await look(page, "62-host-key");
await page.goto(url + "/targets/remove?id=1");
await look(page, "63-target-remove");
await page.goto(url + "/targets/edit?id=2");
await look(page, "64-target-edit");
await page.goto(url + "/targets/new");
expect(await page.getAttribute("#port", "placeholder") === "22", "the usual port of SSH");
await page.selectOption("#kind", "rdp");
expect(await page.getAttribute("#port", "placeholder") === "3389", "and of RDP");
await page.selectOption("#kind", "tcp");
expect(await page.getAttribute("#port", "placeholder") === "", "there is none for any other");
await page.goto(url + "/sessions");
await look(page, "65-sessions");
const again = page.waitForResponse((r) => r.url().endsWith("/sessions/live") && r.ok());
await again;
await page.waitForTimeout(200);
expect(await page.locator("h2:has-text('In now')").count() === 1, "one list after the refresh");
await page.click("button[aria-label='End the session of grace@example.org at nas']");
at(page, "/sessions");
expect((await page.textContent("main")).includes("The session was ended"), "ended by its button");
await page.goto(url + "/recordings");
await look(page, "66-recordings");
await page.click("a[aria-label^='Remove the recording'] >> nth=0");
await look(page, "67-recording-remove");
await page.click("text=Cancel");

// A phone: the other pages are behind More, by keyboard too.
await page.setViewportSize({ width: 360, height: 800 });
await page.focus(".bar summary");
await page.keyboard.press("Enter");
await page.waitForSelector(".sheet a:has-text('Audit')");
await look(page, "68-more-sheet");
await page.setViewportSize({ width: 360, height: 800 });
await page.keyboard.press("Escape");
expect(!(await page.locator(".sheet").isVisible()), "Escape closes the sheet");
expect(await page.evaluate(() => document.activeElement.localName === "summary"), "and the focus is back where it was opened");
await page.setViewportSize({ width: 1280, height: 800 });

// The player.
await page.click("a[aria-label^='Play the recording'] >> nth=0");
at(page, "/recordings/play");
await page.waitForSelector("#player[data-ready]");
const shown = () => page.evaluate(() => document.querySelector(".xterm-rows").textContent);
const place = () => page.inputValue("[type=range]").then(Number);
const status = () => page.textContent("#player [role=status]");
expect(await page.evaluate(() => document.activeElement.className === "screen"), "the screen has the focus");
await page.keyboard.press("End");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("exit"));
await look(page, "69-player");
await page.keyboard.press("Home");
await page.waitForFunction(() => !document.querySelector(".xterm-rows").textContent.includes("exit"));
expect(await place() === 0, "Home goes to the start");
await page.keyboard.press("ArrowRight");
expect(await place() === 5, "the arrow goes on by 5 s");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("active (running)"));
expect(!(await shown()).includes("pressure"), "nothing is shown before its time");
await page.keyboard.press("ArrowLeft");
expect(await place() === 0, "and back");
await page.keyboard.press("/");
await page.keyboard.type("Valve SEVEN");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("valve seven is open"));
expect(await place() === 30 && (await status()).includes("Shown at 0:30"), "search jumps to the hit: " + await status());
await page.waitForSelector(".xterm-selection div");
await look(page, "70-player-hit");
await page.fill("[type=search]", "never there");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector("#player [role=status]").textContent.includes("never shown"));
await page.keyboard.press("Escape");
await page.keyboard.press("Home");
await page.selectOption("#player select", "16");
await page.focus(".screen");
await page.keyboard.press("Space");
await page.waitForFunction(() => Number(document.querySelector("[type=range]").value) > 40); // pauses are skipped
await page.waitForFunction(() => document.querySelector("[data-do=play]").textContent === "Play");
await page.waitForFunction(() => document.querySelector(".xterm-rows").textContent.includes("exit"));
expect(await place() === 62.5, "it plays to its end");
expect(await page.evaluate(() => document.querySelector(".xterm-screen").offsetWidth <= document.querySelector(".screen").clientWidth), "the width of the terminal fits");

await page.goto(url + "/recordings");
await page.click("a[aria-label^='Play the recording'] >> nth=2");
await page.waitForSelector("#player[data-ready]");
await page.keyboard.press("End");
await page.waitForFunction(() => document.querySelector("#player [role=status]").textContent.includes("changed after it was written"));
await look(page, "71-player-broken");
await end(browser);
