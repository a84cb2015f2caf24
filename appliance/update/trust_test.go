package update

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who holds the disk spoils what the box goes by.
func TestBOX4_TrustIsAuthenticated(t *testing.T) {
	h := newHouse(t)
	h.up(h.config)
	name := filepath.Join(h.config.Dir, trustFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"another threshold": bytes.Replace(good, []byte(`"threshold":2`), []byte(`"threshold":1`), 1),
		"noise":             []byte("noise"), "cut": good[:len(good)/2], "empty": nil, "no MAC": []byte(`{}`),
	} {
		if bytes.Equal(good, bad) {
			t.Fatalf("%s: nothing was spoilt: %s", what, good)
		}
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.begin(h.up(h.config), false); err == nil || !strings.Contains(err.Error(), "changed by something else") {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := h.config
	c.MAC[0]++
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.begin(h.up(c), false); err == nil {
		t.Error("of another installation, and believed")
	}
	if _, err := h.begin(h.up(h.config), false); err != nil {
		t.Errorf("put back: %v", err)
	}
}
