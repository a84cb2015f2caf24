package terminal

import (
	"strings"
	"testing"

	"gatehouse/appliance/console/shell"
)

func TestPageHasItsRightAndItsFiles(t *testing.T) {
	routes := New(Ports{}).Routes()
	if len(routes) != 1+len(assets) || routes[0].Path != "/sessions/terminal" || routes[0].Right != "use-sessions" {
		t.Fatalf("%+v", routes)
	}
	for _, r := range routes {
		if r.Need != shell.Full || r.Method != "GET" {
			t.Errorf("%s: need %d", r.Path, r.Need)
		}
	}
}

// What the page's own files may not have under the policy, or in any case.
func TestFilesFollowThePolicy(t *testing.T) {
	for name, most := range map[string]int{"terminal.js": 14 << 10, "link.js": 14 << 10, "terminal.css": 4 << 10, "terminal.html": 8 << 10} {
		text := string(asset(name))
		if len(text) > most {
			t.Errorf("%s has %d bytes", name, len(text))
		}
		for _, bad := range []string{"eval(", "innerHTML", "insertAdjacentHTML", "document.write", "@import", "https://", " style=", "onclick=\"", "window.open"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}
