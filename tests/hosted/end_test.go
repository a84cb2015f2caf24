package hosted

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/session/api"
)

// deadWithin is what SES7 promises for both ends. The test allows a busy
// machine more, and says what it saw.
const (
	deadWithin = time.Second
	busy       = 4 * time.Second
)

// targeted is behind with ann signed in and the machine declared, its key pinned.
func targeted(t *testing.T, recording string) *behind {
	t.Helper()
	b := newBehind(t)
	b.login()
	b.good("target", "add", "nas", "--kind", "ssh", "--address", nasAddress, "--recording", recording)
	b.good("target", "credential", "nas", "--user", "root", "--key", "file:"+b.key)
	b.good("exec", "nas", "--host-key", b.host, "--", "true")
	return b
}

// inSession is a tool at work.
type inSession struct {
	cmd   *exec.Cmd
	out   *bufio.Reader
	diag  bytes.Buffer
	ended chan time.Time
}

// begin starts one, and returns when its command at the target has said something.
// It ends with its input: a server does not end what has no terminal.
func (b *behind) begin(args ...string) *inSession {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*patience)
	b.Cleanup(cancel)
	s := &inSession{cmd: b.before(ctx, b.toolPath(), args...), ended: make(chan time.Time, 1)}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := s.cmd.StdinPipe() // nothing is typed, and it does not end
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close() })
	s.out, s.cmd.Stderr = bufio.NewReader(out), &s.diag
	b.machine.Do(b.T, s.cmd.Start)
	if line, err := s.out.ReadString('\n'); err != nil {
		s.cmd.Wait()
		b.Fatalf("gatehouse %s: %q, %v\n%s\n%s", strings.Join(args, " "), line, err, &s.diag, b.output())
	}
	go func() {
		for {
			if _, err := s.out.ReadByte(); err != nil {
				break
			}
		}
		s.cmd.Wait()
		s.ended <- time.Now()
	}()
	return s
}

// alive is how many commands of the test run at the target.
func (b *behind) alive(mark string) int {
	out, err := exec.Command("pgrep", "-cf", mark).Output()
	if err != nil && len(out) == 0 {
		b.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// TestSES7_DeadAtBothEnds: whoever may end a session does, and it is dead for
// the technician and at the target, with the reason said to both.
func TestSES7_DeadAtBothEnds(t *testing.T) {
	b := targeted(t, "allowed")
	number := 4000
	for name, c := range map[string]struct {
		end    func()
		reason string
		args   []string
	}{
		"the owner's end":           {func() { b.good("sessions", "end", b.live()) }, "ended by the technician", nil},
		"through the gateway alone": {func() { b.good("sessions", "end", b.live()) }, "ended by the technician", []string{"--no-direct"}},
		"another target":            {func() { b.good("target", "change", "nas", "--address", "198.51.100.11") }, "the target was changed", nil},
	} {
		t.Run(name, func(t *testing.T) {
			number++
			mark := fmt.Sprintf("until-its-input-ends-%d", number)
			args := append(append([]string{"exec", "nas", "--host-key", b.host}, c.args...), "--", "echo begun; exec sh -c 'read x' "+mark)
			s := b.begin(args...)
			b.eventually("the command", func() bool { return b.alive(mark) > 0 })
			if c.args == nil {
				b.eventually("a way without the gateway", func() bool { return strings.Contains(b.good("sessions", "list"), " tcp ") })
			}
			start := time.Now()
			c.end()
			told := time.Now()
			select {
			case at := <-s.ended:
				b.figure(t, "the technician's end", start, at)
			case <-time.After(patience):
				t.Fatalf("the tool goes on\n%s", b.output())
			}
			if code := s.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(s.diag.String(), c.reason) {
				t.Errorf("the tool ends with %d and says %q, want %q", code, s.diag.String(), c.reason)
			}
			b.eventually("the end at the target", func() bool { return b.alive(mark) == 0 })
			b.figure(t, "the target's end", told, time.Now())
			if name == "another target" {
				b.good("target", "change", "nas", "--address", nasAddress)
				b.good("target", "credential", "nas", "--user", "root", "--key", "file:"+b.key)
			}
		})
	}
	t.Run("signing out", b.signedOut)
	t.Run("the allowlists", b.cutByLists)
	b.ownLog()
}

// figure says how long it took; more than a busy machine explains is a failure.
func (b *behind) figure(t *testing.T, what string, from, to time.Time) {
	t.Helper()
	took := to.Sub(from)
	t.Logf("%s: %s (promised: %s)", what, took.Round(time.Millisecond), deadWithin)
	if took > busy {
		t.Errorf("%s took %s", what, took)
	}
}

// live is the id of the session that is.
func (b *behind) live() string {
	b.Helper()
	for line := range strings.Lines(b.good("sessions", "list")) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "live" {
			return f[0]
		}
	}
	b.Fatal("no session is live")
	return ""
}

// signedOut: nothing is left of who signs out, by whichever program.
func (b *behind) signedOut(t *testing.T) {
	mark := "until-its-input-ends-6000"
	s := b.begin("exec", "nas", "--host-key", b.host, "--", "echo begun; exec sh -c 'read x' "+mark)
	b.eventually("the command", func() bool { return b.alive(mark) > 0 })
	start := time.Now()
	b.good("logout", boxAddress)
	select {
	case at := <-s.ended:
		b.figure(t, "the technician's end", start, at)
	case <-time.After(patience):
		t.Fatalf("the tool goes on\n%s", b.output())
	}
	b.eventually("the end at the target", func() bool { return b.alive(mark) == 0 })
	if !strings.Contains(s.diag.String(), "not signed in any more") {
		t.Errorf("the tool says %q", s.diag.String())
	}
	b.again()
}

// again signs ann in once more, with the next code.
func (b *behind) again() {
	b.Helper()
	b.good("login", boxAddress, "--email", "ann@example.com", "--password", b.file("password", password), "--code", b.file("code", onetime.Code(b.secret, onetime.Step(time.Now())+1)))
}

// cutByLists: a direct way too, since its ends are told.
func (b *behind) cutByLists(t *testing.T) {
	mark := "until-its-input-ends-5000"
	s := b.begin("exec", "nas", "--host-key", b.host, "--", "echo begun; exec sh -c 'read x' "+mark)
	b.eventually("a way without the gateway", func() bool { return strings.Contains(b.good("sessions", "list"), " tcp ") })
	start := time.Now()
	// Ann's machine has two addresses; the list is for the other one.
	code, text := b.api(b.from(stranger), "/api/v1/allowlists/try", map[string]any{"document": map[string]any{"enabled": true, "lists": []list{office(stranger)}}}, nil)
	if code != 200 {
		t.Fatalf("trying lists answers %d %s", code, text)
	}
	select {
	case at := <-s.ended:
		t.Logf("from the request about the lists to the end: %s", at.Sub(start).Round(time.Millisecond))
	case <-time.After(patience):
		t.Fatalf("the tool goes on\n%s", b.output())
	}
	b.eventually("the end at the target", func() bool { return b.alive(mark) == 0 })
	if !strings.Contains(s.diag.String(), "allowlist") {
		t.Errorf("the tool says %q", s.diag.String())
	}
}

// ownLog: the box's own log has who began what, where, and why it ended.
func (b *behind) ownLog() {
	b.Helper()
	if out, code := b.run("", "audit", "verify", filepath.Join(b.state, "audit")); code != 0 {
		b.Errorf("audit verify ends with %d: %s", code, out)
	}
	files, err := filepath.Glob(filepath.Join(b.state, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		b.Fatalf("no audit log: %v", err)
	}
	var text string
	for _, f := range files {
		more, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		text += string(more)
	}
	for _, want := range []string{`"action":"open session"`, `"action":"start session"`, `"action":"open function"`, `"action":"end session"`, `"reason":"ended by the technician"`, `"technician":"ann@example.com"`, `"reason":"no allowlist admits`} {
		if !strings.Contains(text, want) {
			b.Errorf("the log has no %s", want)
		}
	}
}

// TestSES1_RolesKilledInTurn: the gateway and the console may go, the bytes
// arrive all the same; with the agent the session ends and says so. What was
// recorded is whole up to the cut, and the audit log verifies.
func TestSES1_RolesKilledInTurn(t *testing.T) {
	b := targeted(t, "allowed")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	count := "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.02; done"
	for _, way := range [][]string{nil, {"--no-direct"}} {
		cmd := b.before(ctx, b.toolPath(), append(append([]string{"exec", "nas"}, way...), "--", count)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var diag bytes.Buffer
		cmd.Stderr = &diag
		b.machine.Do(t, cmd.Start)
		lines := bufio.NewScanner(out)
		for i := range 300 {
			if !lines.Scan() || lines.Text() != strconv.Itoa(i) {
				cmd.Wait()
				t.Fatalf("%v: line %d is %q\n%s\n%s", way, i, lines.Text(), &diag, b.output())
			}
			switch i {
			case 50, 200:
				b.killRole("gateway")
			case 125:
				b.killRole("console")
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", way, err, &diag)
		}
	}
	b.await("ready")

	s := b.begin("exec", "nas", "--record", "--", "echo begun to be recorded; exec sh -c 'read x'")
	b.eventually("a part of the recording on its disk", func() bool {
		files, err := filepath.Glob(filepath.Join(b.state, "agent", "recordings", "*"))
		return err == nil && len(files) > 0 && size(files[0]) > 1500
	})
	b.killRole("agent")
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatalf("without the agent the tool goes on\n%s", b.output())
	}
	if code := s.cmd.ProcessState.ExitCode(); code == 0 || strings.TrimSpace(s.diag.String()) == "" {
		t.Errorf("the tool ends with %d and says %q", code, s.diag.String())
	}
	b.eventually("the end in the list", func() bool {
		return !strings.Contains(b.good("sessions", "list"), " live ")
	})
	b.eventually("the recording at the hub", func() bool { return strings.Contains(b.good("record", "list"), "nas") })
	var list api.RecordingList
	if err := json.Unmarshal([]byte(b.good("record", "list", "--json")), &list); err != nil || len(list.Recordings) != 1 || list.Recordings[0].Whole || list.Recordings[0].Problem != "" {
		t.Fatalf("recordings: %+v, %v", list, err)
	}
	if text := b.good("record", "export", list.Recordings[0].Session.String()); !strings.Contains(text, "begun to be recorded") {
		t.Errorf("the recording has: %s", text)
	}
	b.eventually("a new session", func() bool { _, code := b.tool("exec", "nas", "--", "true"); return code == 0 })
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// killRole ends a role as a crash does.
func (b *behind) killRole(name string) {
	b.Helper()
	pid := b.role(name)
	if pid == 0 {
		b.Fatalf("there is no %s", name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		b.Fatal(err)
	}
	b.eventually("another "+name, func() bool { now := b.role(name); return now != 0 && now != pid })
}
