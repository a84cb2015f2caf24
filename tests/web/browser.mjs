// A Chromium that talks to nobody but the box, and what every test asks of a page.
import { createHmac } from "node:crypto";
import { mkdirSync } from "node:fs";
import { chromium } from "playwright-core";
import axe from "axe-core";

export const url = process.env.GATEHOUSE_WEB_URL.replace(/\/$/, "");
export const code = process.env.GATEHOUSE_WEB_CODE;
export const shots = process.env.GATEHOUSE_WEB_SHOTS;
mkdirSync(shots, { recursive: true });

export const owner = { name: "Ada Lovelace", email: "ada@example.org", password: "orbit walnut cathedral seven" };

const quiet = [
	"--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
	"--disable-sync", "--disable-domain-reliability", "--no-first-run", "--no-pings", "--metrics-recording-only",
	"--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication,CertificateTransparencyComponentUpdater",
];

const failures = [];
export const fail = (text) => { failures.push(text); console.error("FAIL " + text); };
export const expect = (ok, text) => { if (!ok) fail(text); };

export async function open(options = {}) {
	const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: quiet });
	const context = await browser.newContext({ ignoreHTTPSErrors: true, acceptDownloads: true, ...options });
	context.setDefaultTimeout(60000);
	const page = await context.newPage();
	page.on("console", (m) => {
		if (m.type() === "error" && !/status of 4\d\d/.test(m.text())) fail(`console of ${page.url()}: ${m.text()}`);
	});
	page.on("pageerror", (e) => fail(`script of ${page.url()}: ${e.message}`));
	page.on("request", (r) => {
		if (!r.url().startsWith(url) && !r.url().startsWith("data:")) fail(`a request left the box: ${r.url()}`);
	});
	await context.addInitScript(() => {
		document.addEventListener("securitypolicyviolation", (e) => console.error(`CSP ${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
	});
	return { browser, context, page };
}

export function totp(manual, at = Date.now()) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
	let bits = "";
	for (const c of manual.replace(/[\s=]/g, "")) bits += alphabet.indexOf(c).toString(2).padStart(5, "0");
	const key = Buffer.from(bits.match(/.{8}/g).map((b) => parseInt(b, 2)));
	const counter = Buffer.alloc(8);
	counter.writeBigUInt64BE(BigInt(Math.floor(at / 30000)));
	const h = createHmac("sha1", key).update(counter).digest();
	return String((h.readUInt32BE(h[19] & 15) & 0x7fffffff) % 1000000).padStart(6, "0");
}

// newCode waits for a step that was not used yet, as a person would.
let lastStep = 0;
export async function newCode(manual) {
	while (Math.floor(Date.now() / 30000) <= lastStep) await new Promise((r) => setTimeout(r, 500));
	lastStep = Math.floor(Date.now() / 30000);
	return totp(manual);
}

const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];

// whole is set where the other end is a whole running box and not the console
// alone: what other processes tell must be on its pages then. They are looked
// at once each; in both themes and all widths the console alone is.
export const whole = process.env.GATEHOUSE_WEB_WHOLE === "1";

// look takes a page in both themes and three widths, and judges each.
export async function look(page, name) {
	if (whole) {
		await page.screenshot({ path: `${shots}/box-${name}.png`, fullPage: true });
		return;
	}
	for (const scheme of ["light", "dark"]) {
		await page.emulateMedia({ colorScheme: scheme });
		for (const width of [360, 768, 1280]) {
			await page.setViewportSize({ width, height: 800 });
			await page.waitForTimeout(150); // colours fade for 120 ms
			const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
			expect(over <= 0, `${name} ${scheme} ${width}: ${over} px wider than the window`);
			await page.screenshot({ path: `${shots}/${name}-${scheme}-${width}.png`, fullPage: true });
			if (width === 768) continue; // what axe judges is the same as at one of the ends
			if (!await page.evaluate(() => "axe" in window)) await page.evaluate(axe.source);
			// What passes is not told: to gather it takes as long as to judge.
			const { violations } = await page.evaluate((t) => window.axe.run(document, { runOnly: t, resultTypes: ["violations"] }), tags);
			for (const v of violations) {
				fail(`${name} ${scheme} ${width}: ${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.target + " " + n.failureSummary.split("\n").at(-1)).join(" | ")}`);
			}
		}
	}
	await page.emulateMedia({ colorScheme: "light" });
	await page.setViewportSize({ width: 1280, height: 800 });
}

export const at = (page, path) => expect(new URL(page.url()).pathname === path, `at ${page.url()}, expected ${path}`);

export async function end(browser) {
	await browser.close();
	if (failures.length) {
		console.error(`${failures.length} failures`);
		process.exit(1);
	}
	console.log("ok");
}
