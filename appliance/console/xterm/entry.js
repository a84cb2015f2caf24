// What the console's pages have of xterm.js: one module, bundled by build.mjs.
import "./styles.js";
export { Terminal } from "@xterm/xterm";
export { FitAddon } from "@xterm/addon-fit";
export { SearchAddon } from "@xterm/addon-search";
