// Bundles xterm.js into dist, from what package-lock.json pins: the module, its
// style, and the licences of what is in them.
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const from = ["xterm", "addon-fit", "addon-search"].map((name) => `node_modules/@xterm/${name}`);

await build({
	entryPoints: { "xterm": "entry.js" },
	outfile: "dist/xterm.js",
	bundle: true,
	format: "esm",
	target: "es2022",
	minify: true,
	legalComments: "none", // the licences are in a file of their own
	logLevel: "warning",
});
await build({
	entryPoints: ["node_modules/@xterm/xterm/css/xterm.css"],
	outfile: "dist/xterm.css",
	minify: true,
	legalComments: "none",
	logLevel: "warning",
});
writeFileSync("dist/xterm.LICENSE.txt", from.map((dir) => {
	const { name, version } = JSON.parse(readFileSync(`${dir}/package.json`, "utf8"));
	return `${name} ${version}\n\n${readFileSync(`${dir}/LICENSE`, "utf8").trim()}\n`;
}).join("\n\n"));
