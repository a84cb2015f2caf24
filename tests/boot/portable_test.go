package boot

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/image/qemu"
)

// What is exported has this in it, and the network of the machines here.
const (
	exportPhrase = "seven wet stones in a hat"
	boxMoved     = "192.0.2.80"
	hostOutside  = "192.0.2.9"
	settings     = `search = ["moved.example.org"]
[[links]]
name = "eth0"
mode = "static"
addresses = ["` + boxV4 + `/24", "` + boxMoved + `/24"]
`
)

// cabled is a box on a cable, with its owner at the other end.
type cabled struct {
	stage
	lan   *lan
	m     qemu.Machine
	guest *qemu.Guest
	p     *person
	c     *tool
	used  int64 // the last step of the second factor
}

func newCabled(t *testing.T, id string) *cabled {
	t.Helper()
	b := &cabled{stage: stage{disk: newDisk(t), state: t.TempDir()}}
	// The machine's identity, from which its card has its address.
	if err := os.WriteFile(filepath.Join(b.state, "machine-id"), []byte(id+"a17c0de"+strings.Repeat("0", 24)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.lan = newLAN(t, b.stage)
	b.lan.Up(t, "lan", hostOutside+"/24")
	b.lan.serve(t)
	b.m = b.machine(t)
	b.m.Forward, b.m.TapFile = nil, b.lan.tap
	b.guest = start(t, b.m)
	return b
}

// owned is the box once it has an owner: person in front of it, tool signed in.
func (b *cabled) owned(t *testing.T) {
	t.Helper()
	b.line = state(t, b.guest, "unclaimed", "url", "code")
	b.c = newTool(t, boxV4)
	b.c.lan = b.lan
	b.c.claim(b.line["code"])
	state(t, b.guest, "ready", "url")
	b.p = visit(t, boxV4+":443", b.lan.dial(t))
	b.p.signIn()
	b.p.send("/welcome/clock", "action", "keep") // nobody here serves the time, without which there are no certificates
	b.p.factor()
	b.used = onetime.Step(time.Now())
	b.p.lends(b.c)
}

// reached says whether a connection from an address comes to be. What should is
// waited for: a busy machine is slow.
func (b *cabled) reached(t *testing.T, from, to string, should bool) {
	t.Helper()
	wait := 5 * time.Second
	if should {
		wait = time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var c net.Conn
	var err error
	b.lan.Do(t, func() error {
		c, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, "tcp", to+":443")
		return nil
	})
	if err == nil {
		c.Close()
	}
	if (err == nil) != should {
		t.Errorf("from %s to %s: reached %v, should be %v (%v)", from, to, err == nil, should, err)
	}
}

// TestBOX13_ExportEraseImport is the life of a configuration: exported from one
// box, which is erased by request and is somebody else's then, and imported on
// another. People, lists, certificates and network are back there, in the kernel,
// and after a restart; keys are its own.
func TestBOX13_ExportEraseImport(t *testing.T) {
	if !soak() {
		return // two machines and four starts; tests/hosted has the way of the file in each run
	}
	t.Parallel()
	a, b := newCabled(t, "1"), newCabled(t, "2") // both start while one is waited for
	a.owned(t)
	file := func(name, text string) string {
		path := filepath.Join(a.c.config, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("lists/allowlists.toml", "enabled = true\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"console\", \"sites\", \"visitors\"]\n")
	file("lists/office.list", hostV4+"\n")
	for _, line := range [][]string{
		{"target", "add", "nas", "--kind", "ssh", "--address", "192.0.2.200", "--idle", "15"},
		{"target", "credential", "nas", "--user", "root", "--secret", a.c.file("secret", "of the nas 7")},
		{"certificate", "use", "ca", "--wait"},
		{"allowlist", "apply", "--keep", filepath.Join(a.c.config, "lists")},
		{"network", "apply", "--keep", file("network.toml", settings)},
	} {
		a.c.run(append(line, "--box", boxV4)...)
	}
	_, _, root := a.p.open("/certificates/root.pem")
	a.reached(t, hostV4, boxMoved, true)
	a.reached(t, hostOutside, boxV4, false)
	exported, statement := filepath.Join(t.TempDir(), "box.age"), filepath.Join(t.TempDir(), "released.json")
	a.c.run("export", "--box", boxV4, "--passphrase", a.c.file("phrase", exportPhrase), exported)

	// By request, as its owner; another name erases nothing.
	if out, err := a.c.try("erase", "--box", boxV4, "--name", a.line["name"]+"x"); err == nil {
		t.Fatalf("erased under another name: %s", out)
	}
	a.c.run("erase", "--box", boxV4, "--name", a.line["name"], "--statement", statement)
	if out := a.c.run("release-statement", statement); !strings.Contains(out, a.line["name"]) || !strings.Contains(out, "as it was signed") {
		t.Errorf("the statement: %s", out)
	}
	before, factorOfA := a.line, a.p.key
	boots.resets.Add(1)

	b.owned(t)
	b.reached(t, hostOutside, boxV4, true)
	if out, err := b.c.try("import", "--box", boxV4, "--yes", "--passphrase", b.c.file("wrong", exportPhrase+"s"), exported); err == nil || !strings.Contains(err.Error(), "not the right one") {
		t.Errorf("a wrong passphrase: %v %s", err, out)
	}
	out := b.c.run("import", "--box", boxV4, "--yes", "--passphrase", b.c.file("phrase", exportPhrase), "--only", "people,targets,certificates,updates,lists,network", exported)
	if !strings.Contains(out, "Taken: people, ") || !strings.Contains(out, "lists, network") {
		t.Errorf("the import says %s", out)
	}
	b.back(t, factorOfA, root)
	if b.line["name"] == before["name"] || b.line["fingerprint"] == before["fingerprint"] {
		t.Errorf("the other box became the first: %v", b.line)
	}
	b.restartIsTold(t)
	off(t, b.guest)

	// The first is somebody else's by now.
	say(t, a.guest, `gatehouse: state=starting`)
	again := state(t, a.guest, "unclaimed", "url", "code")
	if again["name"] == before["name"] || again["fingerprint"] == before["fingerprint"] || again["fingerprint"] == b.line["fingerprint"] {
		t.Errorf("erased, and it is still the old box: %v", again)
	}
	a.reached(t, hostOutside, boxV4, true)
	a.reached(t, hostV4, boxMoved, false)
	next := newTool(t, boxV4)
	next.lan = a.lan
	next.claim(again["code"])
	state(t, a.guest, "ready", "url")
	if err := a.guest.Kill(); err != nil {
		t.Fatal(err)
	}

	b.guest = start(t, b.m)
	if now := state(t, b.guest, "ready", "url"); now["name"] != b.line["name"] {
		t.Errorf("after a restart it is %v", now)
	}
	b.back(t, factorOfA, root)
	b.c.run("clock", "show", "--box", boxV4) // which pinned the key of the claim
	off(t, b.guest)
}

// back looks for what was exported: people sign in by their own factor, targets
// and the own CA are there, lists and network are in force.
func (b *cabled) back(t *testing.T, factor []byte, root string) {
	t.Helper()
	for _, at := range []string{boxV4, boxMoved} {
		b.reached(t, hostV4, at, true)
		b.reached(t, hostOutside, at, false)
	}
	b.p = visit(t, boxMoved+":443", b.lan.dial(t))
	for onetime.Step(time.Now()) <= b.used { // a code counts once, wherever it did
		time.Sleep(time.Second)
	}
	b.p.returns(factor)
	b.used = onetime.Step(time.Now())
	for path, want := range map[string]string{
		"/api/v1/targets":        `"credential":"password"`,
		"/api/v1/network":        "moved.example.org",
		"/certificates/root.pem": root,
	} {
		if status, _, body := b.p.open(path); status != 200 || !strings.Contains(body, want) || want == "" {
			t.Errorf("%s answers %d, without %.60s:\n%s", path, status, want, body)
		}
	}
}

// restartIsTold plans a restart and has a session begin: it is told so at once.
func (b *cabled) restartIsTold(t *testing.T) {
	t.Helper()
	if status, at, body := b.p.send("/system/restart", "when", "later"); at != "/system" {
		t.Fatalf("planning a restart led to %d %s:\n%s", status, at, body)
	}
	var text string
	for late := time.Now().Add(2 * time.Minute); !strings.Contains(text, "[gatehouse: the box restarts at ") && time.Now().Before(late); {
		text = b.opens(t) // the agent may not be there yet
	}
	if !strings.Contains(text, "this session ends then]\n") {
		t.Errorf("a session is told %q", text)
	}
	if _, at, body := b.p.send("/system/restart", "when", "never"); at != "/system" {
		t.Errorf("taking it back led to %s:\n%s", at, body)
	}
}

// opens begins a session with the box itself, and leaves it once something was said.
func (b *cabled) opens(t *testing.T) string {
	t.Helper()
	cmd := b.c.command("connect", b.line["name"], "--box", boxV4)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.c.there(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	first, err := bufio.NewReader(said).ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	in.Close()
	io.Copy(io.Discard, said)
	if err := cmd.Wait(); err != nil {
		t.Logf("the session: %v", err) // it may have been refused; what was said counts
	}
	return first
}
