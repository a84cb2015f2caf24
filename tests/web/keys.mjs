// Keys and trust, as the owner who is signed in already: the ladder, a recovery
// key that is shown once and typed back, rotation, passphrase, Secure Boot.
import { readFileSync } from "node:fs";
import { at, end, expect, look, open, url } from "./browser.mjs";

const session = process.env.GATEHOUSE_WEB_SESSION;
const sign = async (context) => context.addCookies([{ name: "__Host-gatehouse", value: session, url, secure: true, httpOnly: true }]);

const { browser, context, page } = await open();
await sign(context);
await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
await page.goto(url + "/");
await look(page, "750-status-left");
await page.click("a:has-text('Recovery key')");
await look(page, "751-recovery-none");
await page.click("button:has-text('Make the recovery key')");
const key = await page.textContent("#key");
expect(/^([0-9A-Z]{7}-){7}[0-9A-Z]{7}$/.test(key), "eight groups of seven: " + key);
await look(page, "752-recovery-shown");
await page.click("button:has-text('Copy')");
await page.waitForSelector("text=Copied");
expect(await page.evaluate(() => navigator.clipboard.readText()) === key, "the clipboard has the key alone");
const [file] = await Promise.all([page.waitForEvent("download"), page.click("text=Download as text")]);
expect(readFileSync(await file.path(), "utf8").includes("\r\n\r\n" + key + "\r\n\r\n"), "the file has the key on a line of its own");
expect(file.suggestedFilename().endsWith("-recovery-key.txt"), "and a name that says what it is");
await page.emulateMedia({ media: "print" });
expect(await page.isVisible("#key") && !await page.isVisible("#typed") && !await page.isVisible(".rail"), "printed is the key, not the form");
await page.screenshot({ path: process.env.GATEHOUSE_WEB_SHOTS + "/753-recovery-printed.png", fullPage: true });
await page.emulateMedia({ media: "screen" });
await page.fill("#typed", "0000000");
await page.click("button:has-text('Confirm it')");
expect((await page.textContent("#problem")).includes("not the last group"), "a wrong group is told");
expect(!(await page.content()).includes(key.slice(-7)), "and the key is not shown again");
await look(page, "754-recovery-wrong");
await page.fill("#typed", key.slice(-7).toLowerCase());
await page.click("button:has-text('Confirm it')");
at(page, "/keys");
await look(page, "755-keys");
await page.goBack().catch(() => {}); // ERR_CACHE_MISS: the answer was not kept
await page.waitForFunction(() => document.readyState === "complete");
expect(!(await page.content()).includes(key.slice(-7)), "going back does not show the key");
await page.goto(url + "/keys");

await page.click("a[aria-label='Make anew: TPM']");
expect(await page.isChecked("input[value=tpm]"), "what was pressed is chosen");
await look(page, "756-rotate");
await page.click("button:has-text('Make it anew')");
at(page, "/keys");
await page.click("a:has-text('Set one …')"); // a box asks for it at its console, or by gatehouse unlock
at(page, "/keys/passphrase");
await page.fill("#password", "walnut9walnut");
await page.waitForSelector("#strength:not([hidden])");
await page.fill("#password", "amber canyon violin drift");
await page.waitForFunction(() => document.getElementById("strength").value >= 4);
await page.fill("#again", "amber canyon violin drif");
await look(page, "757-passphrase");
await page.click("button:has-text('Ask for it')");
expect((await page.textContent("#problem")).includes("not the same"), "a slip is told");
await page.fill("#password", "amber canyon violin drift");
await page.fill("#again", "amber canyon violin drift");
await page.click("button:has-text('Ask for it')");
expect((await page.textContent("main")).includes("asked for from the next start"), "it is set");
await page.click("text=Change or remove it");
await look(page, "758-passphrase-set");
await page.click("button:has-text('Remove the passphrase')");
at(page, "/keys");
await page.click("text=Switch Secure Boot on");
await look(page, "759-secure-boot");
await page.click("button:has-text('Write the keys')");
at(page, "/system/restart");
await look(page, "760-enrolled");
await page.goto(url + "/keys");
await look(page, "761-keys-enrolled");

// The same by plain forms.
const plain = await browser.newContext({ ignoreHTTPSErrors: true, javaScriptEnabled: false, acceptDownloads: true });
await sign(plain);
const p = await plain.newPage();
await p.goto(url + "/keys/recovery");
await p.click("button:has-text('Make a new recovery key')");
const other = await p.locator("#key").textContent();
expect(other !== key && other.length === key.length, "another key, without a script");
const [saved] = await Promise.all([p.waitForEvent("download"), p.click("text=Download as text")]);
expect(readFileSync(await saved.path(), "utf8").includes(other), "downloaded without a script");
expect(await p.locator("button:has-text('Copy')").isHidden(), "nothing is offered that needs one");
await p.fill("#typed", other.slice(-7));
await p.click("button:has-text('Confirm it')");
at(p, "/keys");
await p.click("a[aria-label='Make anew: TPM']");
await p.click("button:has-text('Make it anew')");
expect((await p.locator("main").textContent()).includes("The key was made anew"), "rotated without a script");
await end(browser);
