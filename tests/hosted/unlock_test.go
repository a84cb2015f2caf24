package hosted

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/keytext"
	"gatehouse/appliance/unlock"
)

// middle relays everything between the tool and a box, under a certificate of
// its own, and keeps what it saw in the clear.
type middle struct {
	*box
	spki [32]byte

	mu   sync.Mutex
	tool bytes.Buffer // what the tool said
}

func (b *box) inTheMiddle(address string) *middle {
	b.Helper()
	var ln net.Listener
	b.host.Do(b.T, func() (err error) {
		ln, err = net.Listen("tcp", address)
		return err
	})
	b.Cleanup(func() { ln.Close() })
	own := certtest.Self(b.T, certtest.Names("127.0.0.1"))
	m := &middle{box: b, spki: sha256.Sum256(own.Leaf.RawSubjectPublicKeyInfo)}
	mine := tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{own}, NextProtos: []string{"http/1.1"}})
	go func() {
		for {
			conn, err := mine.Accept()
			if err != nil {
				return
			}
			go m.relay(conn)
		}
	}()
	return m
}

func (m *middle) relay(conn net.Conn) {
	defer conn.Close()
	raw, err := m.dial(m.Context(), "tcp", "127.0.0.1:443")
	if err != nil {
		return
	}
	box := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	defer box.Close()
	go func() {
		io.Copy(box, io.TeeReader(conn, writer(func(p []byte) {
			m.mu.Lock()
			m.tool.Write(p)
			m.mu.Unlock()
		})))
		box.Close()
	}()
	io.Copy(conn, box)
}

// auditLog is all of it as text.
func (b *box) auditLog() string {
	b.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(b.state, "audit"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return all.String()
}

// saw is what the tool said since it was last asked.
func (m *middle) saw() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.tool.Reset()
	return m.tool.String()
}

// TestKEY8_UnlockThroughAManInTheMiddle is refused before anything is sent, by the
// words; also somebody who was given the wrong words to compare sends what
// opens nothing there. Directly it opens, and the box is what it was.
func TestKEY8_UnlockThroughAManInTheMiddle(t *testing.T) {
	b := newBox(t)
	plain := b.env
	b.env = append(plain, "GATEHOUSE_KEY=the passphrase that is forgotten")
	b.start("unclaimed")
	b.claim()
	ann := b.client()
	b.signIn(ann)
	key, raw := b.makeRecovery(ann)
	was, certificate := b.now(), b.fingerprint("127.0.0.1:443")
	if out, code := b.run("", "unlock", "127.0.0.1", "--words", "any", "--recovery-key", b.file("key", key)); code != 5 {
		t.Errorf("a box that is open: exit %d\n%s", code, out)
	}
	b.stop()

	b.env = append(plain, "GATEHOUSE_KEY=not the passphrase that it was")
	b.start("locked")
	words := b.unlockWords()
	if now := b.fingerprint("127.0.0.1:443"); now == certificate {
		t.Error("a locked box shows its own certificate")
	}
	m := b.inTheMiddle("127.0.0.1:7443")
	secrets := func(saw string) (found []string) {
		groups := strings.Split(key, "-")
		for name, s := range map[string]string{"key": key, "a group": groups[3], "the last group": groups[7], "its bytes": string(raw), "a post": "POST "} {
			if strings.Contains(saw, s) {
				found = append(found, name)
			}
		}
		return found
	}
	file := b.file("key", key)
	out, code := b.run("", "unlock", "127.0.0.1:7443", "--words", words, "--recovery-key", file)
	if code != 7 || !strings.Contains(out, "Nothing was sent") {
		t.Errorf("through a man in the middle the tool ended with %d, want 7:\n%s", code, out)
	}
	saw := m.saw()
	if found := secrets(saw); found != nil || !strings.Contains(saw, "GET /api/v1/unlock") {
		t.Errorf("he saw %q, in:\n%s", found, saw)
	}
	// Somebody reads him the words of his own certificate and the box's key.
	var offer struct{ Key []byte }
	if _, text := b.get(b.client(), "/api/v1/unlock"); json.Unmarshal([]byte(text), &offer) != nil || len(offer.Key) == 0 {
		t.Fatalf("the box says %s", text)
	}
	out, code = b.run("", "unlock", "127.0.0.1:7443", "--words", unlock.Words(m.spki, offer.Key), "--recovery-key", file)
	if code != 3 {
		t.Errorf("with his words it ended with %d, want 3:\n%s", code, out)
	}
	if found := secrets(m.saw()); len(found) != 1 || found[0] != "a post" {
		t.Errorf("with his words he saw %q", found)
	}
	if got := b.now().state; got != "locked" {
		t.Fatalf("what he passed on left the box %s", got)
	}

	for name, c := range map[string]struct {
		code int
		args []string
	}{
		"the key in an argument":   {2, []string{"--words", words, "--recovery-key", key}},
		"the key mistyped":         {2, []string{"--words", words, "--recovery-key", b.file("key", "0"+key[1:])}},
		"nobody to ask":            {2, []string{"--words", words}},
		"both":                     {2, []string{"--words", words, "--recovery-key", file, "--passphrase", file}},
		"the key of another box":   {3, []string{"--words", words, "--recovery-key", b.file("key", keytext.Recovery.Format([32]byte{1, 2, 3}))}},
		"another passphrase":       {3, []string{"--words", words, "--passphrase", b.file("passphrase", "this is not the passphrase")}},
		"words of somewhere else":  {7, []string{"--words", "amber canyon violin drift pencil north", "--recovery-key", file}},
		"no words, nobody to type": {2, []string{"--recovery-key", file}},
	} {
		out, code := b.run("", append([]string{"unlock", "127.0.0.1"}, c.args...)...)
		if code != c.code || strings.Contains(out, key) {
			t.Errorf("%s: exit %d, want %d\n%s", name, code, c.code, out)
		}
	}
	// The box's words stayed the same through all of it.
	out, code = b.run("", "unlock", "127.0.0.1", "--words", words, "--recovery-key", file)
	if code != 0 || !strings.Contains(out, "the one that this machine knows") || strings.Contains(out, key) {
		t.Fatalf("directly: exit %d\n%s\n%s", code, out, b.output())
	}
	if now := b.await("ready"); now.name != was.name || now.fingerprint != was.fingerprint || b.fingerprint("127.0.0.1:443") != certificate {
		t.Errorf("it was %+v, and is %+v", was, now)
	}
	b.signIn(b.client())
	log := b.auditLog()
	for _, want := range []string{`"action":"unlock"`, `"actor":"recovery key"`, `"from":"127.0.0.1"`, `"locked":"unauthenticated"`, `"actor":"passphrase"`, `"error":"this is not the recovery key of this box`} {
		if !strings.Contains(log, want) {
			t.Errorf("what happened while locked is not in the audit log: %s", want)
		}
	}
	if out, code := b.run("", "audit", "verify", filepath.Join(b.state, "audit")); code != 0 {
		t.Errorf("the audit log does not verify: %s", out)
	}
	if out, code := b.run("", "unlock", "127.0.0.1", "--words", words, "--recovery-key", file); code != 5 {
		t.Errorf("once more: exit %d\n%s", code, out)
	}
}

// A service that was started without its passphrase is given it by the tool.
func TestKEY2_HostedBoxIsUnlockedByItsPassphrase(t *testing.T) {
	b := newBox(t)
	plain := b.env
	b.env = append(plain, "GATEHOUSE_KEY=the passphrase of this box")
	b.start("unclaimed")
	b.claim()
	b.stop()
	b.env = plain
	b.start("locked")
	words := b.unlockWords()
	if out, code := b.run("", "unlock", "127.0.0.1", "--words", words, "--recovery-key", b.file("key", keytext.Recovery.Format([32]byte{9}))); code != 5 || !strings.Contains(out, "by its passphrase") {
		t.Errorf("by a recovery key that was never made: exit %d\n%s", code, out)
	}
	if out, code := b.run("the passphrase of this box\n", "unlock", "--words", words, "--passphrase", "-"); code != 0 {
		t.Fatalf("exit %d\n%s\n%s", code, out, b.output())
	}
	b.await("ready")
	b.signIn(b.client())
	b.stop()
	b.start("locked") // it is asked for at each start
}
