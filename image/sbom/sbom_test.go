package sbom

import (
	"bytes"
	"encoding/json"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/image/debian"
)

func program() *debug.BuildInfo {
	return &debug.BuildInfo{GoVersion: "go1.26.8-X:runtimesecret", Deps: []*debug.Module{
		{Path: "golang.org/x/mod", Version: "v0.29.0", Sum: "h1:abc="},
		{Path: "example.org/Fork", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/Own", Version: "v2.0.0+incompatible"}},
	}}
}

func lock() debian.Lock {
	return debian.Lock{{Name: "libc6", Version: "1:2.36-9+deb12u14", File: "libc6_1%3a2.36-9+deb12u14_amd64.deb", SHA256: [32]byte{1}}}
}

func parts(t *testing.T) []Part {
	t.Helper()
	modules, err := Modules(program(), func(path, version string) string {
		if path == "golang.org/x/mod" && version == "v0.29.0" {
			return "Permission is hereby granted, free of charge,\n to any person obtaining a copy"
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(modules, Packages(lock(), func(debian.Package) string {
		return "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nLicense: GPL-2+\n text\nLicense: Expat\n"
	})...)
}

func TestBOX3_WhatTheImageIsMadeOf(t *testing.T) {
	d := Document{Name: "gatehouse-1.5.0", Version: "1.5.0", Created: time.Unix(1795000000, 0), Tool: "test", Parts: parts(t)}
	b, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Named(b)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"pkg:deb/debian/libc6@1%3A2.36-9%2Bdeb12u14?arch=amd64", "pkg:golang/example.org/Own@v2.0.0%2Bincompatible",
		"pkg:golang/golang.org/x/mod@v0.29.0", "pkg:golang/std@1.26.8",
	}
	if !slices.Equal(got, want) {
		t.Errorf("it names %v, want %v", got, want)
	}
	for _, words := range []string{
		`"spdxVersion": "SPDX-2.3"`, `"licenseDeclared": "MIT"`, `"checksumValue": "01000`, `go.sum: h1:abc=`, `in the place of example.org/Fork`,
		`its file copyright names: Expat, GPL-2+`, `https://proxy.golang.org/example.org/!own/@v/v2.0.0+incompatible.zip`,
	} {
		if !bytes.Contains(b, []byte(words)) {
			t.Errorf("it does not say %s:\n%s", words, b)
		}
	}

	// In another order, and with the parts of a second architecture: the same bytes.
	slices.Reverse(d.Parts)
	d.Parts = append(d.Parts, parts(t)...)
	if again, err := d.JSON(); err != nil || !bytes.Equal(again, b) {
		t.Errorf("made again it is other bytes: %v", err)
	}
	d.Version = "1.5.1"
	other, err := d.JSON()
	if err != nil || namespace(t, other) == namespace(t, b) {
		t.Errorf("two documents have one namespace: %v", err)
	}
	checkShape(t, b)
}

func namespace(t *testing.T, b []byte) string {
	t.Helper()
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d.Namespace
}

// checkShape holds a document against what SPDX 2.3 asks of every one.
func checkShape(t *testing.T, b []byte) {
	t.Helper()
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)
	seen := map[string]bool{"SPDXRef-DOCUMENT": true}
	for _, p := range d.Packages {
		if !id.MatchString(p.ID) || seen[p.ID] {
			t.Errorf("%q is no identifier, or is there twice", p.ID)
		}
		seen[p.ID] = true
		if p.Name == "" || p.Source == "" || p.Declared == "" || p.Concluded == "" || p.Analyzed {
			t.Errorf("%s lacks a field: %+v", p.ID, p)
		}
	}
	if len(d.Relationships) != len(d.Packages) || d.Namespace == "" {
		t.Errorf("%d relationships of %d packages, namespace %q", len(d.Relationships), len(d.Packages), d.Namespace)
	}
	for _, r := range d.Relationships {
		if !seen[r.From] || !seen[r.To] {
			t.Errorf("%+v is of something that is not there", r)
		}
	}
}

func TestBOX3_LicencesAreNotGuessed(t *testing.T) {
	bsd := "Redistribution and use in source and binary\nforms, with or without modification, are permitted"
	for text, want := range map[string]string{
		"":                     "",
		"All rights reserved.": "",
		"Apache License\n  Version 2.0, January 2004": "Apache-2.0",
		bsd: "BSD-2-Clause",
		bsd + " Neither the name of X may be used to endorse or promote products":                                  "BSD-3-Clause",
		bsd + " GNU General Public License":                                                                        "",
		"/* SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only */\n" + bsd:                                      "BSD-3-Clause OR GPL-2.0-only",
		"Permission is hereby granted, free of charge, to any person obtaining a copy\nApache License Version 2.0": "Apache-2.0 AND MIT",
	} {
		if got := recognise(text); got != want {
			t.Errorf("%.60q is taken for %q, want %q", text, got, want)
		}
	}
	if got := licences("This is the GNU C Library.\nLicense: LGPL\n"); got != nil {
		t.Errorf("a file in no form: %v", got)
	}
}

func TestBOX3_ScriptsOfThePages(t *testing.T) {
	got, err := Scripts([]byte(`{"packages":{"":{"name":"x"},"node_modules/@xterm/xterm":{"version":"6.0.0","license":"MIT"},"node_modules/esbuild":{"version":"1","dev":true}}}`))
	if err != nil || len(got) != 1 || got[0].URL != "pkg:npm/%40xterm/xterm@6.0.0" || got[0].Licence != "MIT" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Scripts([]byte("{")); err == nil {
		t.Error("half a lock was read")
	}
	for _, bad := range []string{"", "{}", `{"spdxVersion":"SPDX-3.0"}`, strings.Repeat("[", 20)} {
		if _, err := Named([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
