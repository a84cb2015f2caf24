package hosted

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
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

// browsed is behind with a Chromium at the technician's machine, from which no
// UDP gets out yet.
type browsed struct {
	*behind
	web.Target
}

func newBrowsed(t *testing.T) *browsed {
	t.Helper()
	b := &browsed{behind: newBehind(t)}
	b.lan.host.Up(t, "lan0", boxPrivate+"/24")
	b.machine.Up(t, "lan0", technician+"/24")
	b.machine.Command(t, "nft", "add table inet test; add chain inet test out { type filter hook output priority 0; }; add rule inet test out meta l4proto udp drop")
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
	var made api.Target
	b.ok(api.Targets, api.TargetNew{Target: session.Target{Name: "shell behind", Kind: session.SSH, Host: nasAddress, Port: 22}, Recording: session.RecordingOff}, &made)
	b.ok(api.Credential, api.CredentialSet{ID: made.ID, User: "root", PrivateKey: string(key)}, nil)
	b.Target = web.Target{URL: "https://" + boxPrivate, ID: strconv.FormatInt(made.ID, 10), Print: b.behind.host, Orders: t.TempDir()}
	at, err := url.Parse("https://" + boxAddress)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range b.jar.Cookies(at) {
		if k.Name == "__Host-gatehouse" {
			b.Session = k.Value
		}
	}
	return b
}

// ok asks the API, which must do it.
func (b *browsed) ok(path string, question, answer any) {
	b.Helper()
	if code, text := b.api(b.from(friend), path, question, answer); code >= 300 {
		b.Fatalf("%s answers %d: %s", path, code, text)
	}
}

// chromium runs a script in the technician's browser, and does what it orders.
func (b *browsed) chromium(script func(testing.TB, web.Target, func(*exec.Cmd) error), orders map[string]func()) {
	b.Helper()
	orders["let-udp"] = sync.OnceFunc(func() { b.machine.Command(b.T, "nft", "delete table inet test") })
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			for name, do := range orders {
				if os.Remove(filepath.Join(b.Orders, name)) == nil {
					do()
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	script(b.T, b.Target, func(cmd *exec.Cmd) error {
		b.machine.Do(b.T, cmd.Start)
		return nil
	})
}

// TestSES4_TerminalInABrowser: a technician's Chromium, a box, and an OpenSSH
// server behind it, each in a network namespace of its own.
func TestSES4_TerminalInABrowser(t *testing.T) {
	b := newBrowsed(t)
	b.chromium(web.Terminal, map[string]func(){"cut-gateway": func() {
		if p, err := os.FindProcess(b.role("gateway")); err == nil {
			p.Kill() // it is started anew
		}
	}})
}

// TestSES7_BrowserIsToldOfTheEnd: the page knows at once, and says why, by
// whatever way it is connected; and it takes nobody for the agent whom the
// grant does not name.
func TestSES7_BrowserIsToldOfTheEnd(t *testing.T) {
	b := newBrowsed(t)
	began := map[string]time.Time{}
	end := func(name string) func() {
		return func() {
			var list api.SessionList
			r, err := b.from(friend).Get("https://" + boxAddress + api.Sessions)
			if err == nil {
				err = decode(r, &list)
			}
			if err != nil {
				t.Error(err)
			}
			began[name] = time.Now()
			for _, s := range list.Sessions {
				if s.State != api.Over {
					b.ok(api.End, api.EndAsk{Session: s.ID}, nil)
				}
			}
		}
	}
	b.chromium(web.TerminalEnds, map[string]func(){
		"end-relay": end("end-relay"), "end-direct": end("end-direct"),
		"lists": func() {
			began["lists"] = time.Now() // what is tried is in effect
			c := b.try(office(friend))
			b.ok("/api/v1/allowlists/keep", map[string]string{"id": c.ID}, nil)
		},
	})
	for name, from := range began {
		text, err := os.ReadFile(filepath.Join(b.Orders, "over-"+name))
		if err != nil {
			t.Fatal(err)
		}
		ms, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		b.figure(t, name, from, time.UnixMilli(ms))
	}
	if len(began) != 3 {
		t.Errorf("%d ends were ordered", len(began))
	}
}

// decode reads an answer of the API.
func decode(r *http.Response, into any) error {
	defer r.Body.Close()
	return json.NewDecoder(r.Body).Decode(into)
}
