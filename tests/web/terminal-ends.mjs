// How a terminal in Chromium ends, and who is not taken for the agent.
import { writeFileSync } from "node:fs";
import { end, expect, open, url } from "./browser.mjs";

const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
page.on("dialog", (d) => d.accept());
const terminal = `${url}/sessions/terminal?target=${process.env.GATEHOUSE_WEB_TARGET}`;
const order = (name, text = "") => writeFileSync(`${process.env.GATEHOUSE_WEB_ORDERS}/${name}`, text);
const said = () => page.textContent("[data-part=state]");
const is = async (want) => {
	try {
		await page.waitForFunction((s) => document.getElementById("terminal").dataset.state === s, want, { timeout: 60000 });
	} catch {
		throw new Error(`not ${want}: ${await said()}`);
	}
};

// A hub's line that lies: the answer names another certificate than the grant's.
const lie = (sdp) => sdp.replace(/(a=fingerprint:sha-256 )(..)/, (_, name, hex) => name + (hex === "00" ? "01" : "00"));
for (const change of [lie, (sdp) => sdp.replace(/a=fingerprint:.*\r\n/, ""), (sdp) => sdp + lie(sdp.match(/a=fingerprint:.*\r\n/)[0])]) {
	await page.route("**/api/v1/sessions/signal", async (route) => {
		const response = await route.fetch();
		const { sdp } = await response.json();
		await route.fulfill({ response, json: { sdp: change(sdp) } });
	});
	await page.goto(terminal);
	await is("over");
	expect((await said()).includes("not the agent"), `a lie in the answer: ${await said()}`);
	await page.unroute("**/api/v1/sessions/signal");
}

// Ended by somebody, by each way to the agent, and by the lists.
for (const [name, way, reason] of [["end-relay", "Through", "ended"], ["end-direct", "Directly", "ended"], ["lists", "Directly", "list"]]) {
	if (way === "Directly") order("let-udp");
	await page.goto(terminal);
	await page.waitForSelector("dialog[open][data-ask=key]", { timeout: 3000 }).then(() => page.click("dialog[open] button[value=yes]")).catch(() => {});
	await is("live");
	await page.waitForFunction((w) => document.querySelector("[data-part=path]").textContent.startsWith(w), way, { timeout: 30000 });
	const over = page.waitForFunction(() => document.getElementById("terminal").dataset.state === "over" && Date.now(), null, { timeout: 60000, polling: 20 });
	order(name);
	order(`over-${name}`, String(await (await over).jsonValue()));
	expect((await said()).toLowerCase().includes(reason), `${name}: ${await said()}`);
	console.log(`${name}: ${await said()}`);
}
await end(browser);
