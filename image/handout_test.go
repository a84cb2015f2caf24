package image

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/firmware"
	"gatehouse/image/keys"
	"gatehouse/image/target"
)

// What cannot be a release is refused before anything is built, and leaves nothing.
func TestBOX3_WhatCannotBeAReleaseIsRefused(t *testing.T) {
	set := func(name, signer string) string {
		dir := filepath.Join(t.TempDir(), "keys")
		if _, err := keys.NewSigners(dir, []string{signer}, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.New(dir, name, time.Now()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	fine := set("Test", "ada")
	noSigners := set("Test", "ada")
	for _, name := range []string{keys.ManifestFile, "manifest-ada.key"} {
		if err := os.Remove(filepath.Join(noSigners, name)); err != nil {
			t.Fatal(err)
		}
	}
	var targets []target.Target
	var locks []string
	for name, c := range map[string]struct {
		change func(*Build)
		want   error
		words  string
	}{
		"no keys":                  {func(b *Build) { b.Keys = "" }, ErrDevelopment, "--keys"},
		"development keys":         {func(b *Build) { b.Keys = set(developmentName, "ada") }, ErrDevelopment, "PK"},
		"a development signer":     {func(b *Build) { b.Keys = set("Test", development) }, ErrDevelopment, development},
		"keys that are not there":  {func(b *Build) { b.Keys = t.TempDir() }, fs.ErrNotExist, "keys"},
		"nobody to sign":           {func(b *Build) { b.Keys = noSigners }, fs.ErrNotExist, "gatehouse image keys new"},
		"a version of development": {func(b *Build) { b.Version = "1.5.0+abc" }, firmware.ErrMalformed, "1.5.0+abc"},
		"one that is there":        {func(b *Build) { b.Output = t.TempDir(); _ = os.Mkdir(b.path(ReleaseDir), 0o700) }, fs.ErrExist, "not changed"},
		"sources that are in no commit": {func(b *Build) {
			repository(t, b.Source)
			if err := os.WriteFile(filepath.Join(b.Source, "new.go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrChanged, "new.go"},
		"no scripts for the pages":    {func(b *Build) { repository(t, b.Source) }, fs.ErrNotExist, "make tools"},
		"two systems for one machine": {func(*Build) { targets = []target.Target{target.ARM64, target.AMD64, target.ARM64Cloud} }, ErrTargets, "arm64 and arm64-cloud"},
		"no system":                   {func(*Build) { targets = nil }, ErrTargets, "none"},
		"locks for some":              {func(*Build) { targets, locks = []target.Target{target.AMD64, target.ARM64}, []string{"one"} }, ErrTargets, "1 locks"},
	} {
		b := build(t)
		b.Source, b.Output, b.Keys, b.Version = t.TempDir(), filepath.Join(t.TempDir(), "build"), fine, "1.5.0"
		targets, locks = []target.Target{target.AMD64}, nil
		c.change(&b)
		before := list(t, b.Output)
		_, err := b.Release(t.Context(), firmware.Version{}, targets, locks)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %v and %q", name, err, c.want, c.words)
		}
		if after := list(t, b.Output); after != before {
			t.Errorf("%s: it left %s", name, after)
		}
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// repository makes a folder one with everything committed.
func repository(t *testing.T, dir string) {
	t.Helper()
	for _, args := range [][]string{{"init", "-q"}, {"-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "t"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
}
