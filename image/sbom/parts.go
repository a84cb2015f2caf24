package sbom

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"gatehouse/image/debian"
)

// Modules are the Go modules that a program was linked from, and Go's own
// library. licence returns the text of a module's licence, "" if it is not there.
func Modules(program *debug.BuildInfo, licence func(path, version string) string) ([]Part, error) {
	goVersion, _, _ := strings.Cut(strings.TrimPrefix(program.GoVersion, "go"), "-")
	goVersion, _, _ = strings.Cut(goVersion, " ")
	parts := []Part{{URL: "pkg:golang/std@" + goVersion, Name: "std", Version: goVersion, Licence: "BSD-3-Clause", Source: "https://go.dev/dl/go" + goVersion + ".src.tar.gz",
		Comment: "the standard library and runtime of Go, as " + program.GoVersion}}
	for _, m := range program.Deps {
		named := m.Path
		if m.Replace != nil {
			m = m.Replace
		}
		p := Part{URL: moduleURL(m), Name: m.Path, Version: m.Version}
		if m.Sum != "" {
			p.Comment = "go.sum: " + m.Sum
		}
		if m.Path != named {
			p.Comment += "; in the place of " + named
		}
		if licence == nil {
			licence = func(string, string) string { return "" }
		}
		if text := licence(m.Path, m.Version); text != "" {
			p.Licence = recognise(text)
			p.Remark = "recognised by the text in the module"
			if p.Licence == "" {
				p.Remark = "the module has a text, which no rule recognises"
			}
		}
		path, err := module.EscapePath(m.Path)
		if err != nil {
			return nil, fmt.Errorf("naming the module %s: %w", m.Path, err)
		}
		version, err := module.EscapeVersion(m.Version)
		if err != nil {
			return nil, fmt.Errorf("naming the module %s: %w", m.Path, err)
		}
		p.Source = "https://proxy.golang.org/" + path + "/@v/" + version + ".zip"
		parts = append(parts, p)
	}
	return parts, nil
}

func moduleURL(m *debug.Module) string {
	return "pkg:golang/" + m.Path + "@" + url.QueryEscape(m.Version)
}

// texts are what tells a licence by its words, all of them on one line.
var texts = []struct{ id, words string }{
	{"Apache-2.0", "apache license version 2.0"},
	{"MPL-2.0", "mozilla public license version 2.0"},
	{"MPL-2.0", "mozilla public license, version 2.0"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{"ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee"},
	{"CC0-1.0", "cc0 1.0 universal"},
	{"Unlicense", "this is free and unencumbered software released into the public domain"},
}

// stated is how a text says itself which licence it is.
var stated = regexp.MustCompile(`SPDX-License-Identifier: ([A-Za-z0-9.+() -]+[A-Za-z0-9.+)])`)

// recognise names the licences of a text. Of the BSD licences the one with three
// clauses is told by its third.
func recognise(text string) string {
	if m := stated.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	plain := strings.ToLower(strings.Join(strings.Fields(text), " "))
	if strings.Contains(plain, "gnu general public license") && !strings.Contains(plain, "mozilla public license") {
		return "" // a choice between licences, which the words alone do not tell
	}
	found := make(map[string]bool)
	for _, t := range texts {
		if strings.Contains(plain, t.words) {
			found[t.id] = true
		}
	}
	if strings.Contains(plain, "redistribution and use in source and binary forms") {
		if strings.Contains(plain, "to endorse or promote products") {
			found["BSD-3-Clause"] = true
		} else {
			found["BSD-2-Clause"] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), " AND ")
}

// Packages are the Debian packages of a lock. copyright returns the text of
// /usr/share/doc/NAME/copyright, "" if it is not there.
func Packages(lock debian.Lock, copyright func(debian.Package) string) []Part {
	var parts []Part
	for _, d := range lock {
		p := Part{URL: packageURL(d), Name: d.Name, Version: d.Version, File: d.File, SHA256: fmt.Sprintf("%x", d.SHA256)}
		// A package has many licences, by file, in Debian's names: they are told, and
		// not made one expression, which would say more than is known.
		if copyright == nil {
			copyright = func(debian.Package) string { return "" }
		}
		if names := licences(copyright(d)); len(names) > 0 {
			p.Remark = "its file copyright names: " + strings.Join(names, ", ")
		}
		parts = append(parts, p)
	}
	return parts
}

func packageURL(d debian.Package) string {
	base := strings.TrimSuffix(d.File, ".deb")
	arch := base[strings.LastIndexByte(base, '_')+1:]
	return "pkg:deb/debian/" + url.QueryEscape(d.Name) + "@" + url.QueryEscape(d.Version) + "?arch=" + arch
}

// licences are those that a copyright file in Debian's machine-readable form
// (copyright-format 1.0) names.
func licences(copyright string) []string {
	if !strings.HasPrefix(copyright, "Format:") {
		return nil
	}
	found := make(map[string]bool)
	for line := range strings.Lines(copyright) {
		if name, ok := strings.CutPrefix(line, "License:"); ok && strings.TrimSpace(name) != "" {
			found[strings.TrimSpace(name)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Scripts are the packages of npm whose code a package-lock.json brings into the
// pages; those that only build them are left out.
func Scripts(lock []byte) ([]Part, error) {
	var l struct {
		Packages map[string]struct {
			Version, License, Resolved string
			Dev                        bool
		}
	}
	if err := json.Unmarshal(lock, &l); err != nil {
		return nil, fmt.Errorf("reading the lock of the pages' scripts: %w", err)
	}
	var parts []Part
	for where, p := range l.Packages {
		name, ok := strings.CutPrefix(where, "node_modules/")
		if !ok || p.Dev {
			continue
		}
		parts = append(parts, Part{URL: "pkg:npm/" + strings.Replace(name, "@", "%40", 1) + "@" + p.Version, Name: name, Version: p.Version, Licence: p.License, Source: p.Resolved})
	}
	slices.SortFunc(parts, func(a, b Part) int { return cmp.Compare(a.URL, b.URL) })
	return parts, nil
}
