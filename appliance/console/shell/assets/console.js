// What a script adds to pages that work without one: times in the reader's
// zone, the password meter, the browser's clock, copying, printing, usual ports,
// a sheet that closes, and a status page that stays fresh.
"use strict";
document.documentElement.classList.add("scripted");

const two = (n) => String(n).padStart(2, "0");

function localTimes(root) {
	for (const t of root.querySelectorAll("time[datetime]:not([data-clock])")) {
		const d = new Date(t.dateTime);
		if (!isNaN(d)) {
			t.textContent = `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
		}
	}
}

function meter(input) {
	const bar = document.getElementById(input.dataset.meter);
	const words = document.getElementById(input.dataset.words);
	let timer = 0;
	let asked = 0;
	input.addEventListener("input", () => {
		clearTimeout(timer);
		const mine = ++asked;
		timer = setTimeout(async () => {
			if (input.value === "") {
				bar.hidden = true;
				words.textContent = "";
				return;
			}
			const form = input.form;
			const context = ["name", "email"].map((n) => form.elements[n]?.value || "").filter(Boolean);
			try {
				const r = await fetch("/api/v1/password-strength", {
					method: "POST",
					headers: { "Content-Type": "application/json" },
					body: JSON.stringify({ password: input.value, context }),
				});
				const s = await r.json();
				if (r.ok && mine === asked) {
					bar.hidden = false;
					bar.value = s.score + 1;
					words.textContent = s.words;
				}
			} catch {
				bar.hidden = true;
			}
		}, 250);
	});
}

function clocks(root) {
	const server = root.querySelector("[data-clock=box]");
	const browser = root.querySelector("[data-clock=browser]");
	const began = performance.now();
	const start = new Date(server.dateTime).getTime();
	const write = (el, ms) => {
		const d = new Date(ms);
		el.textContent = `${d.getUTCFullYear()}-${two(d.getUTCMonth() + 1)}-${two(d.getUTCDate())} ${two(d.getUTCHours())}:${two(d.getUTCMinutes())}:${two(d.getUTCSeconds())} UTC`;
	};
	const tick = () => {
		const box = start + performance.now() - began;
		const here = Date.now();
		write(server, box);
		write(browser, here);
		const off = Math.round(Math.abs(here - box) / 1000);
		root.querySelector("[data-clock=difference]").textContent =
			off < 3 ? "They agree." : `They differ by ${off < 120 ? off + " seconds" : Math.round(off / 60) + " minutes"}.`;
	};
	tick();
	setInterval(tick, 1000);
	root.querySelector("form[data-clock=use]")?.addEventListener("submit", (e) => {
		e.target.elements.time.value = new Date().toISOString().slice(0, 19).replace("T", " ");
	});
}

function refresh(el) {
	setInterval(async () => {
		if (document.hidden) return;
		try {
			const r = await fetch(el.dataset.refresh, { headers: { Accept: "text/html" } });
			if (r.status === 401 || r.status === 403) {
				location.reload();
				return;
			}
			if (!r.ok) return;
			const page = new DOMParser().parseFromString(await r.text(), "text/html");
			if (el.contains(document.activeElement)) return;
			el.replaceChildren(...page.body.childNodes);
			localTimes(el);
			el.dataset.stale = "";
		} catch {
			el.dataset.stale = "true";
		}
	}, 1000 * Number(el.dataset.every || 5));
}

for (const el of document.querySelectorAll("input[data-meter]")) meter(el);
for (const el of document.querySelectorAll("[data-clocks]")) clocks(el);
for (const el of document.querySelectorAll("[data-refresh]")) refresh(el);
for (const el of document.querySelectorAll("[data-usual]")) { // the port that goes without saying
	const kind = document.getElementById(el.dataset.usual);
	const show = () => { el.placeholder = kind.selectedOptions[0]?.dataset.port ?? ""; };
	kind.addEventListener("change", show);
	show();
}
for (const el of document.querySelectorAll(".bar details")) { // closes as such sheets do
	document.addEventListener("keydown", (e) => {
		if (e.key !== "Escape" || !el.open) return;
		el.open = false;
		el.querySelector("summary").focus();
	});
	document.addEventListener("click", (e) => { if (!el.contains(e.target)) el.open = false; });
}
for (const el of document.querySelectorAll("[data-print]")) el.addEventListener("click", () => window.print());
for (const el of document.querySelectorAll("[data-copy]")) {
	el.addEventListener("click", async () => {
		await navigator.clipboard.writeText(document.getElementById(el.dataset.copy).textContent.trim());
		el.textContent = "Copied";
	});
}
for (const el of document.querySelectorAll("input[data-zone]")) {
	if (el.value === "" || el.value === "UTC") el.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
	const list = document.getElementById(el.getAttribute("list"));
	for (const z of Intl.supportedValuesOf ? Intl.supportedValuesOf("timeZone") : []) {
		const o = document.createElement("option");
		o.value = z;
		list.append(o);
	}
}
for (const el of document.querySelectorAll("[data-countdown]")) {
	const end = performance.now() + 1000 * Number(el.dataset.countdown);
	const timer = setInterval(() => {
		const left = Math.max(0, Math.ceil((end - performance.now()) / 1000));
		el.textContent = left ? `in ${left} seconds` : "now";
		if (!left) {
			clearInterval(timer);
			setTimeout(() => location.replace(el.dataset.then), 1500);
		}
	}, 250);
}
localTimes(document);
