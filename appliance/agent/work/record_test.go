package work

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// records makes a session whose grant says what of its recording, and returns
// the key that reads it.
func records(t *testing.T, how session.Recording) (private []byte, change func(*Config)) {
	t.Helper()
	private, public, err := recording.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return private, func(c *Config) {
		c.Grant.Recording, c.Grant.RecordTo, c.Grant.Functions = how, public, right.AllFunctions
	}
}

// played is what the hub has, as text, and whether it was ended in order.
func (b *bench) played(private []byte) (text string, whole bool) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := recording.Open(bytes.NewReader(b.kept), int64(len(b.kept)), private)
	if err != nil {
		b.t.Fatalf("the hub has %d bytes: %v", len(b.kept), err)
	}
	if r.Header.Who != "ada@example.com" || r.Header.Session != b.cfg.Grant.ID.String() {
		b.t.Errorf("header %+v", r.Header)
	}
	for e, err := range r.Events(0) {
		if err != nil {
			b.t.Fatal(err)
		}
		text += string(e.Kind) + e.Text + "\n"
	}
	return text, r.Whole
}

// What the terminal shows is at the hub within seconds, sizes too; what is typed
// without an echo is not in it, nor the sign-in.
func TestSES9_TerminalIsRecorded(t *testing.T) {
	for _, how := range []session.Recording{session.RecordingForced, session.RecordingAllowed} {
		t.Run(string(how), func(t *testing.T) {
			s := startTarget(t, echo)
			private, change := records(t, how)
			b := begin(t, s.address, s.hosts, change)
			e := b.open(wire.Open{Do: wire.Terminal, Width: 90, Height: 20})
			if !e.reply.Recorded {
				t.Error("it does not say that it is recorded")
			}
			e.until("login as: ")
			e.typed("mistyped secret\r")
			e.until("password: ")
			e.typed(password + "\r")
			e.until("ready")
			e.size(100, 30)
			e.typed("canary")
			e.until("<canary>")
			eventually(t, func() bool {
				b.mu.Lock()
				n := len(b.kept)
				b.mu.Unlock()
				if n == 0 {
					return false
				}
				text, whole := b.played(private)
				return strings.Contains(text, "<canary>") && !whole
			})
			// A second screen would be mixed into it.
			if r := b.refused(wire.Open{Do: wire.Exec, Command: "id"}); r.Code != wire.Forced {
				t.Errorf("%s %s", r.Code, r.Text)
			}
			e.typed("exit")
			e.end()
			// After the other: the same recording goes on.
			x := b.open(wire.Open{Do: wire.Exec, Command: "uptime"})
			x.until("ready")
			b.End("enough")
			b.over()
			text, whole := b.played(private)
			if !whole || !strings.Contains(text, "r100x30") || !strings.Contains(text, "mexec: uptime") || strings.Contains(text, "horse") || strings.Contains(text, "login as") || strings.Contains(text, "mistyped") {
				t.Errorf("whole %v: %s", whole, text)
			}
			if left, _ := os.ReadDir(b.cfg.Spool); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// Where it is only allowed, it is made for who asks.
func TestSES9_NotRecordedUnlessAsked(t *testing.T) {
	s := startTarget(t, echo)
	_, change := records(t, session.RecordingAllowed)
	b := begin(t, s.address, s.with, change, func(c *Config) { c.Grant.Functions &^= right.Record })
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	if left, _ := os.ReadDir(b.cfg.Spool); e.reply.Recorded || len(left) != 0 {
		t.Errorf("recorded: %+v, %v", e.reply, left)
	}
}

// A forced recording refuses what the agent cannot see into, and says why.
func TestSES9_ForcedRefusesTheOpaque(t *testing.T) {
	_, change := records(t, session.RecordingForced)
	for do, k := range map[wire.Do]session.Kind{wire.Forward: session.SSH, wire.Web: session.HTTPS} {
		address, reached := nowhere(t)
		b := begin(t, address, kind(k), change)
		if r := b.refused(wire.Open{Do: do}); r.Code != wire.Forced || !strings.Contains(r.Text, "recorded") || reached.Load() {
			t.Errorf("%s: %s %s", do, r.Code, r.Text)
		}
	}
	_, allowed := records(t, session.RecordingAllowed)
	address := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	begin(t, address, allowed).open(wire.Open{Do: wire.Forward})
}

// A forced recording that cannot begin: no terminal, and nothing at the target.
func TestSES9_ForcedThatCannotBegin(t *testing.T) {
	address, reached := nowhere(t)
	_, change := records(t, session.RecordingForced)
	for name, spoil := range map[string]func(*Config){
		"no folder": func(c *Config) { c.Spool = filepath.Join(os.DevNull, "spool") },
		"no room":   func(c *Config) { c.Leave = 1 << 60 },
		"no key":    func(c *Config) { c.Grant.RecordTo = []byte("no key") },
		"there is one": func(c *Config) {
			if err := os.WriteFile(filepath.Join(c.Spool, c.Grant.ID.String()+".recording"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		b := begin(t, address, change, spoil)
		for _, do := range []wire.Do{wire.Terminal, wire.Exec} {
			if r := b.refused(wire.Open{Do: do, Command: "id"}); r.Code != wire.Forced || reached.Load() {
				t.Errorf("%s, %s: %s %s", name, do, r.Code, r.Text)
			}
		}
	}
}

// The disk fills up: the session ends, says why, and what was recorded before is
// whole up to the cut.
func TestSES9_FullDiskEndsTheSession(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("none", mount, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("a small disk needs root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	s := startTarget(t, noise)
	private, change := records(t, session.RecordingForced)
	b := begin(t, s.address, s.with, change, func(c *Config) { c.Spool = mount })
	e := b.open(wire.Open{Do: wire.Terminal})
	ended, _, _ := e.end()
	if ended.Status != -1 || !strings.Contains(ended.Reason, "recording") || !strings.Contains(ended.Reason, "no space") {
		t.Errorf("ended %+v", ended)
	}
	b.over()
	if text, whole := b.played(private); whole || !strings.Contains(text, "line 3 ") {
		t.Errorf("whole %v, %d bytes of text", whole, len(text))
	}
	if got := b.audited("record session", "failed"); len(got) != 1 {
		t.Errorf("the log has %+v", got)
	}
}

// noise prints lines that cannot be compressed.
func noise(ch ssh.Channel, _ string) {
	b := make([]byte, 512)
	for i := 0; ; i++ {
		_, _ = rand.Read(b)
		if _, err := fmt.Fprintf(ch, "line %d %s\r\n", i, base64.StdEncoding.EncodeToString(b)); err != nil {
			return
		}
	}
}

// The hub says that it cannot keep it: a forced recording ends the session, one
// that was wished for does not.
func TestSES9_HubThatCannotKeep(t *testing.T) {
	for _, how := range []session.Recording{session.RecordingForced, session.RecordingAllowed} {
		s := startTarget(t, echo)
		_, change := records(t, how)
		b := begin(t, s.address, s.with, change)
		e := b.open(wire.Open{Do: wire.Terminal})
		e.until("ready")
		b.Kept(attend.Kept{Session: session.ID{9}, Size: 1, Problem: "of another session"})
		b.Kept(attend.Kept{Session: b.cfg.Grant.ID, Problem: "the hub's disk is full"})
		if how == session.RecordingForced {
			if ended, _, _ := e.end(); !strings.Contains(ended.Reason, "the hub's disk is full") {
				t.Errorf("ended %+v", ended)
			}
			continue
		}
		e.typed("on")
		e.until("<on>")
		eventually(t, func() bool { return len(b.audited("record session", "failed")) == 1 })
		if b.Reason() != "" {
			t.Errorf("ended: %s", b.Reason())
		}
	}
}

// The line to the hub is cut for a while, and what was on it is lost: the
// recording is whole all the same.
func TestSES9_LineIsCutMeanwhile(t *testing.T) {
	s := startTarget(t, echo)
	private, change := records(t, session.RecordingForced)
	b := begin(t, s.address, s.with, change)
	b.mu.Lock()
	b.hub = false
	b.mu.Unlock()
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	e.typed("lost on the way")
	e.until("<lost on the way>")
	eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		n := 0
		for _, m := range b.told {
			if m.Chunk != nil {
				n++
			}
		}
		return n >= 1
	})
	b.mu.Lock()
	b.hub = true
	b.mu.Unlock()
	time.Sleep(100 * time.Millisecond)
	b.LineBack()
	e.typed("exit")
	e.end()
	b.End("enough")
	b.over()
	if text, whole := b.played(private); !whole || !strings.Contains(text, "<lost on the way>") {
		t.Errorf("whole %v: %s", whole, text)
	}
}
