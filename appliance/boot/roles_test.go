package boot

import (
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/vault"
)

func TestBOX10_NameFollowsTheInstallation(t *testing.T) {
	pattern := regexp.MustCompile(`^gatehouse-[0-9a-hjkmnp-tv-z]{4}$`)
	seen := map[string]bool{}
	for i := range 64 {
		id := [16]byte{byte(i * 37), byte(i * 11), byte(i * 151)}
		name := nameOf(id)
		if !pattern.MatchString(name) {
			t.Errorf("name %q does not fit a host name without misread letters", name)
		}
		if nameOf(id) != name {
			t.Error("one installation has two names")
		}
		seen[name] = true
	}
	if len(seen) < 60 {
		t.Errorf("64 installations share %d names", len(seen))
	}
}

func TestLockedIsToldInWords(t *testing.T) {
	l := &vault.Locked{Cause: "The boot chain changed.", Advice: "Put it back.", PCRs: []vault.PCRChange{{Index: 7, Old: strings.Repeat("ab", 32), New: strings.Repeat("cd", 32)}}}
	got := describe(l)
	for _, want := range []string{"The boot chain changed.", "Put it back.", "PCR 7", "abababababababab…", "cdcdcdcdcdcdcdcd…"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

func TestPublicURL(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:0": "https://127.0.0.1:", ":0": ""} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := publicURL(l); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("publicURL of a listener on %s is %q", address, got)
		}
		l.Close()
	}
}

func TestSocketsAreTakenOver(t *testing.T) {
	path := t.TempDir() + "/control.sock"
	first, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as after a crash
	first.Close()
	second, err := listenUnix(path)
	if err != nil {
		t.Fatalf("the socket of an earlier life is in the way: %v", err)
	}
	second.Close()
}

// The roles of a program that was killed hold its ports for a moment.
func TestPortsOfAnEarlierLifeAreWaitedFor(t *testing.T) {
	earlier, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { earlier.Close() })
	l, err := listenSoon(earlier.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := listenSoon("192.0.2.1:443"); err == nil {
		t.Error("it listens on an address of somebody else")
	}
}
