// System → Updates, as the owner who is signed in already: a release that is
// refused, one that is seen coming, started, on trial, gone back, kept; and the
// same without scripts.
import { readFileSync, writeFileSync } from "node:fs";
import { at, end, expect, look, open, url } from "./browser.mjs";

const session = process.env.GATEHOUSE_WEB_SESSION;
const file = process.env.GATEHOUSE_WEB_RELEASE; // …/new.update; damaged.update and first half.update beside it
const beside = (name) => file.replace("new.update", name);
const sign = async (context) => context.addCookies([{ name: "__Host-gatehouse", value: session, url, secure: true, httpOnly: true }]);
const says = async (page, text, what) => expect((await page.textContent("main")).includes(text), what + ": " + text);
// The test ends the trial as this file says.
const ends = (how) => writeFileSync(beside("ends"), how);
const until = async (page, text) => {
	await page.waitForFunction((t) => document.querySelector("main").textContent.includes(t), text);
};

const { browser, context, page } = await open();
await sign(context);
await page.goto(url + "/system");
await page.click("a:has-text('Updates')");
await says(page, "Nothing is on its way", "at rest");
await look(page, "800-updates");
await page.click("a:has-text('Bring a release')");
await page.setInputFiles("#bundle", beside("damaged.update"));
await page.click("button:has-text('Send it')");
expect((await page.textContent("#problem")).includes("SHA-256"), "a damaged one is refused beside the form");
await look(page, "801-bring-refused");

await page.setInputFiles("#bundle", beside("half.update"));
await page.click("button:has-text('Send it')");
expect((await page.textContent("#problem")).includes("not copied as a whole"), "half of one is told");

// Half of it came once, in a part: another page sees how far, and that nothing comes.
const half = readFileSync(beside("half.update"));
const note = half.indexOf("\n") + 1;
const system = note + Number(half.subarray(0, note).toString().trim().split(" ").pop());
const part = async (path, type, data) => {
	const answer = await page.request.post(url + "/api/v1/update" + path, { headers: { "Content-Type": type }, data });
	expect(answer.status() === 200, path + ": " + answer.status());
};
await part("/offer", "application/json", Buffer.from(JSON.stringify({ manifest: half.subarray(note, system).toString("base64") })));
await part("/part?version=0.2.0&offset=0", "application/octet-stream", half.subarray(system));
await until(page, "% ·"); // how far it is, by itself
const other = await context.newPage();
await other.goto(url + "/system/updates");
await says(other, "is on its way into slot B", "another page shows the transfer");
await look(other, "802-receiving");
await page.setInputFiles("#bundle", file);
await page.click("button:has-text('Send it')");
at(page, "/system/updates");
await says(page, "Version 0.2.0 is here, and verified", "received");
await until(other, "Version 0.2.0 is here"); // by itself
await other.close();

await page.click("a:has-text('Settings')");
await page.fill("#window", "Sundays at night");
await page.click("button:has-text('Store')");
expect((await page.textContent("#problem")).includes("Write it like"), "a window that is not understood");
expect(await page.inputValue("#window") === "Sundays at night", "the form is as it was left");
await page.fill("#window", "Sun 02:00-04:00");
await page.fill("#mirror", "http://127.0.0.1:9/gatehouse/");
await page.click("button:has-text('Store')");
await says(page, "Sun 02:00-04:00", "the window");
await page.click("button:has-text('Look now')");
await until(page, "connection refused");
await look(page, "805-mirror");
await page.goto(url + "/system/updates/receive");
await look(page, "808-receive");
await page.goto(url + "/system/updates");
await page.click("a:has-text('Start it')");
await look(page, "806-start");
await page.click("button:has-text('Start it at the window')");
await says(page, "Version 0.2.0 starts", "it waits");
await look(page, "807-waiting");
await page.click("a:has-text('Start it now')");
await page.click("button:has-text('Restart into it now')");
await says(page, "restarts into version 0.2.0", "the box restarts");
await page.click("a:has-text('Open it again')");
await says(page, "Version 0.2.0 is on trial", "the trial");
await look(page, "809-trial");
ends("unexplained");
await until(page, "went back to 0.1.0");
await look(page, "810-gone-back");
await page.goto(url + "/");
await says(page, "version 0.2.0 went back", "Status");

// Again, without scripts, and it is known to be bad then.
const plain = await open({ javaScriptEnabled: false });
await sign(plain.context);
const p = plain.page;
const again = async (insist) => {
	await p.goto(url + "/system/updates");
	if (insist) {
		await p.click("a:has-text('in spite of that')");
		await p.check("[name=again]");
		await p.setInputFiles("#bundle", file);
		await p.click("button:has-text('Send it')");
		await p.click("a:has-text('Start it')");
	} else {
		await p.click("a:has-text('Try again')"); // it is still there
	}
	await p.click("button:has-text('Restart into it now')");
	await p.click("a:has-text('Open it again')");
	expect((await p.textContent("main")).includes("is on trial"), "a trial, without scripts");
};
const reloadUntil = async (text) => {
	for (let i = 0; i < 100 && !(await p.textContent("main")).includes(text); i++) {
		await p.waitForTimeout(100);
		await p.reload();
	}
	expect((await p.textContent("main")).includes(text), "without scripts: " + text);
};
await again(false);
ends("explained");
await reloadUntil("not tried again unless you insist");
await page.goto(url + "/system/updates");
await look(page, "812-gone-back-explained");
await again(true);
ends("kept");
await reloadUntil("Version 0.2.0 runs");
await page.goto(url + "/system/updates");
await look(page, "813-kept");
await plain.browser.close();
await end(browser);
