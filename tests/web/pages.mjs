// Claims a box in Chromium and looks at every page.
import { readFileSync } from "node:fs";
import { at, code, end, expect, look, newCode, open, owner, url, whole } from "./browser.mjs";

const { browser, page } = await open();

await page.goto(url + "/");
await look(page, "01-before");
await page.click("text=I have the code");
await page.fill("#claim-code", code.slice(0, -1) + (code.endsWith("0") ? "1" : "0"));
await page.fill("#name", owner.name);
await page.fill("#email", owner.email);
await page.fill("#password", "walnut9walnut");
await page.waitForSelector("#strength:not([hidden])");
await page.fill("#password", owner.password);
await page.waitForFunction(() => document.getElementById("strength").value >= 4);
await look(page, "02-own");
await page.click("button:has-text('Own this box')");
expect((await page.textContent("#problem")).includes("The code is not right"), "a wrong code is told");
await look(page, "03-own-wrong");
await page.fill("#claim-code", code.toLowerCase());
await page.fill("#password", owner.password);
await page.click("button:has-text('Own this box')");
at(page, "/welcome/clock");

await page.waitForSelector("text=They agree.");
await look(page, "04-clock");
await page.click("text=clock is right");
at(page, "/welcome/factor");
await page.click("text=Or type the key");
const manual = await page.textContent("#manual");
await look(page, "05-factor");
await page.fill("#code", "000000");
await page.click("button:has-text('Verify')");
expect((await page.textContent("#problem")).includes("does not fit"), "a wrong code is told");
await page.fill("#code", await newCode(manual));
await page.click("button:has-text('Verify')");
at(page, "/welcome/codes");
await look(page, "06-codes");
const [download] = await Promise.all([page.waitForEvent("download"), page.click("text=Download as text")]);
const text = readFileSync(await download.path(), "utf8");
const codes = await page.$$eval(".codes li", (l) => l.map((e) => e.textContent));
expect(codes.length === 10 && codes.every((c) => text.includes(c)), "the download holds the ten codes");
await page.click("text=I downloaded them");
if (!whole || new URL(page.url()).pathname === "/welcome/recovery") { // a form without keys of its own has none
	at(page, "/welcome/recovery");
	await look(page, "06a-recovery");
	await page.click("text=Later");
}
at(page, "/welcome/place");
await look(page, "07-place");
await page.goBack();
await page.goto(url + "/");
await look(page, "08-status-left");
await page.click("a:has-text('Place')");
await page.fill("#site", "Head office");
await page.fill("#zone", "Europe/Vienna");
await page.click("button:has-text('Done')");
at(page, "/");
await page.waitForTimeout(500);
if (whole) {
	await page.waitForSelector("text=Reporting"); // the agent, live
	const text = await page.textContent("main");
	for (const word of ["Keys and trust", "Grade", "Exposure", "In the kernel", "Clock"]) expect(text.includes(word), `Status shows ${word}`);
}
await look(page, "09-status");
const refreshed = page.waitForResponse((r) => r.url().endsWith("/status/live") && r.ok());
await refreshed;
await page.waitForTimeout(200);
expect(await page.locator("h1").count() === 1, "one headline after the refresh");

await page.click("text=All of it");
at(page, "/exposure");
await look(page, "09-exposure");
await page.goto(url + "/");

// Who may come in: no list, a mistake, what would change, in effect, kept, off.
await page.click("nav >> text=Allowlists");
await look(page, "09a-allowlists-none");
await page.click("text=Make a list with my address");
const mine = await page.inputValue("#text");
await page.fill("#text", mine + "10.0.0.0/33\n");
await page.click("button:has-text('Check what would change')");
expect((await page.textContent("#lines")).includes("Line 2"), "the mistake is told with its line");
await look(page, "09b-allowlist-wrong");
await page.fill("#text", mine + "2001:db8::/32  # a branch\n");
await page.click("button:has-text('Check what would change')");
expect((await page.textContent("main")).includes("List office is new"), "what would change is told");
await look(page, "09c-allowlist-checked");
await page.click("button:has-text('Apply')");
at(page, "/allowlists");
await look(page, "09d-allowlist-waits");
await page.click("button:has-text('Keep this change')");
expect((await page.textContent("main")).includes("The change is kept"), "kept over a new connection");
expect(await page.locator("text=waits to be kept").count() === 0, "nothing waits");
await page.fill("[name=address]", "198.51.100.1");
await page.click("button:has-text('Would it get in')");
await look(page, "09e-allowlists");
if (!whole) { // the double has refusals to show
	await page.goto(url + "/");
	await page.click("a:has-text('Add to a list')");
	at(page, "/allowlists/add");
	await look(page, "09f-allowlist-add");
	await page.click("button:has-text('Open the list')");
	at(page, "/allowlists/edit");
	expect((await page.inputValue("#text")).includes("203.0.113.7  # was refused"), "the address is the last line");
	await look(page, "09g-allowlist-added");
	await page.click("nav >> text=Allowlists");
}
await page.click("button:has-text('Switch all lists off')");
await page.click("button:has-text('Keep this change')");
expect((await page.textContent("main")).includes("The change is kept"), "off, and kept");

// The network: what is there, a mistake beside its field, what would change,
// where to go on when the address goes away, a VLAN that is kept and removed.
// A whole box has one link, which must not be lost here.
await page.click("nav >> text=Network");
await look(page, "09f-network");
if (!whole) {
	await page.click("a[aria-label='Change eth0']");
	await page.click("text=Fixed: those below");
	await page.fill("#addresses", "192.168.1.50/24\n10.0.0.0/33");
	await page.fill("#gateways", "192.168.1.1");
	await page.click("button:has-text('Check what would change')");
	expect((await page.textContent(".field:has(#addresses)")).includes("ends at 32"), "the mistake is told beside its field");
	await look(page, "09g-link-wrong");
	await page.fill("#addresses", "192.168.1.50/24");
	await page.click("button:has-text('Check what would change')");
	expect((await page.textContent("main")).includes("https://192.168.1.50/"), "the page says where to go on");
	await look(page, "09h-network-away");
	const ticket = await page.getAttribute("a[target=_blank]", "href");
	await page.click("button:has-text('Change it again')");
	expect(await page.inputValue("#addresses") === "192.168.1.50/24", "the form is as it was left");
	await page.click("button:has-text('Check what would change')");
	const there = new URL(await page.getAttribute("a[target=_blank]", "href"));
	expect(there.href !== ticket, "a ticket of its own");
	await page.click("button:has-text('Try it')");
	await look(page, "09i-network-go-on");
	await page.goto(url + there.pathname + there.search); // in the place of the new address
	await look(page, "09j-network-here");
	await page.click("button:has-text('Keep this change')");
	expect((await page.textContent("main")).includes("The change is kept"), "kept at the new address");
	await look(page, "09k-network-kept");
	await page.goto(url + "/network");
	await page.click("a:has-text('Add a bond')");
	await look(page, "09l-bond");
	await page.goto(url + "/network");
	await page.click("a:has-text('Add a VLAN')");
	await page.fill("#vlan-id", "20");
	await look(page, "09m-vlan");
	await page.click("button:has-text('Check what would change')");
	await look(page, "09n-vlan-checked");
	await page.click("button:has-text('Try it')");
	at(page, "/network");
	await look(page, "09o-network-waits");
	await page.click("button:has-text('Keep this change')");
	expect((await page.textContent("main")).includes("VLAN 20 on eth0"), "the VLAN is there, and kept");
	await page.click("a[aria-label='Change eth0.20']");
	await page.click("button:has-text('Remove eth0.20')");
	await page.click("button:has-text('Try it')");
	await page.click("button:has-text('Take it back now')");
	expect((await page.textContent("main")).includes("VLAN 20 on eth0"), "taken back");
}
await page.goto(url + "/network");
if (await page.locator("a[href='/network/names']").count()) { // not where the host sets its own
	await page.click("a[href='/network/names']");
	await look(page, "09p-names");
}
await page.goto(url + "/clock");
await page.waitForSelector("text=They agree.");
await look(page, "09q-clock");
if (!whole) {
	await page.click("a:has-text('Reset the floor')");
	await look(page, "09r-clock-floor");
	await page.click("button:has-text('Reset the floor')");
	at(page, "/clock");
	await look(page, "09s-clock-reset");
}

// Which certificate browsers see: the own one, mistakes, the own CA, and back.
await page.click("nav >> text=Certificates");
await look(page, "09f-certificates");
await page.click("button:has-text('Use ACME')");
expect((await page.textContent("#problem")).includes("at least one host name"), "a name is asked for");
await page.fill("#names", "gate.example.net");
await page.fill("#directory", "https://127.0.0.1:1/"); // nobody is there
await page.click("summary:has-text('A server of your own')");
await page.click("button:has-text('Use ACME')");
expect((await page.textContent("#problem")).includes("accepts its terms"), "the terms are asked for");
expect(await page.inputValue("#names") === "gate.example.net", "what was typed stays");
await look(page, "09g-certificates-wrong");
await page.fill("#chain", "not a certificate");
await page.click("button:has-text('Check it and use it')");
expect((await page.textContent("#problem")).includes("no certificate in the chain"), "a bad chain is told");
await page.click("button:has-text('Make an own CA')");
at(page, "/certificates");
for (let i = 0; i < 50 && await page.locator("text=by itself, from").count() === 0; i++) {
	await page.waitForTimeout(200);
	await page.goto(url + "/certificates");
}
await page.click("summary:has-text('What it can vouch for')");
await look(page, "09h-certificates-ca");
const [root] = await Promise.all([page.waitForEvent("download"), page.click("text=Download PEM")]);
expect(readFileSync(await root.path(), "utf8").startsWith("-----BEGIN CERTIFICATE-----"), "the root is PEM");
await page.click("text=How to install it");
at(page, "/certificates/trust");
await look(page, "09i-trust");
await page.goto(url + "/certificates");
await page.click("button:has-text('Use the box’s own certificate')");
expect((await page.textContent("main")).includes("signed itself"), "back to the own one");

// What sessions reach: none yet, a mistake, one that is kept, its credential, and away with it.
await page.click("nav >> text=Targets");
await look(page, "09t-targets-none");
await page.click("text=Declare the first target");
await page.fill("#name", "nas");
await page.fill("#host", "127.0.0.1");
await page.click("button:has-text('Declare the target')");
expect((await page.textContent("#problem")).includes("127.0.0.1"), "the box itself is refused");
await look(page, "09u-target-wrong");
await page.fill("#host", "192.168.1.20");
await page.click("button:has-text('Declare the target')");
at(page, "/targets");
await page.click("a[aria-label$='the credential of nas']");
await page.fill("#user", "root");
await page.fill("#private-key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----");
await page.click("button:has-text('Keep it')");
expect((await page.textContent("#problem")).includes("cannot be used"), "what is no key is told");
expect(await page.inputValue("#private-key") === "", "and not sent back");
await look(page, "09v-credential-wrong");
await page.fill("#password", "tiger mosaic nine");
await page.click("button:has-text('Keep it')");
expect((await page.textContent("main")).includes("password of root"), "the credential is kept");
expect(!(await page.content()).includes("tiger mosaic"), "and not shown");
await page.click("a[aria-label='Change nas']");
await look(page, "09w-target-edit");
await page.selectOption("#kind", "tcp");
await page.fill("#port", "5432");
await page.click("button:has-text('Store')");
expect((await page.textContent("main")).includes("gatehouse connect nas --forward 5432"), "how it is opened is told");
expect(!(await page.textContent("main")).includes("root"), "the credential was for what it was");
await page.click("a[aria-label='Remove nas']");
await page.click("button:has-text('Remove the target')");
at(page, "/targets");
await page.click("nav >> text=Sessions");
await look(page, "09x-sessions-none");
await page.click("nav >> text=Recordings");
await look(page, "09y-recordings-none");

await page.click("nav >> text=Audit");
await look(page, "10-audit");
await page.click("button:has-text('Verify')");
await look(page, "11-audit-verified");
await page.goto(url + "/audit?who=nobody%40example.org");
await look(page, "12-audit-empty");
await page.click("nav >> text=System");
await look(page, "13-system");
if (await page.locator("text=Restart …").count()) {
	await page.click("text=Restart …");
	await look(page, "14-restart");
	await page.click("text=Cancel");
	await page.click("text=Switch off …");
	await look(page, "15-off");
}
await page.goto(url + "/system/updates");
if (await page.locator("text=Not from here").count()) { // a form that is updated as its packages are
	await look(page, "15u-updates-hosted");
}
await page.goto(url + "/system/configuration");
await look(page, "15v-configuration");
await page.setInputFiles("#file", { name: "letter.age", mimeType: "application/octet-stream", buffer: Buffer.from("a letter") });
await page.fill("#passphrase", "some words that open nothing");
await page.click("button:has-text('Look at it')");
expect((await page.textContent("#problem")).includes("not an age file"), "a file that is no export is told");
await page.fill("#password", "seven wet stones in a hat");
await page.fill("#again", "seven wet stones in a hat");
const [exported] = await Promise.all([page.waitForEvent("download"), page.click("button:has-text('Export')")]);
await page.goto(url + "/system/configuration");
await page.fill("#passphrase", "seven wet stones in a hat");
await page.setInputFiles("#file", await exported.path());
await page.click("button:has-text('Look at it')");
at(page, "/system/configuration/import");
await look(page, "15w-found");
await page.goto(url + "/system/erase");
await look(page, "15x-erase");
await page.goto(url + "/system/tokens");
await look(page, "15a-tokens-none");
await page.click("text=Make a token");
await page.fill("#name", "prometheus");
await look(page, "15b-token-new");
await page.click("button:has-text('Make the token')");
const token = await page.textContent("#token");
await look(page, "15c-token-made");
await page.click("text=I stored it");
const scraped = await page.request.get(url + "/metrics", { headers: { Authorization: "Bearer " + token } });
expect(scraped.ok() && (await scraped.text()).includes("gatehouse_info"), "the token reads the metrics");
await page.reload();
await look(page, "15d-tokens");
await page.click("button:has-text('Revoke')");
expect((await page.textContent("main")).includes("The token was revoked"), "revoked");
expect((await page.request.get(url + "/metrics", { headers: { Authorization: "Bearer " + token } })).status() === 401, "and worth nothing");
await page.click("nav >> text=Account");
await look(page, "16-account");
await page.click("text=Change password");
await look(page, "17-password");
await page.goto(url + "/account/codes");
await look(page, "18-codes-again");
await page.goto(url + "/account/factor");
await look(page, "19-factor-again");
await page.goto(url + "/no-such-page");
await look(page, "20-not-found");

await page.goto(url + "/");
await page.click("nav >> text=Sign out");
at(page, "/sign-in");
await look(page, "21-sign-in");
await page.fill("#email", owner.email);
await page.fill("#password", "not the password");
await page.click("button:has-text('Sign in')");
await look(page, "22-sign-in-wrong");
await page.fill("#password", owner.password);
await page.click("button:has-text('Sign in')");
at(page, "/sign-in/code");
await look(page, "23-code");
await page.fill("#code", codes[0].toLowerCase());
await page.click("button:has-text('Go on')");
at(page, "/");
await page.goto(url + "/account");
expect((await page.textContent("main")).includes("9 left"), "a recovery code was used up");
await page.goto(url + "/");
await page.click("nav >> text=Sign out");
await page.fill("#email", owner.email);
await page.fill("#password", owner.password);
await page.click("button:has-text('Sign in')");
await page.fill("#code", await newCode(manual));
await page.click("button:has-text('Go on')");
at(page, "/");
const gone = await page.request.get(url + "/setup");
expect(gone.status() === 404, "the set-up page is gone: " + gone.status());
await end(browser);
