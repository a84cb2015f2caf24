package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary is also a caller under another uid: CALLER names the socket.
func TestMain(m *testing.M) {
	if path := os.Getenv("CALLER"); path != "" {
		os.Exit(caller(path))
	}
	os.Exit(m.Run())
}

func caller(path string) int {
	c, err := Dial(path)
	if err == nil {
		var st Status
		st, err = OpStatus.Call(context.Background(), c, None{})
		if err == nil {
			fmt.Println("told:", st.Name)
			return 0
		}
	}
	fmt.Println(err)
	return 1
}

// logs collects what the server says, for several goroutines.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// me identifies this process, and no other, as that role.
func me(r Role) func(int, uint32) (Role, bool) {
	return func(pid int, uid uint32) (Role, bool) { return r, pid == os.Getpid() && uid == uint32(os.Getuid()) }
}

// serve runs s and gives its path and what it logs.
func serve(t *testing.T, identify func(int, uint32) (Role, bool), ops func(*Server)) (path string, said *logs) {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-") // t.TempDir is closed to other uids
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path, said = filepath.Join(dir, "s"), new(logs)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	s := NewServer(slog.New(slog.NewTextHandler(said, nil)), identify)
	s.stall = 300 * time.Millisecond
	ops(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve = %v, want the end of its context", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return path, said
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func status(s *Server) {
	Handle(s, OpStatus, func(context.Context, Role, None) (Status, error) { return Status{Name: "gatehouse-7f3k"}, nil })
}

func TestAnotherUidIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test has to run as root: it starts a process under another uid")
	}
	var pids sync.Map // started as the agent
	path, said := serve(t, func(pid int, uid uint32) (Role, bool) {
		want, ok := pids.Load(pid)
		return Agent, ok && want == uid
	}, status)
	run := func(uid uint32, known bool) string {
		// The caller waits on its input until its pid is known to the server.
		cmd := exec.Command("/bin/sh", "-c", `read go; exec /proc/$$/fd/3`)
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		cmd.ExtraFiles = []*os.File{self}
		cmd.Env = []string{"CALLER=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if known {
			pids.Store(cmd.Process.Pid, uint32(60904))
		}
		fmt.Fprintln(in, "go")
		if err := cmd.Wait(); err != nil && out.Len() == 0 {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := run(60904, true); got != "told: gatehouse-7f3k\n" {
		t.Fatalf("the role itself was answered %q", got)
	}
	for _, test := range []struct {
		name  string
		uid   uint32
		known bool
	}{
		{"the pid of the role under another uid", 60903, true},
		{"the pid of the role as root", 0, true},
		{"the uid of the role in another process", 60904, false},
	} {
		if got := run(test.uid, test.known); strings.Contains(got, "told") || got == "" {
			t.Errorf("%s: answered %q", test.name, got)
		}
	}
	if n := strings.Count(said.String(), "the caller is no role"); n != 3 {
		t.Errorf("%d refusals were logged, want 3:\n%s", n, said)
	}
}

// who may ask what, written down a second time: a change of op.go has to be meant.
func TestEachOperationRefusesOtherRoles(t *testing.T) {
	all := []Role{Init, Network, Gateway, Console, Agent}
	type row struct {
		name string
		may  []Role
		ask  func(context.Context, *Client) error
	}
	var rows []row
	roles := []Role{Network, Gateway, Console, Agent}
	path, _ := serve(t, nil, func(s *Server) {
		rows = []row{
			{"alive", roles, offer(s, OpAlive)},
			{"status", roles, offer(s, OpStatus)},
			{"audit", roles, offer(s, OpAudit)},
			{"key", []Role{Gateway, Console, Agent}, offer(s, OpKey)},
			{"claim-material", []Role{Console}, offer(s, OpClaimMaterial)},
			{"claim-commit", []Role{Console}, offer(s, OpClaimCommit)},
			{"console-ready", []Role{Console}, offer(s, OpConsoleReady)},
			{"network-apply", []Role{Network}, offer(s, OpNetworkApply)},
			{"clock-set", []Role{Network, Console}, offer(s, OpClockSet)},
			{"power", []Role{Console}, offer(s, OpPower)},
			{"log", []Role{Console, Agent}, offer(s, OpLog)},
			{"audit-checkpoint", []Role{Console}, offer(s, OpAuditCheckpoint)},
			{"factor-reset", []Role{Console}, offer(s, OpFactorReset)},
			{"drops", []Role{Gateway}, offer(s, OpDrops)},
			{"exposure", []Role{Console}, offer(s, OpExposure)},
			{"meeting-set", []Role{Gateway, Console}, offer(s, OpMeetingSet)},
			{"meeting", []Role{Gateway, Console, Agent}, offer(s, OpMeeting)},
			{"hub-line", []Role{Agent}, offer(s, OpHubLine)},
		}
		if len(rows) != len(s.ops) {
			t.Errorf("%d operations, %d rows", len(s.ops), len(rows))
		}
		s.identify = func(int, uint32) (Role, bool) { return now.Load().(Role), true }
		now.Store(Init)
	})
	for _, role := range all {
		now.Store(role)
		c := dial(t, path)
		for _, r := range rows {
			err := r.ask(t.Context(), c)
			if slices.Contains(r.may, role) {
				if err != nil {
					t.Errorf("%s asks %s: %v", role, r.name, err)
				}
			} else if !IsCode(err, CodeDenied) {
				t.Errorf("%s asks %s: %v, want it denied", role, r.name, err)
			}
		}
		c.Close()
	}
}

// now is the role that the next caller is taken for.
var now atomic.Value

func offer[Req, Resp any](s *Server, op Op[Req, Resp]) func(context.Context, *Client) error {
	Handle(s, op, func(context.Context, Role, Req) (resp Resp, err error) { return resp, nil })
	return func(ctx context.Context, c *Client) error {
		var req Req
		_, err := op.Call(ctx, c, req)
		return err
	}
}

func TestConnectionOfAnEndedRoleHasNoRights(t *testing.T) {
	var ended atomic.Bool
	path, _ := serve(t, func(int, uint32) (Role, bool) { return Agent, !ended.Load() }, status)
	c := dial(t, path)
	if _, err := OpStatus.Call(t.Context(), c, None{}); err != nil {
		t.Fatal(err)
	}
	ended.Store(true)
	if _, err := OpStatus.Call(t.Context(), c, None{}); !IsCode(err, CodeDenied) {
		t.Errorf("after its end it was answered: %v", err)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	path, said := serve(t, me(Console), func(s *Server) {
		Handle(s, OpClaimCommit, func(_ context.Context, _ Role, r ClaimCommit) (None, error) {
			switch r.Owner {
			case "wrapped":
				return None{}, fmt.Errorf("claiming: %w", &Error{CodeState, "already claimed"})
			case "plain":
				return None{}, errors.New("the disk is full")
			case "panic":
				panic("fell")
			}
			return None{}, nil
		})
		Handle(s, OpLog, func(context.Context, Role, LogQuery) (LogLines, error) {
			return LogLines{Lines: []LogLine{{Text: strings.Repeat("x", MaxMessage)}}}, nil
		})
	})
	c := dial(t, path)
	for owner, want := range map[string][2]string{
		"wrapped": {CodeState, "claiming: already claimed"},
		"plain":   {CodeFailed, "the disk is full"},
		"panic":   {CodeFailed, "claim-commit: internal error"},
	} {
		_, err := OpClaimCommit.Call(t.Context(), c, ClaimCommit{Owner: owner})
		if !IsCode(err, want[0]) || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("%s: %v, want code %s, %q", owner, err, want[0], want[1])
		}
	}
	if !strings.Contains(said.String(), "panic=fell") || !strings.Contains(said.String(), "server_test.go") {
		t.Errorf("the stack of the panic is not in the log:\n%s", said)
	}
	if _, err := OpLog.Call(t.Context(), c, LogQuery{}); !IsCode(err, CodeFailed) || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("an answer that is too long: %v", err)
	}
	if _, err := OpClaimCommit.Call(t.Context(), c, ClaimCommit{Owner: "a@b"}); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// frameOf is a message as it is on the wire.
func frameOf(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestMalformedMessages(t *testing.T) {
	path, _ := serve(t, me(Console), func(s *Server) {
		status(s)
		Handle(s, OpPower, func(context.Context, Role, Power) (None, error) { return None{}, nil })
	})
	for _, test := range []struct {
		name, body string
		want       string // part of the answer; "" means the connection ends
	}{
		{"good", `{"id":1,"op":"power","body":{"action":"off"}}`, `{"id":1,"body":{}}`},
		{"unknown operation", `{"id":2,"op":"shell","body":{}}`, CodeInvalid},
		{"no operation", `{"id":3}`, CodeInvalid},
		{"no body", `{"id":4,"op":"power"}`, CodeInvalid},
		{"unknown field", `{"id":5,"op":"power","body":{"action":"off","force":true}}`, CodeInvalid},
		{"field to None", `{"id":6,"op":"status","body":{"x":1}}`, CodeInvalid},
		{"wrong type", `{"id":7,"op":"power","body":{"action":7}}`, CodeInvalid},
		{"body is no object", `{"id":8,"op":"power","body":[]}`, CodeInvalid},
		{"unknown field of the envelope", `{"id":9,"op":"status","body":{},"role":"init"}`, ""},
		{"two values", `{"id":10,"op":"status","body":{}}{}`, ""},
		{"not JSON", "\x00\x01\x02", ""},
		{"nothing", "", ""},
		{"negative id", `{"id":-1,"op":"status","body":{}}`, ""},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(frameOf(test.body)); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b, err := frame(conn, MaxMessage)
		switch {
		case test.want == "" && !errors.Is(err, io.EOF):
			t.Errorf("%s: %q, %v, want the end of the connection", test.name, b, err)
		case test.want != "" && (err != nil || !strings.Contains(string(b), test.want)):
			t.Errorf("%s: %q, %v, want %q", test.name, b, err, test.want)
		}
		conn.Close()
	}
	huge, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	if _, err := huge.Write(binary.BigEndian.AppendUint32(nil, maxQuestion+1)); err != nil {
		t.Fatal(err)
	}
	if b, err := frame(huge, MaxMessage); !errors.Is(err, io.EOF) {
		t.Errorf("oversize: %q, %v, want the end of the connection", b, err)
	}
}

func TestStuckCallersHoldNobody(t *testing.T) {
	release := make(chan struct{})
	var role atomic.Value
	role.Store(Agent)
	var most, running atomic.Int32
	path, _ := serve(t, func(int, uint32) (Role, bool) { return role.Load().(Role), true }, func(s *Server) {
		status(s)
		Handle(s, OpAudit, func(ctx context.Context, from Role, _ Event) (Appended, error) {
			n := running.Add(1)
			defer running.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return Appended{}, nil
		})
	})
	// One that stops in the middle of a message.
	half, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	// One that asks without end and reads no answer.
	greedy, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer greedy.Close()
	if err := greedy.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for i := range 1_000_000 {
		if _, err := greedy.Write(frameOf(fmt.Sprintf(`{"id":%d,"op":"audit","body":{}}`, i))); err != nil {
			if i < requestsPerConnection {
				t.Fatalf("request %d: %v", i, err)
			}
			break
		}
	}
	if got := most.Load(); got != requestsPerConnection {
		t.Errorf("%d requests of one connection ran at once, want %d", got, requestsPerConnection)
	}
	// Others of the same role and of another are answered.
	for _, r := range []Role{Agent, Console} {
		role.Store(r)
		if _, err := OpStatus.Call(t.Context(), dial(t, path), None{}); err != nil {
			t.Errorf("%s beside a stuck caller: %v", r, err)
		}
	}
	role.Store(Agent)
	// The half message is given up.
	if err := half.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := half.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("half a message: %v, want the end of the connection", err)
	}
	close(release)
}

func TestConnectionsPerRoleAreBounded(t *testing.T) {
	path, said := serve(t, me(Agent), status)
	var open []*Client
	for range connectionsPerRole {
		c := dial(t, path)
		if _, err := OpStatus.Call(t.Context(), c, None{}); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	c := dial(t, path)
	if _, err := OpStatus.Call(t.Context(), c, None{}); err == nil {
		t.Error("one connection too many was answered")
	}
	if !strings.Contains(said.String(), "too many connections") {
		t.Errorf("the refusal is not in the log:\n%s", said)
	}
	open[0].Close()
	for end := time.Now().Add(20 * time.Second); ; {
		c := dial(t, path)
		_, err := OpStatus.Call(t.Context(), c, None{})
		c.Close()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no place after one has gone: %v", err)
		}
	}
}

func TestHandlerHearsThatItsCallerIsGone(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	path, _ := serve(t, me(Agent), func(s *Server) {
		Handle(s, OpAlive, func(ctx context.Context, _ Role, _ None) (None, error) {
			close(began)
			<-ctx.Done()
			close(ended)
			return None{}, ctx.Err()
		})
	})
	c := dial(t, path)
	asked := make(chan error, 1)
	go func() { _, err := OpAlive.Call(context.Background(), c, None{}); asked <- err }()
	<-began
	c.Close()
	<-ended
	if err := <-asked; err == nil {
		t.Error("a call on a closed connection succeeded")
	}
}

func TestCallsAtTheSameTimeGetTheirOwnAnswers(t *testing.T) {
	path, _ := serve(t, me(Agent), func(s *Server) {
		Handle(s, OpKey, func(_ context.Context, _ Role, r KeyRequest) (Key, error) { return Key{Key: []byte(r.Purpose)}, nil })
	})
	c := dial(t, path)
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			want := fmt.Sprint("purpose ", i)
			if k, err := OpKey.Call(t.Context(), c, KeyRequest{want}); err != nil || string(k.Key) != want {
				t.Errorf("asked for %q, got %q, %v", want, k.Key, err)
			}
		})
	}
	wg.Wait()
}

func FuzzReadMessage(f *testing.F) {
	f.Add(frameOf(`{"id":1,"op":"status","body":{}}`))
	f.Add(frameOf(`{"id":1,"error":{"code":"denied","text":"no"}}`))
	f.Add(binary.BigEndian.AppendUint32(nil, MaxMessage+1))
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := readMessage(bytes.NewReader(b), MaxMessage)
		if err != nil {
			return
		}
		// What was understood is understood again, as the same.
		var again bytes.Buffer
		if err := writeMessage(&again, e); err != nil {
			return // escaping can make it longer than the limit
		}
		e2, err := readMessage(&again, MaxMessage)
		if err != nil {
			t.Fatalf("our own message: %v", err)
		}
		one, _ := json.Marshal(e)
		two, _ := json.Marshal(e2)
		if !bytes.Equal(one, two) {
			t.Fatalf("%s became %s", one, two)
		}
	})
}
