// The console's policy allows no inline style. xterm.js writes its sheets into
// style elements that it creates, and colours of text into style attributes.
// Both have a way that the policy does allow: sheets that a script constructs,
// and the style object of an element. This must run before xterm.js does.

const create = document.createElement.bind(document);

document.createElement = (name, options) => {
	if (String(name).toLowerCase() !== "style") return create(name, options);
	const sheet = new CSSStyleSheet();
	const element = create("gatehouse-style"); // holds a place in the document, and nothing else
	element.hidden = true;
	let text = "";
	Object.defineProperty(element, "textContent", {
		get: () => text,
		set(value) {
			text = String(value);
			sheet.replaceSync(text);
		},
	});
	Object.defineProperty(element, "sheet", { get: () => sheet });
	document.adoptedStyleSheets.push(sheet);
	element.remove = () => {
		document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== sheet);
		Element.prototype.remove.call(element);
	};
	return element;
};

const setAttribute = Element.prototype.setAttribute;

Element.prototype.setAttribute = function (name, value) {
	if (String(name).toLowerCase() === "style" && this.style) this.style.cssText = value;
	else setAttribute.call(this, name, value);
};
