package web

import (
	"fmt"
	"slices"
	"strings"
)

// hostile is what a target or an agent could send in the hope that a page takes
// it for more than text. Each, if it ran, would call ran() with its number.
func hostile(n int) []string {
	call := func(i int) string { return fmt.Sprintf("ran(%d)", i) }
	forms := []string{
		`<script>%s</script>`, `"><script>%s</script>`, `'><script>%s</script>`, `</td></tr></table><script>%s</script>`, `</script><script>%s</script>`,
		`<img src=x onerror=%s>`, `"><img src=x onerror="%s">`, `' onerror='%s' x='`, `" onfocus="%s" autofocus="`, `" onmouseover="%s`, `<svg onload=%s>`, `<svg><script>%s</script></svg>`,
		`<svg><animate onbegin=%s attributeName=x dur=1s>`, `<body onload=%s>`, `<iframe srcdoc="<script>parent.%s</script>">`, `<iframe src="javascript:parent.%s">`,
		`<a href="javascript:%s">x</a>`, `javascript:%s`, `data:text/html,<script>parent.%s</script>`, `<details open ontoggle=%s>`, `<input autofocus onfocus=%s>`,
		`<video><source onerror="%s"></video>`, `<math><mtext><script>%s</script></mtext></math>`, `<template><script>%s</script></template>`, `<noscript><p title="</noscript><img src=x onerror=%s>">`,
		`<title></title><script>%s</script>`, `</title><script>%s</script>`, `</textarea><script>%s</script>`, `</style><script>%s</script>`, `--><script>%s</script>`, `<!--><script>%s</script>`,
		`]]><script>%s</script>`, `<base href="javascript:%s//">`, `<meta http-equiv=refresh content="0;url=javascript:%s">`, `<form action="javascript:%s"><button>x</button></form>`,
		`<object data="javascript:%s">`, `<embed src="javascript:%s">`, `<link rel=stylesheet href="javascript:%s">`, `<style>@import 'javascript:%s'</style>`, `<x onclick=%s>x</x>`,
		`{{.Box}}{{%s}}`, `{{define "x"}}%s{{end}}`, `${%s}`, `#{%s}`, `<%%= %s %%>`, `&lt;script&gt;%s&lt;/script&gt;`, `&#60;script&#62;%s&#60;/script&#62;`, `\u003cscript\u003e%s\u003c/script\u003e`, `%%3Cscript%%3E%s%%3C/script%%3E`,
		"\x1b]0;<script>%s</script>\x07", "\x1b]8;;javascript:%s\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;cmFuKDEp\x07%s", "\x1b[201~%s\r", "\x1b[?1049h\x1b[2J%s", "\x1bP+q%s\x1b\\", "\x9b31m%s",
		"\u202e%s\u202c", "\ufeff<script>%s</script>", "\x00<script>%s</script>", "<scr\x00ipt>%s</scr\x00ipt>", "＜script＞%s＜/script＞", "\u2028%s\u2029", "\xff\xfe<script>%s</script>", "<ſcript>%s</ſcript>",
		"');%s;('", "\");%s;(\"", "`;%s;`", "\\';%s;//", "*/%s/*", "\r\n\r\n<script>%s</script>", "\nSet-Cookie: x=%s", `"},{"x":"%s`, `[1,"o","%s"]`, "%s" + "\u0300\u0301\u0302",
	}
	dress := []func(string) string{
		func(s string) string { return s },
		strings.ToUpper,
		func(s string) string { return "nas " + s },
		func(s string) string { return s + s },
		func(s string) string { return strings.ReplaceAll(s, " ", "/") },
		func(s string) string { return strings.ReplaceAll(s, " ", "\t\n") },
		func(s string) string { return strings.Repeat("W", 250) + s },
	}
	var out []string
	for i := range n {
		form := strings.ReplaceAll(forms[i%len(forms)], "%%", "%")
		s := dress[i/len(forms)%len(dress)](strings.ReplaceAll(form, "%s", "\x01"))
		s = strings.ReplaceAll(s, "\x01", call(i)) // calls keep their case
		if slices.Contains(out, s) {
			s += " "
		}
		out = append(out, s)
	}
	return out
}
