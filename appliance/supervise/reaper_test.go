package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// orphanScript forks twice for each orphan: the first goes at once, the second
// is left to the reaper.
const orphanScript = `i=0; while [ $i -lt $1 ]; do (: &); i=$((i+1)); done; echo made $i`

// orphans is how many the tests make.
func orphans() uint64 {
	if testing.Short() {
		return 1000
	}
	return 10000
}

// zombies lists our children that have ended and were not reaped.
func zombies(t *testing.T) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it went while we looked
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if strings.HasPrefix(rest, fmt.Sprintf("Z %d ", os.Getpid())) {
			out = append(out, string(b))
		}
	}
	return out
}

func TestBOX12_TenThousandOrphansLeaveNoZombie(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Gateway, "sleep"), plain(control.Agent, "sleep")}}, nil)
	pids := []int{b.ready(control.Gateway, 1), b.ready(control.Agent, 1)}
	n := orphans()
	code, out, err := b.config.Reaper.Command(t.Context(), "/bin/sh", "-c", orphanScript, "sh", fmt.Sprint(n))
	if code != 0 || out != fmt.Sprint("made ", n) || err != nil {
		t.Fatalf("Command = %d, %q, %v", code, out, err)
	}
	b.wait("all orphans are reaped", func() bool { return b.config.Reaper.Orphans() >= n })
	b.wait("no zombie is left", func() bool { return len(zombies(t)) == 0 })
	for i, name := range []control.Role{control.Gateway, control.Agent} {
		if st := b.status(name); st.PID != pids[i] || st.Restarts != 0 || st.State != stateRunning {
			t.Errorf("%s did not stay: %+v, was pid %d", name, st, pids[i])
		}
		if _, ok := b.Identify(pids[i], uint32(os.Getuid())); !ok {
			t.Errorf("%s is not known any more", name)
		}
	}
}

// The same as a real PID 1, which has no subreaper above it.
func TestBOX12_OrphansOfPID1(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"gatehoused"}
	cmd.Env = []string{fmt.Sprint("HELPER=init:", orphans())}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	want := fmt.Sprintf("code 0 out \"made %[1]d\" err <nil> orphans %[1]d left no child processes\n", orphans())
	if err != nil || string(out) != want {
		t.Errorf("got %q, %v\nwant %q", out, err, want)
	}
}

func TestProcessesLeftInASessionGoWithIt(t *testing.T) {
	b := start(t, Config{Specs: []Spec{plain(control.Agent, "sleep")}}, nil)
	b.ready(control.Agent, 1)
	// A shell that leaves a sleeping process in its own session.
	code, out, err := b.config.Reaper.Command(t.Context(), "/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
	if code != 0 || err != nil {
		t.Fatalf("Command = %d, %q, %v", code, out, err)
	}
	var pid int
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	b.wait("what it left is gone", func() bool { return gone(pid) })
}

func TestCommand(t *testing.T) {
	r := NewReaper(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); <-done }()

	if _, _, err := r.Command(ctx, "/nowhere/mke2fs"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
	for _, test := range []struct {
		name, script string
		code         int
		out          string
	}{
		{"success", "echo out; echo err >&2", 0, "out\nerr"},
		{"failure", "echo no; exit 7", 7, "no"},
		{"signal", "kill -9 $$", 128 + 9, ""},
		{"input is empty", "cat; echo end", 0, "end"},
		{"environment is ours", "env | sort | cut -d= -f1 | tr '\\n' ' '", 0, "LC_ALL PATH PWD"},
	} {
		code, out, err := r.Command(ctx, "/bin/sh", "-c", test.script)
		if code != test.code || out != test.out || err != nil {
			t.Errorf("%s: %d, %q, %v, want %d, %q", test.name, code, out, err, test.code, test.out)
		}
	}
	code, out, err := r.Command(ctx, "/bin/sh", "-c", "yes 0123456789 | head -c 1000000; echo; echo the end")
	if code != 0 || err != nil || len(out) > commandOutput || !strings.HasSuffix(out, "the end") {
		t.Errorf("much output: %d, %d bytes, %v", code, len(out), err)
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	code, _, err = r.Command(short, "/bin/sleep", "1000")
	if !errors.Is(err, context.DeadlineExceeded) || code != 128+9 {
		t.Errorf("a command past its time: %d, %v", code, err)
	}
}

func TestReaperWaitsForItsOwn(t *testing.T) {
	r := NewReaper(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	type result struct {
		out string
		err error
	}
	ended := make(chan result, 1)
	go func() {
		_, out, err := r.Command(context.Background(), "/bin/sh", "-c", "sleep 0.3; echo late")
		ended <- result{out, err}
	}()
	for {
		r.mu.Lock()
		n := len(r.children)
		r.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if got := <-ended; got.out != "late" || got.err != nil {
		t.Errorf("the command got %+v", got)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}
