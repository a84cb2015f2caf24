package hosted

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/tests/web"
)

// Addresses of a box that stands between the technician and a machine. They
// are private ones: Chromium refuses those on port 443 where others would do.
const (
	boxPrivate = "10.77.0.1"
	technician = "10.77.0.2"
)

// TestSES4_TerminalInABrowser: a technician's Chromium, a box, and an OpenSSH
// server behind it, each in a network namespace of its own.
func TestSES4_TerminalInABrowser(t *testing.T) {
	b := newBehind(t)
	l := b.lan
	l.host.Up(t, "lan0", boxPrivate+"/24")
	l.machine.Up(t, "lan0", technician+"/24")
	key, err := os.ReadFile(b.key)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever the files of this machine's root would do when he signs in.
	public, err := os.ReadFile(b.key + ".pub")
	if err == nil {
		err = os.WriteFile(b.key+".pub", append([]byte(`command="exec bash --norc -i" `), public...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := l.from(friend)
	c.Timeout = patience
	var made api.Target
	l.ok(c, api.Targets, api.TargetNew{Target: session.Target{Name: "shell behind", Kind: session.SSH, Host: nasAddress, Port: 22}, Recording: session.RecordingOff}, &made)
	l.ok(c, api.Credential, api.CredentialSet{ID: made.ID, User: "root", PrivateKey: string(key)}, nil)
	at, err := url.Parse("https://" + boxAddress)
	if err != nil {
		t.Fatal(err)
	}
	cookie := ""
	for _, k := range l.jar.Cookies(at) {
		if k.Name == "__Host-gatehouse" {
			cookie = k.Value
		}
	}
	l.machine.Command(t, "nft", "add table inet test; add chain inet test out { type filter hook output priority 0; }; add rule inet test out meta l4proto udp drop")
	orders := t.TempDir()
	done := make(chan struct{})
	defer func() { done <- struct{}{} }()
	go l.obey(orders, done)
	web.Terminal(t, "https://"+boxPrivate, cookie, strconv.FormatInt(made.ID, 10), b.host, orders, func(cmd *exec.Cmd) error {
		l.machine.Do(t, cmd.Start)
		return nil
	})
}

// ok asks the API, which must do it.
func (l *lan) ok(c *http.Client, path string, question, answer any) {
	l.Helper()
	if code, text := l.api(c, path, question, answer); code >= 300 {
		l.Fatalf("%s answers %d: %s", path, code, text)
	}
}

// obey does what the browser's script orders, until done.
func (l *lan) obey(orders string, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		if os.Remove(filepath.Join(orders, "cut-gateway")) == nil {
			if p, err := os.FindProcess(l.role("gateway")); err == nil {
				p.Kill() // it is started anew
			}
		}
		if os.Remove(filepath.Join(orders, "let-udp")) == nil {
			l.machine.Command(l.T, "nft", "delete table inet test")
		}
	}
}
