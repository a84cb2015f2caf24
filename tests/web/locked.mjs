// The one page of a locked box.
import { end, expect, look, open, url } from "./browser.mjs";

const { browser, page } = await open();
await page.goto(url + "/");
await look(page, "40-locked");
expect(await page.locator("form, input").count() === 0, "no form under a certificate that may be new");
await end(browser);
