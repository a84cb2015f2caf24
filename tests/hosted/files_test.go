package hosted

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/control"
)

const oneOffice = "enabled = true\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"console\"]\n"

// filed is a box whose lists are files of the host.
type filed struct {
	*lan
	dir string
}

func newFiled(t *testing.T) *filed {
	t.Helper()
	f := &filed{lan: newLAN(t), dir: t.TempDir()}
	f.args = append(f.args, "--lists", f.dir)
	f.put("allowlists.toml", oneOffice)
	f.put("office.list", friend+"\n127.0.0.1\n")
	return f
}

// put replaces a file the way that is documented.
func (f *filed) put(name, text string) {
	f.Helper()
	next := filepath.Join(f.dir, ".next")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(f.dir, name)); err != nil {
		f.Fatal(err)
	}
}

func (f *filed) shown() (l control.Lists) {
	f.Helper()
	_, text := f.open(f.from(friend), "/api/v1/allowlists")
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		f.Fatalf("%v: %s", err, text)
	}
	return l
}

// dropped says whether a new connection is not answered, without the patience
// of a test that waits for an answer.
func (l *lan) dropped(address string) bool {
	conn, err := l.dialFrom(address, 200*time.Millisecond)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

// refused waits for the refusal, and sees that nothing changed.
func (f *filed) refused(what, file string, line int, reason string) {
	f.Helper()
	var l control.Lists
	f.eventually("the refusal of "+what, func() bool {
		l = f.shown()
		return len(l.Problems) > 0 && l.Problems[0].File == file && l.Problems[0].Line == line && strings.Contains(l.Problems[0].Reason, reason)
	})
	if !l.Enabled || l.Ranges != 2 || len(l.Lists) != 1 || !f.dropped(stranger) || !f.reaches(friend) {
		f.Errorf("%s: the last good lists do not stay: %+v", what, l)
	}
	if !strings.Contains(f.output(), reason) {
		f.Errorf("%s: the log does not say %q", what, reason)
	}
}

func (f *filed) accepted(what string) {
	f.Helper()
	f.eventually("good files after "+what, func() bool { return len(f.shown().Problems) == 0 })
}

// TestNET2_FilesOfTheHost is the whole of operators' files: in force from the
// start, followed, refused whole with file, line and reason, kept across
// restarts, and edited nowhere else.
func TestNET2_FilesOfTheHost(t *testing.T) {
	f := newFiled(t)
	f.own()
	if f.reaches(stranger) || !f.reaches(friend) {
		t.Fatal("the files are not in force after the claim")
	}
	f.put("office.list", friend+"\n127.0.0.1\n"+stranger+"\n")
	wrote := time.Now()
	f.eventually("a change in force", func() bool { return !f.dropped(stranger) })
	t.Logf("a change of a file was in force within %v", time.Since(wrote).Round(10*time.Millisecond))
	f.put("office.list", friend+"\n127.0.0.1\n")
	f.eventually("a removal in force", func() bool { return f.dropped(stranger) })

	var many strings.Builder
	for i := range 100_000 { // none touches the next
		fmt.Fprintf(&many, "%d.%d.%d.0/25\n", 11+i>>16, i>>8&255, i&255)
	}
	many.WriteString(friend + "\n127.0.0.1\n" + stranger + "\n")
	f.put("office.list", many.String())
	wrote = time.Now()
	f.eventually("a hundred thousand ranges in force", func() bool { return !f.dropped(stranger) })
	t.Logf("a file of 100,000 ranges was in force within %v", time.Since(wrote).Round(10*time.Millisecond))
	f.put("office.list", friend+"\n127.0.0.1\n")
	f.eventually("a small file again", func() bool { return f.dropped(stranger) && f.shown().Ranges == 2 })

	path := func(name string) string { return filepath.Join(f.dir, name) }
	good := friend + "\n127.0.0.1\n"
	for _, c := range []struct {
		what   string
		spoil  func()
		mend   func()
		file   string
		line   int
		reason string
	}{
		{"a bad line", func() { f.put("office.list", good+"10.0.0.0/33\n") }, nil, "office.list", 3, "a prefix for IPv4 is a number from 0 to 32"},
		{"an empty file", func() { f.put("office.list", "") }, nil, "allowlists.toml", 0, "nobody could reach the box"},
		{"an empty index", func() { f.put("allowlists.toml", "") }, nil, "allowlists.toml", 0, "does not say enabled"},
		{"an empty index and no lists", func() { os.Remove(path("office.list")); f.put("allowlists.toml", "# nothing\n") }, nil, "allowlists.toml", 0, "does not say enabled"},
		{"everyone without the flag", func() { f.put("office.list", good+"0.0.0.0/0\n") }, nil, "office.list", 3, "allow_all"},
		{"10 MB of noise", func() { f.put("office.list", strings.Repeat("noise!\n", 10<<20/7)) }, nil, "office.list", 1, "this is not an address"},
		{"a bad index", func() { f.put("allowlists.toml", "enabled = true\ncolour = 1\n") }, nil, "allowlists.toml", 2, "there is no such setting"},
		{"no index", func() { os.Remove(path("allowlists.toml")) }, nil, "allowlists.toml", 0, "the file is missing"},
		{"half a file", func() { f.put("office.list", friend+"\n127.0.") }, nil, "office.list", 2, "this is not an address"},
		{"a thousand files", func() {
			for i := range 1000 {
				f.put(fmt.Sprintf("l%03d.list", i), stranger+"\n")
			}
		}, func() {
			for i := range 1000 {
				os.Remove(path(fmt.Sprintf("l%03d.list", i)))
			}
		}, "l064.list", 0, "the limit is 64"},
		{"a link", func() { os.Symlink("/etc/hostname", path("x.list")) }, func() { os.Remove(path("x.list")) }, "x.list", 0, "a link"},
		{"a file for everybody to write", func() { os.Chmod(path("office.list"), 0o666) }, nil, "office.list", 0, "every user of this host"},
	} {
		c.spoil()
		f.refused(c.what, c.file, c.line, c.reason)
		if c.mend != nil {
			c.mend()
		}
		f.put("allowlists.toml", oneOffice)
		f.put("office.list", good)
		f.accepted(c.what)
	}
	f.growing(path("office.list"), good)
	f.storm(good)

	f.put("office.list", "10.0.0.0/33\n")
	f.refused("a bad file before a restart", "office.list", 1, "from 0 to 32")
	f.kill()
	f.start("ready")
	f.refused("a bad file after a power cut", "office.list", 1, "from 0 to 32")
	f.notEdited()
}

// growing writes a file in place, slowly: whatever is read of it meanwhile, it
// never lets in or cuts off anyone for longer than it is half there, and in the
// end it is in force. The parts end within a line, so that each is refused.
func (f *filed) growing(path, good string) {
	f.Helper()
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer w.Close()
	for _, part := range []string{good + "192.", "0.2.", "5-", "192.0.2"} {
		if _, err := w.WriteString(part); err != nil {
			f.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // longer than the watch waits for silence
		if !f.reaches(friend) || !f.dropped(stranger) {
			f.Errorf("half a file (… %q) is in force", part)
		}
	}
	f.refused("a file that grows", "office.list", 3, "this is not an address")
	if _, err := w.WriteString(".9\n"); err != nil {
		f.Fatal(err)
	}
	f.eventually("the whole file", func() bool { l := f.shown(); return len(l.Problems) == 0 && l.Ranges == 3 })
	f.put("office.list", good)
	f.eventually("the file of before", func() bool { return f.shown().Ranges == 2 })
}

// storm renames good and bad files over each other, thousands of times: bad
// ones are never in force, and the last good one is in the end.
func (f *filed) storm(good string) {
	f.Helper()
	for i := range 3000 {
		f.put("office.list", []string{good, good + "10.0.0.0/33\n", "\x00\x01", good + "0.0.0.0/0\n"}[i%4])
		if i%500 == 0 && (!f.reaches(friend) || !f.dropped(stranger)) {
			f.Errorf("in a storm of renames, after %d: a bad file is in force", i)
		}
	}
	f.put("office.list", good)
	f.accepted("a storm of renames")
	if l := f.shown(); l.Ranges != 2 || !f.dropped(stranger) || !f.reaches(friend) {
		f.Errorf("after the storm: %+v", l)
	}
}

// notEdited: page, API and tool refuse edits with the same reason.
func (f *filed) notEdited() {
	f.Helper()
	reason := "files of the host: change them there, in " + f.dir
	doc := map[string]any{"document": map[string]any{"enabled": false}}
	if code, text := f.api(f.from(friend), "/api/v1/allowlists/try", doc, nil); code != 403 || !strings.Contains(text, reason) {
		f.Errorf("API: %d %s", code, text)
	}
	if _, page := f.open(f.from(friend), "/allowlists"); !strings.Contains(page, "These lists are files of the host") || !strings.Contains(page, "office.list, line 1") {
		f.Errorf("the page does not say it:\n%s", page)
	}
	list := filepath.Join(f.TempDir(), "office.list")
	if err := os.WriteFile(list, []byte(stranger+"\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	step := onetime.Step(time.Now()) + 1 // not used yet, and taken early
	who := []string{"--email", "ann@example.com", "--password", f.file("password", password), "--code", f.file("code", onetime.Code(f.secret, step))}
	if out, code := f.run("", append([]string{"allowlist", "apply", list, "--keep"}, who...)...); code == 0 || !strings.Contains(out, reason) {
		f.Errorf("tool: %d %s", code, out)
	}
}

// status asks over a new connection, as a stranger to the console.
func (l *lan) status(address string) bool {
	raw, err := l.dialFrom(address, 1500*time.Millisecond)
	if err != nil {
		return false
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET /api/v1/status HTTP/1.1\r\nHost: "+boxAddress+"\r\nConnection: close\r\n\r\n"); err != nil {
		return false
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == 200 || r.StatusCode == 403
}

// TestNET2_ListsWithoutTheKernel: a hosted Gatehouse that may not filter in the
// kernel judges sources itself, from end to end, and says so; as root without
// the capability, as in a container, and as a common user.
func TestNET2_ListsWithoutTheKernel(t *testing.T) {
	for name, wrap := range map[string][]string{
		"root":        {"setpriv", "--bounding-set=-net_admin"},
		"common user": {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiled(t)
			if err := os.Chown(f.state, 65534, 65534); err != nil {
				t.Fatal(err)
			}
			f.wrap = wrap
			f.host.Sysctl(t, "net/ipv4/ip_unprivileged_port_start", "0")
			f.judgesItself()
		})
	}
}

func (f *filed) judgesItself() {
	const far = "203.0.113.9"
	f.machine.Up(f.T, "lan0", far+"/32")
	f.host.Route(f.T, "203.0.113.0/24", friend, 0)
	f.put("office.list", "10.0.0.0/33\n") // never good: own networks alone
	f.start("unclaimed")
	f.claim()
	f.eventually("own networks, while no good list was ever there", func() bool { return f.status(friend) && !f.status(far) })

	f.put("office.list", friend+"\n"+far+"\n")
	f.eventually("the list in force", func() bool { return f.status(far) && f.status(friend) && !f.status(stranger) })
	// What the far one holds open when it is taken off: silent, and in the console.
	var ends []chan time.Time
	for _, protocols := range [][]string{nil, {"h2"}, {"http/1.1"}} {
		raw, err := f.dialFrom(far, patience)
		if err != nil {
			f.Fatal(err)
		}
		defer raw.Close()
		if protocols != nil {
			if err := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}).HandshakeContext(f.Context()); err != nil {
				f.Fatal(err)
			}
		}
		ends = append(ends, endsSoon(raw))
	}
	f.put("office.list", friend+"\n")
	f.eventually("the removal", func() bool { return !f.status(far) && f.status(friend) })
	for i, end := range ends {
		select {
		case <-end:
		case <-time.After(patience):
			f.Errorf("NET4: connection %d of a removed source lives on", i)
		}
	}
	f.kill()
	f.start("ready")
	f.eventually("the same after a power cut", func() bool { return f.status(friend) && !f.status(far) && !f.status(stranger) })
	if out := f.output(); !strings.Contains(out, "not filtered in the kernel") {
		f.Errorf("the log does not say that it is not in the kernel:\n%s", out)
	}
	if rules := f.host.Command(f.T, "nft", "list", "ruleset"); rules != "" {
		f.Errorf("there are rules in the kernel:\n%s", rules)
	}
}
