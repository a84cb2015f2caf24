package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// bed is a running Supervisor whose roles are this test binary.
type bed struct {
	*Supervisor
	t    *testing.T
	end  func() error // ends the Supervisor alone
	mu   sync.Mutex
	out  []string
	logs strings.Builder
}

func (b *bed) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logs.Write(p)
}

func (b *bed) log() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logs.String()
}

func (b *bed) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.out)
}

// plain is a role without a uid of its own and with no folder.
func plain(name control.Role, do string) Spec {
	return Spec{
		Role: name, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), program: "/proc/self/exe",
		Env:     []string{"HELPER=" + do, control.EnvControl + "=/nowhere"},
		Confine: Confinement{Role: name, Families: []string{"AF_UNIX", "AF_INET"}},
	}
}

// start runs specs with short times; change may alter them.
func start(t *testing.T, c Config, change func(*Supervisor)) *bed {
	t.Helper()
	b := &bed{t: t}
	log := slog.New(slog.NewTextHandler(b, nil))
	c.Log, c.Reaper = log, NewReaper(log)
	if c.Heartbeat == 0 {
		c.Heartbeat = time.Hour
	}
	c.Output = func(role control.Role, line string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.out = append(b.out, string(role)+": "+line)
	}
	var err error
	if b.Supervisor, err = New(c); err != nil {
		t.Fatal(err)
	}
	b.timing.backoffMin, b.timing.backoffMax, b.timing.term = 10*time.Millisecond, 50*time.Millisecond, 300*time.Millisecond
	if change != nil {
		change(b.Supervisor)
	}
	reaping, stopReaper := context.WithCancel(context.Background())
	running, stop := context.WithCancel(context.Background())
	reaped, ran := make(chan error, 1), make(chan error, 1)
	go func() { reaped <- c.Reaper.Run(reaping) }()
	go func() { ran <- b.Run(running) }()
	b.end = sync.OnceValue(func() error { stop(); return <-ran })
	t.Cleanup(func() {
		if err := b.end(); !errors.Is(err, context.Canceled) {
			t.Errorf("Supervisor.Run = %v, want the end of its context", err)
		}
		stopReaper()
		if err := <-reaped; !errors.Is(err, context.Canceled) {
			t.Errorf("Reaper.Run = %v, want the end of its context", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s\noutput:\n%s", b.log(), strings.Join(b.lines(), "\n"))
		}
	})
	return b
}

// wait waits until ok, for at most a generous while.
func (b *bed) wait(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("gave up waiting until %s; status %+v", what, b.Status())
		}
	}
}

func (b *bed) status(name control.Role) control.RoleStatus {
	for _, s := range b.Status() {
		if s.Name == name {
			return s
		}
	}
	b.t.Fatalf("no role %s in the status", name)
	return control.RoleStatus{}
}

// ready waits for the nth incarnation to print "ready" and gives its pid.
func (b *bed) ready(name control.Role, n int) int {
	b.t.Helper()
	b.wait(fmt.Sprintf("%s is ready for the %d. time", name, n), func() bool {
		got := 0
		for _, l := range b.lines() {
			if l == string(name)+": ready" {
				got++
			}
		}
		return got >= n && b.status(name).State == stateRunning
	})
	return b.status(name).PID
}

func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func TestNewRefusesWhatIsMissing(t *testing.T) {
	for _, test := range []struct {
		name string
		spec Spec
		want string
	}{
		{"file", Spec{Role: control.Gateway, Files: []string{control.FileHTTPS}}, `no file "https"`},
		{"capability", Spec{Role: control.Gateway, Caps: []string{"CAP_SYS_ADMIN"}}, `no capability "CAP_SYS_ADMIN"`},
	} {
		if _, err := New(Config{Specs: []Spec{test.spec}}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: New = %v, want %q", test.name, err, test.want)
		}
	}
}

func TestIdentifyNeedsPidAndUid(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}}, nil)
	pid, uid := b.ready(control.Agent, 1), uint32(os.Getuid())
	if r, ok := b.Identify(pid, uid); !ok || r != control.Agent {
		t.Errorf("Identify(its pid, its uid) = %q, %v", r, ok)
	}
	if r, ok := b.Identify(pid, uid+1); ok {
		t.Errorf("another uid was taken for %s", r)
	}
	if r, ok := b.Identify(os.Getpid(), uid); ok {
		t.Errorf("another pid was taken for %s", r)
	}
	if err := b.Stop(control.Agent); err != nil {
		t.Fatal(err)
	}
	b.wait("it is finished", func() bool { return b.status(control.Agent).State == stateFinished })
	if r, ok := b.Identify(pid, uid); ok {
		t.Errorf("a process that has ended was taken for %s", r)
	}
}

func TestExitCodeContract(t *testing.T) {
	b := start(t, Config{Specs: []Spec{
		plain("finished", "exit:0"), plain("refused", "exit:125"), plain("failed", "exit:1"),
	}}, nil)
	b.wait("the failing one was started four times", func() bool { return b.status("failed").Restarts >= 3 })
	for name, want := range map[control.Role]string{"finished": "finished", "refused": "exit 125"} {
		b.wait(string(name)+" has ended", func() bool { return b.status(name).LastEnd != "" })
		st := b.status(name)
		if st.State != stateFinished || st.Restarts != 0 || !strings.Contains(st.LastEnd, want) {
			t.Errorf("%s: %+v, want finished, no restart, %q", name, st, want)
		}
	}
	if st := b.status("failed"); st.LastEnd != "ended with exit code 1" {
		t.Errorf("failed: %+v", st)
	}
}

func TestBOX12_KilledRoleComesBackAndOthersStay(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Gateway, "sleep"), plain(control.Console, "sleep")}}, nil)
	victim, other := b.ready(control.Gateway, 1), b.ready(control.Console, 1)
	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := b.ready(control.Gateway, 2)
	st := b.status(control.Gateway)
	if again == victim || st.Restarts != 1 || st.LastEnd != "killed by SIGKILL" {
		t.Errorf("after kill -9: %+v, was pid %d", st, victim)
	}
	if b.status(control.Console).PID != other {
		t.Error("the other role did not stay")
	}
}

func TestBOX12_FrozenRoleIsKilledAndShown(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}, Heartbeat: 100 * time.Millisecond}, func(s *Supervisor) {
		s.timing.grace, s.timing.backoffMin, s.timing.backoffMax = time.Hour, 400*time.Millisecond, time.Second
	})
	first := b.ready(control.Agent, 1)
	alive, dead := make(chan struct{}), make(chan struct{})
	go func() { // the role's heartbeat
		defer close(dead)
		for {
			b.Alive(control.Agent)
			select {
			case <-alive:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	time.Sleep(500 * time.Millisecond)
	if st := b.status(control.Agent); st.PID != first {
		t.Fatalf("a role that shows signs of life was restarted: %+v", st)
	}
	if err := unix.Kill(first, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	close(alive)
	<-dead
	b.wait("it is shown as frozen", func() bool { return b.status(control.Agent).State == stateFrozen })
	if again := b.ready(control.Agent, 2); again == first || !gone(first) {
		t.Errorf("the stopped process %d is still there; now %d", first, again)
	}
	if st := b.status(control.Agent); !strings.Contains(st.LastEnd, "frozen") {
		t.Errorf("after: %+v", st)
	}
}

func TestRoleThatNeverCallsIsFrozen(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}, Heartbeat: 50 * time.Millisecond}, nil)
	b.wait("it was restarted", func() bool { return b.status(control.Agent).Restarts > 0 })
}

func TestStopStartRestart(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}}, nil)
	first := b.ready(control.Agent, 1)
	if err := b.Stop("nobody"); err == nil {
		t.Error("a role that does not exist was stopped")
	}
	if err := b.Restart(control.Agent); err != nil {
		t.Fatal(err)
	}
	second := b.ready(control.Agent, 2)
	if st := b.status(control.Agent); second == first || st.LastEnd != "restarted" {
		t.Errorf("after Restart: %+v", st)
	}
	if err := b.Stop(control.Agent); err != nil {
		t.Fatal(err)
	}
	b.wait("it is stopped", func() bool { return b.status(control.Agent).State == stateFinished })
	if st := b.status(control.Agent); st.PID != 0 || st.LastEnd != "stopped" || !gone(second) {
		t.Errorf("after Stop: %+v", st)
	}
	if err := b.Start(control.Agent); err != nil {
		t.Fatal(err)
	}
	b.ready(control.Agent, 3)
}

func TestEndOfContextEndsStubbornRoles(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Gateway, "stubborn"), plain(control.Agent, "sleep")}}, nil)
	pids := []int{b.ready(control.Gateway, 1), b.ready(control.Agent, 1)}
	if err := unix.Kill(pids[1], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := b.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %d is still there after Run", pid)
		}
	}
}

func TestFilesAreHandedToEveryIncarnation(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close() // the roles alone accept
	defer f.Close()
	spec := plain(control.Gateway, "serve")
	spec.Files = []string{control.FileHTTPS}
	b := start(t, Config{Specs: []Spec{spec}, Files: map[string]*os.File{control.FileHTTPS: f}}, nil)
	ask := func() string {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	first := b.status(control.Gateway).PID
	if got := ask(); first != 0 && got != fmt.Sprintf("pid %d\n", first) {
		t.Errorf("answered %q, want pid %d", got, first)
	}
	first = b.status(control.Gateway).PID
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.wait("the next runs", func() bool {
		st := b.status(control.Gateway)
		return st.State == stateRunning && st.PID != first
	})
	// The port was open all the time; whoever dialled in between waits.
	if got := ask(); got == "" || got == fmt.Sprintf("pid %d\n", first) {
		t.Errorf("the second incarnation answered %q", got)
	}
}

func TestBOX12_CrashReport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "crash")
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "panic")}, CrashDir: dir}, nil)
	b.wait("a second report is there", func() bool {
		names, _ := filepath.Glob(dir + "/*.txt")
		return len(names) >= 2
	})
	names, err := filepath.Glob(dir + "/*-agent-*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("reports: %v, %v", names, err)
	}
	text, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"role: agent\n", "end: ended with exit code 2\n", "about to fall\n", "panic: fell", "helper_test.go"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if !slices.Contains(b.lines(), "agent: panic: fell") {
		t.Error("the output did not reach the journal")
	}
}

func TestFloodIsCountedNotKept(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "flood")}}, nil)
	b.wait("it has ended", func() bool { return b.status(control.Agent).State == stateFinished })
	b.wait("the loss is told", func() bool {
		return strings.Contains(strings.Join(b.lines(), "\n"), "lines dropped")
	})
	if n := len(b.lines()); n > 3*linesPerBurst {
		t.Errorf("%d of 5000 lines were kept", n)
	}
}

func TestBackoffDoublesToItsEnd(t *testing.T) {
	tm := timing{backoffMin: 500 * time.Millisecond, backoffMax: 30 * time.Second}
	want := []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000}
	for i, w := range want {
		w *= time.Millisecond
		if got := backoff(tm, i+1, 0); got != w {
			t.Errorf("failure %d: %v, want %v", i+1, got, w)
		}
		if got := backoff(tm, i+1, 255); got != w+w/4 {
			t.Errorf("failure %d with all jitter: %v, want %v", i+1, got, w+w/4)
		}
	}
	if got := backoff(tm, 1_000_000, 255); got > 38*time.Second {
		t.Errorf("a million failures: %v", got)
	}
}

func TestHealthyRoleBeginsItsBackoffAnew(t *testing.T) {
	var calls int
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}}, func(s *Supervisor) {
		s.timing.backoffMin, s.timing.backoffMax, s.timing.healthy = 5*time.Millisecond, time.Hour, 0
	})
	for n := 1; n <= 24; n++ { // doubling would have reached half a day
		pid := b.ready(control.Agent, n)
		calls++
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	b.ready(control.Agent, calls+1)
}

func TestReportsAreBounded(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range reportsKept + 7 {
		if err := report(dir, control.Agent, i, at.Add(time.Duration(i)*time.Second), "killed", []string{"a\xff"}); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(dir + "/*")
	if err != nil || len(names) != reportsKept {
		t.Fatalf("%d reports, want %d (%v)", len(names), reportsKept, err)
	}
	if got := filepath.Base(names[0]); got != "20260102T030412.000-agent-7.txt" {
		t.Errorf("the oldest kept is %s", got)
	}
	if err := report("/proc/nowhere", control.Agent, 1, at, "killed", nil); err == nil {
		t.Error("a report that cannot be written is no error")
	}
}
