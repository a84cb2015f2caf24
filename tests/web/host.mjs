// Lists that are files of the host: shown, with what is wrong with the files, and edited nowhere here.
import { at, end, expect, look, open, url } from "./browser.mjs";

const { browser, context, page } = await open();
await context.addCookies([{ name: "__Host-gatehouse", value: process.env.GATEHOUSE_WEB_SESSION, url, secure: true }]);
await page.goto(url + "/allowlists");
const text = await page.textContent("main");
expect(text.includes("files of the host"), "the page says where the lists are");
expect(text.includes("office.list, line 7"), "what was refused is told with its line");
expect(await page.locator("main form[method=post], main a:has-text('New list')").count() === 0, "nothing to edit with");
await look(page, "50-allowlists-of-the-host");
await page.click("a[aria-label='Show office']");
at(page, "/allowlists/edit");
expect(await page.locator("#text").getAttribute("readonly") !== null, "the list is only shown");
expect(await page.locator("main form").count() === 0, "no form");
await look(page, "51-allowlist-of-the-host");
await end(browser);
