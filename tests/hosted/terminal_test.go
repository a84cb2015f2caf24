package hosted

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/tests/netns"
	"gatehouse/tests/web"
)

// Addresses of a box that stands between the technician and a machine. They
// are private ones: Chromium refuses those on port 443 where others would do.
const (
	boxPrivate  = "10.77.0.1"
	technician  = "10.77.0.2"
	boxBehind   = "10.78.0.1"
	machineHere = "10.78.0.2"
)

// openSSH is an OpenSSH server on a machine behind the box; it gives the key
// that lets root in.
func openSSH(t *testing.T, h *netns.Host, address string) []byte {
	t.Helper()
	dir := t.TempDir()
	pair := func(name string) ([]byte, []byte) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		block, err := ssh.MarshalPrivateKey(key, name)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(signer.PublicKey())
	}
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	host, _ := pair("host")
	user, authorized := pair("user")
	config := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n",
		address, file("host", host), file("keys", authorized))
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // its service makes it elsewhere
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", file("config", []byte(config)))
	var log bytes.Buffer
	cmd.Stderr = &log
	h.Do(t, cmd.Start)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd says:\n%s", log.String())
		}
	})
	return user
}

// TestSES4_TerminalInABrowser: a technician's Chromium, a box, and an OpenSSH
// server behind it, each in a network namespace of its own.
func TestSES4_TerminalInABrowser(t *testing.T) {
	l := newLAN(t)
	machine := netns.New(t, "behind")
	netns.Connect(t, l.host, "lan1", machine, "lan0")
	l.host.Up(t, "lan1", boxBehind+"/24")
	machine.Up(t, "lan0", machineHere+"/24")
	l.host.Up(t, "lan0", boxPrivate+"/24")
	l.machine.Up(t, "lan0", technician+"/24")
	key := openSSH(t, machine, machineHere)
	l.own()
	c := l.from(friend)
	c.Timeout = patience
	var made api.Target
	l.ok(c, api.Targets, api.TargetNew{Target: session.Target{Name: "shell behind", Kind: session.SSH, Host: machineHere, Port: 22}, Recording: session.RecordingOff}, &made)
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
	web.Terminal(t, "https://"+boxPrivate, cookie, strconv.FormatInt(made.ID, 10), orders, func(cmd *exec.Cmd) error {
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
