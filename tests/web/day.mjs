// The player with a recording of 24 hours: seeking to the end and back, and finding one line of it.
import { end, expect, open, url } from "./browser.mjs";

const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
await page.goto(url + "/recordings/play?session=" + process.env.GATEHOUSE_WEB_ALL);
await page.waitForSelector("#player[data-ready]");
const shows = (text) => page.waitForFunction((t) => document.querySelector(".xterm-rows").textContent.includes(t), text);
const place = () => page.inputValue("[type=range]").then(Number);
await page.keyboard.press("End");
await shows("tick 86399 of the day");
expect((await page.textContent("#player output")).startsWith("23:59:59 /"), "the last second");
await page.keyboard.press("Home");
await shows("tick 00000 of the day");
await page.fill("#player [type=search]", "pump in the EAST");
await page.keyboard.press("Enter");
await shows("the pump in the east has stopped");
expect(await place() === 60000, `the hit is at its second: ${await place()}`);
expect((await page.textContent("#player [role=status]")).includes("Shown at 16:40:00"), "and said so");
expect(await page.evaluate(() => !document.querySelector(".xterm-rows").textContent.includes("60001")), "nothing later is shown");
await page.focus(".screen");
await page.keyboard.press("ArrowLeft");
await shows("tick 59995 of the day");
expect(await page.evaluate(() => !document.querySelector(".xterm-rows").textContent.includes("stopped")), "back before it");
await end(browser);
