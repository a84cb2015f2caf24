package xterm

import (
	"os"
	"strings"
	"testing"

	"gatehouse/appliance/console/shell"
)

// The bundle is there or not, whole.
func TestBundleIsWhole(t *testing.T) {
	b := Open()
	found := 0
	for _, name := range []string{module, style, licences} {
		if read(name) != nil {
			found++
		}
	}
	if b == (Bundle{}) && found != 0 || b != (Bundle{}) && found != 3 {
		t.Fatalf("%+v, and %d of 3 files: run make tools", b, found)
	}
	if found == 0 {
		if _, err := os.Stat("dist/" + module); err == nil {
			t.Error("the bundle is on disk, and not in the program")
		}
		return
	}
	text := string(read(licences))
	for _, want := range []string{"@xterm/xterm ", "@xterm/addon-fit ", "@xterm/addon-search ", "Permission is hereby granted, free of charge"} {
		if !strings.Contains(text, want) {
			t.Errorf("the licences do not have %q", want)
		}
	}
	if n := len(read(module)); n > 450<<10 {
		t.Errorf("the module has %d bytes: what is new in it?", n)
	}
	for _, bad := range []string{"sourceMappingURL", "@import", "url(http"} {
		if strings.Contains(string(read(module)), bad) || strings.Contains(string(read(style)), bad) {
			t.Errorf("the bundle has %q", bad)
		}
	}
}

// Only people who are signed in are served it.
func TestBundleIsNotForStrangers(t *testing.T) {
	routes := Routes()
	if len(routes) != 3 {
		t.Fatalf("%d routes", len(routes))
	}
	for _, r := range routes {
		if r.Need != shell.Full || r.Right == "" || r.Method != "GET" {
			t.Errorf("%s: need %d, right %q", r.Path, r.Need, r.Right)
		}
	}
}
