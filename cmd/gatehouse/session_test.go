package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crypto/sha256"

	"gatehouse/appliance/cert/certtest"
	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
	"gatehouse/appliance/technician/techniciantest"
)

// hubBox doubles a box that grants sessions: its API, with a site behind it
// (package techniciantest). Contract: a session of the console is needed, as
// the routes of package api have it; it may be ended from outside.
type hubBox struct {
	*httptest.Server
	t    *testing.T
	site *techniciantest.Site

	mu       sync.Mutex
	session  string // the cookie that is good; "" none
	signIns  int
	targets  []api.Target
	sessions []api.Session
	posted   map[string][]byte
	cast     string
	confirm  bool // wants a fresh session
	used     atomic.Int32
	notice   atomic.Pointer[api.Notice] // told when it is asked for, and with a grant
}

const hubPassword, hubCode = "violet tractor", "123456"

// newHubBox starts one, known to the tool, in whose own folder nothing else is.
func newHubBox(t *testing.T, target targets.Target, serve func(wire.Open, wire.Stream)) *hubBox {
	t.Helper()
	h := &hubBox{t: t, site: techniciantest.New(t, target), posted: map[string][]byte{}}
	h.site.Serve = serve
	h.targets = []api.Target{{Target: targets.Target{Name: "gatehouse-7f3k", Kind: targets.Box}}, {ID: 7, Target: target}}
	h.Server = httptest.NewUnstartedServer(h.routes())
	h.EnableHTTP2 = true
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	h.StartTLS()
	t.Cleanup(h.Close)
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	key := sha256.Sum256(h.Certificate().RawSubjectPublicKeyInfo)
	k, err := readKnown()
	if err == nil {
		err = k.put(knownBox{Name: "gatehouse-7f3k", Address: strings.TrimPrefix(h.URL, "https://"), SPKI: hex.EncodeToString(key[:])})
	}
	for name, text := range map[string]string{"password": hubPassword, "code": hubCode} {
		err = errors.Join(err, os.WriteFile(filepath.Join(config, name), []byte(text+"\n"), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hubBox) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, publicStatus{"gatehouse-7f3k", "ready"}) })
	mux.HandleFunc("POST /sign-in", func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("email") != "ada@example.org" || r.PostFormValue("password") != hubPassword {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: "half", Path: "/", Secure: true, HttpOnly: true})
		http.Redirect(w, r, "/sign-in/code", http.StatusSeeOther)
	})
	mux.HandleFunc("POST /sign-in/code", func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie(sessionCookie); err != nil || c.Value != "half" || r.PostFormValue("code") != hubCode {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		h.mu.Lock()
		h.signIns++
		h.session = fmt.Sprint("session", h.signIns)
		value := h.session
		h.mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/", Secure: true, HttpOnly: true})
		http.SetCookie(w, &http.Cookie{Name: browserCookie, Value: "browser", Path: "/", Secure: true, HttpOnly: true})
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	signedIn := func(pattern string, handle func(w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c, err := r.Cookie(sessionCookie)
			h.mu.Lock()
			good, confirm := h.session, h.confirm
			h.mu.Unlock()
			switch {
			case err != nil || good == "" || c.Value != good:
				w.WriteHeader(http.StatusUnauthorized)
				answer(w, map[string]string{"detail": "Sign in first."})
			case confirm:
				w.WriteHeader(http.StatusForbidden)
				answer(w, map[string]string{"detail": confirmFirst})
			default:
				handle(w, r)
			}
		})
	}
	signedIn("POST /sign-out", func(w http.ResponseWriter, r *http.Request) {
		h.expire()
		http.Redirect(w, r, "/sign-in?done=out", http.StatusSeeOther)
	})
	signedIn("GET /api/v1/session", func(w http.ResponseWriter, _ *http.Request) {
		h.used.Add(1)
		answer(w, session{"ada@example.org", "owner", time.Now().Add(12 * time.Hour), 1800})
	})
	signedIn("GET "+api.Targets, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.TargetList{Targets: h.targets}) })
	signedIn("GET "+api.Sessions, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.SessionList{Sessions: h.sessions}) })
	signedIn("POST "+api.Sessions, func(w http.ResponseWriter, r *http.Request) {
		var q api.Ask
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			h.t.Error(err)
		}
		if q.Target != h.site.Target.Name && q.Target != "7" {
			w.WriteHeader(http.StatusNotFound)
			answer(w, map[string]string{"detail": "There is no target " + q.Target + "."})
			return
		}
		g, err := h.site.Ask(r.Context(), q)
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			answer(w, map[string]string{"detail": err.Error()})
			return
		}
		g.Notice = h.notice.Load()
		answer(w, g)
	})
	signedIn("GET "+api.NoticePath, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.NoticeBoard{Notice: h.notice.Load()}) })
	signedIn("POST "+api.Meet, func(w http.ResponseWriter, r *http.Request) {
		var q api.MeetAsk
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			h.t.Error(err)
		}
		m, err := h.site.Meet(r.Context(), q)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			answer(w, map[string]string{"detail": err.Error()})
			return
		}
		answer(w, m)
	})
	for _, path := range []string{api.Targets, api.TargetChange, api.TargetRemove, api.Credential, api.HostKeys, api.End, api.RecordingEnd} {
		signedIn("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				h.t.Error(err)
			}
			h.mu.Lock()
			h.posted[path] = b
			h.mu.Unlock()
			if path == api.Targets || path == api.TargetChange {
				w.Write(b)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	signedIn("GET "+api.Recordings, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.RecordingList{Recordings: []api.RecordingInfo{{Session: targets.ID{0xab}, Target: h.site.Target, Technician: "ada@example.org", Seconds: 61, Size: 300, Whole: true}}})
	})
	signedIn("GET "+api.Recording, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("session") != (targets.ID{0xab}).String() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		io.WriteString(w, h.cast)
	})
	return mux
}

// expire ends the session of the console, as its limits do.
func (h *hubBox) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session = ""
}

// run runs a command line and returns what it wrote.
func (h *hubBox) run(stdin io.Reader, args ...string) (code exitCode, out, diag string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "file:", "file:"+os.Getenv("XDG_CONFIG_HOME")+"/")
	}
	code = execute(ctx, args, stdin, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func (h *hubBox) login() {
	h.t.Helper()
	if code, out, diag := h.run(nil, "login", "--email", "ada@example.org", "--password", "file:password", "--code", "file:code"); code != 0 || !strings.Contains(out, "Signed in at ") {
		h.t.Fatalf("login: %d %s%s", code, out, diag)
	}
}

var nas = targets.Target{Name: "NAS Süd", Kind: targets.SSH, Host: "192.0.2.5", Port: 22}

func never(_ wire.Open, st wire.Stream) { st.Close() }

func TestUSE2_LoginRefusals(t *testing.T) {
	h := newHubBox(t, nas, never)
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"nobody to ask":       {[]string{"login"}, exitUsage, "--email"},
		"no password":         {[]string{"login", "--email", "ada@example.org"}, exitUsage, "--password"},
		"no code":             {[]string{"login", "--email", "ada@example.org", "--password", "file:password"}, exitUsage, "--code"},
		"a secret in clear":   {[]string{"login", "--email", "ada@example.org", "--password", hubPassword, "--code", "file:code"}, exitUsage, "never the secret itself"},
		"two from stdin":      {[]string{"login", "--email", "ada@example.org", "--password", "-", "--code", "-"}, exitUsage, "only one"},
		"a wrong password":    {[]string{"login", "--email", "ada@example.org", "--password", "file:code", "--code", "file:code"}, exitDenied, "refused the sign-in"},
		"a wrong code":        {[]string{"login", "--email", "ada@example.org", "--password", "file:password", "--code", "file:password"}, exitDenied, "refused the sign-in"},
		"logout of nothing":   {[]string{"logout"}, exitNotFound, "no session is kept"},
		"not signed in":       {[]string{"targets"}, exitDenied, "gatehouse login"},
		"connect, the same":   {[]string{"connect", "nas"}, exitDenied, "gatehouse login"},
		"an old verb as well": {[]string{"allowlist", "list"}, exitDenied, "gatehouse login"},
		"a box that is not":   {[]string{"login", "192.0.2.77"}, exitNotFound, "not known on this machine"},
	} {
		if code, out, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) || out != "" {
			t.Errorf("%s: %d %q %q, want %d and %q", name, code, out, diag, c.want, c.say)
		}
	}
	if k, err := readKept(); err != nil || len(k.Sessions) != 0 {
		t.Errorf("kept: %+v, %v", k, err)
	}
}

func TestUSE2_LoginKeepsASessionAndNoSecret(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	if code, out, diag := h.run(nil, "targets"); code != 0 || !strings.Contains(out, "NAS Süd") {
		t.Fatalf("%d %s%s", code, out, diag)
	}
	if h.signIns != 1 {
		t.Errorf("%d sign-ins", h.signIns)
	}
	dir := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "gatehouse")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || bytes.Contains(b, []byte(hubPassword)) || bytes.Contains(b, []byte(hubCode)) {
			t.Errorf("%s holds a secret that was typed (%v)", f.Name(), err)
		}
		if i, err := f.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), i.Mode(), err)
		}
	}
	// One go with secrets leaves the kept session alone, and none of its own.
	kept, _ := readKept()
	one := []string{"targets", "--json", "--email", "ada@example.org", "--password", "file:password", "--code", "file:code"}
	if code, out, diag := h.run(nil, one...); code != 0 || !strings.Contains(out, `"name": "NAS Süd"`) {
		t.Errorf("%d %s%s", code, out, diag)
	}
	if now, _ := readKept(); fmt.Sprint(now) != fmt.Sprint(kept) || h.session != "" {
		t.Errorf("kept %+v, before %+v; at the box %q", now, kept, h.session)
	}
	// What the box has ended is said, and forgotten.
	if code, _, diag := h.run(nil, "targets"); code != exitDenied || !strings.Contains(diag, "gatehouse login") {
		t.Errorf("%d %s", code, diag)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
	h.login()
	h.confirm = true
	if code, _, diag := h.run(nil, "targets"); code != exitDenied || !strings.Contains(diag, "password and the code again") {
		t.Errorf("%d %s", code, diag)
	}
	h.confirm = false
	if code, _, diag := h.run(nil, "logout"); code != 0 || h.session != "" {
		t.Errorf("logout: %d %s, at the box %q", code, diag, h.session)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
	h.login()
	h.Close()
	if code, _, diag := h.run(nil, "logout"); code != exitUnreachable || !strings.Contains(diag, "forgotten here") {
		t.Errorf("logout without the box: %d %s", code, diag)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
}

// At a terminal it asks, the password without showing it and the code last.
func TestUSE2_LoginAsksAPerson(t *testing.T) {
	newHubBox(t, nas, never)
	for name, c := range map[string]struct {
		lines, hidden string
		want          exitCode
		asks          string
	}{
		"nothing typed":  {"", hubPassword, exitUsage, "E-mail address: "},
		"no password":    {"ada@example.org\n", "", exitUsage, "E-mail address: Password: "},
		"wrong password": {"ada@example.org\n", "violet", exitDenied, "E-mail address: Password: "},
		"no code":        {"ada@example.org\n", hubPassword, exitUsage, "E-mail address: Password: Code of the second factor, or a recovery code: "},
		"all of it":      {"ada@example.org\n" + hubCode + "\n", hubPassword, exitOK, "E-mail address: Password: Code of the second factor, or a recovery code: "},
	} {
		b, s, err := askBox(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		a := &asker{lines: bufio.NewReader(strings.NewReader(c.lines)), out: &out, secret: func() (string, error) { return c.hidden, nil }}
		err = s.login(t.Context(), b, signIn{}, a)
		if c.want == exitOK && err != nil || c.want != exitOK && codeOf(err) != c.want || out.String() != c.asks {
			t.Errorf("%s: %v, asks %q, want %d and %q", name, err, &out, c.want, c.asks)
		}
		if k, err := readKept(); err != nil || len(k.Sessions) == 1 != (c.want == exitOK) {
			t.Errorf("%s: kept %+v, %v", name, k, err)
		}
		if k, _ := readKept(); c.want == exitOK && len(k.Sessions) == 1 {
			if err := k.put(keptSession{SPKI: k.Sessions[0].SPKI}); err != nil { // for the next of them
				t.Fatal(err)
			}
		}
	}
}

func TestSES5_ConnectRefusals(t *testing.T) {
	denied := func(_ wire.Open, st wire.Stream) {
		defer st.Close()
		wire.WriteRefusal(st, wire.Refuse(wire.Denied, "this session has no right to it"))
	}
	h := newHubBox(t, nas, denied)
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"a public address": {[]string{"connect", "nas-s-d", "--forward", "0.0.0.0:22"}, exitUsage, "loopback"},
		"another host":     {[]string{"connect", "nas-s-d", "--forward", "8080:10.0.0.1:80"}, exitUsage, "loopback"},
		"no port":          {[]string{"connect", "nas-s-d", "--forward", "ssh"}, exitUsage, "0 to 65535"},
		"both":             {[]string{"connect", "nas-s-d", "--forward", "0", "--stdio"}, exitUsage, "do not go together"},
		"stdin twice":      {[]string{"connect", "nas-s-d", "--stdio", "--email", "a", "--password", "-", "--code", "file:code"}, exitUsage, "belongs to the target"},
		"nothing to run":   {[]string{"exec", "nas-s-d"}, exitUsage, "requires at least 2"},
	} {
		if code, _, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q, want %d and %q", name, code, diag, c.want, c.say)
		}
	}
	h.login()
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"no such target":    {[]string{"connect", "printer.gatehouse", "--stdio"}, exitNotFound, "no target printer"},
		"denied, stdio":     {[]string{"connect", "nas-s-d.gatehouse", "--stdio"}, exitDenied, "no right to it"},
		"denied, terminal":  {[]string{"connect", "NAS Süd"}, exitDenied, "no right to it"},
		"denied, exec":      {[]string{"exec", "7", "--", "id"}, exitDenied, "no right to it"},
		"pages of a server": {[]string{"open", "7"}, exitUsage, "no web pages"},
	} {
		if code, out, diag := h.run(strings.NewReader(""), c.args...); code != c.want || !strings.Contains(diag, c.say) || out != "" {
			t.Errorf("%s: %d %q %q, want %d and %q", name, code, out, diag, c.want, c.say)
		}
	}
	for _, q := range h.site.Asked() {
		if len(q.Functions) == 0 || len(q.Functions) > 2 {
			t.Errorf("asked for more than is needed: %+v", q)
		}
	}
	h.site.Refuse(errors.New("You have no right to this target."))
	if code, _, diag := h.run(strings.NewReader(""), "connect", "7"); code != exitDenied || !strings.Contains(diag, "no right to this target") {
		t.Errorf("%d %s", code, diag)
	}
}

// upper answers a forwarded connection in capitals, and ends after the other end.
func upper(_ wire.Open, st wire.Stream) {
	defer st.Close()
	if wire.WriteReply(st, wire.Reply{}) != nil {
		return
	}
	b, err := io.ReadAll(st)
	if err == nil {
		st.Write(bytes.ToUpper(b))
	}
	st.CloseWrite()
}

func TestSES5_StdioPassesBothEnds(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	text := strings.Repeat("every byte of it\n", 20000)
	code, out, diag := h.run(strings.NewReader(text), "connect", "nas-s-d.gatehouse", "--stdio")
	if code != 0 || out != strings.ToUpper(text) || diag != "" {
		t.Errorf("%d, %d bytes back of %d, %s", code, len(out), len(text), diag)
	}
}

// The console hears that its person is at work while something is sent, and
// only then: who leaves a terminal open is signed out as on a page.
func TestSES10_TheConsoleHearsOfWork(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	b, _, err := findBox(t.Context(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	err = b.as(t.Context(), signIn{}, nil, func(ctx context.Context) error {
		s, err := begin(ctx, b, technician.Config{Hub: hub{b, func(*api.Notice) {}}, Dial: (&net.Dialer{}).DialContext, Near: b.address, Patience: patience}, api.Ask{Target: "7"})
		if err != nil {
			return err
		}
		defer s.Close("the test is over")
		h.used.Store(0)
		defer alive(ctx, b, s, 10*time.Millisecond)()
		time.Sleep(100 * time.Millisecond)
		if n := h.used.Load(); n != 0 {
			t.Errorf("told %d times of nothing", n)
		}
		for h.used.Load() < 2 && ctx.Err() == nil {
			st, _, err := s.Open(ctx, wire.Open{Do: wire.Forward})
			if err != nil {
				return err
			}
			st.Close()
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSES9_RecordAsksForTheRight(t *testing.T) {
	h := newHubBox(t, nas, shell)
	h.login()
	if code, _, diag := h.run(strings.NewReader(""), "exec", "7", "--record", "--", "id"); code != 0 {
		t.Errorf("%d %s", code, diag)
	}
	if q := h.site.Asked(); !q[0].Record || fmt.Sprint(q[0].Functions) != "[scripts record]" && fmt.Sprint(q[0].Functions) != "[record scripts]" {
		t.Errorf("asked for %+v", q[0])
	}
}

// outPipe is a standard output that is read while the program runs.
func outPipe(t *testing.T, h *hubBox, args ...string) (line func() string, stop func() (exitCode, string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan exitCode, 1)
	go func() {
		done <- execute(ctx, args, strings.NewReader(""), w, &stderr)
		w.Close()
	}()
	lines := make(chan string, 100)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			if err != nil {
				close(lines)
				return
			}
			lines <- string(b[:n])
		}
	}()
	line = func() string {
		select {
		case l := <-lines:
			return l
		case <-time.After(20 * time.Second):
			t.Fatal("it prints nothing")
			return ""
		}
	}
	return line, func() (exitCode, string) {
		cancel()
		code := <-done
		return code, stderr.String()
	}
}

func TestSES5_ForwardedPort(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	line, stop := outPipe(t, h, "connect", "7", "--forward", "0", "--forward", "127.0.0.2:0")
	address := regexp.MustCompile(`(?m)^(127\.0\.0\.[12]:\d+) leads to NAS Süd, 192\.0\.2\.5:22$`)
	var found []string
	for len(found) < 2 {
		for _, m := range address.FindAllStringSubmatch(line(), -1) {
			found = append(found, m[1])
		}
	}
	for _, at := range found {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "HELLO" {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
	if code, diag := stop(); code != exitInterrupted {
		t.Errorf("%d %s", code, diag)
	}
	for _, at := range found {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			t.Errorf("%s is open after the end", at)
		}
	}
	line, stop = outPipe(t, h, "connect", "7", "--forward", "0", "--json")
	var shown []forwarded
	if err := json.Unmarshal([]byte(line()), &shown); err != nil || len(shown) != 1 || shown[0].Target != "NAS Süd" {
		t.Errorf("%+v, %v", shown, err)
	}
	h.site.End("ended by ada@example.org")
	stop()
}

// shell doubles the agent's terminal and exec: it asks for the host key, then does what the command says.
func shell(o wire.Open, st wire.Stream) {
	defer st.Close()
	if wire.WriteReply(st, wire.Reply{Recorded: o.Do == wire.Terminal}) != nil {
		return
	}
	say := func(k wire.Kind, v any) {
		b, ok := v.([]byte)
		if !ok {
			b, _ = json.Marshal(v)
		}
		wire.WriteFrame(st, k, b)
	}
	buf := make([]byte, wire.MaxFrame)
	if strings.Contains(o.Command, "new-key") {
		say(wire.Ask, wire.Question{Target: "nas (192.0.2.5:22)", Algorithm: "ssh-ed25519", Fingerprint: "SHA256:right"})
		if k, b, err := wire.ReadFrame(st, buf); err != nil || k != wire.Confirm || b[0] != 1 {
			return
		}
	}
	switch {
	case strings.HasPrefix(o.Command, "reason "):
		say(wire.Exit, wire.Ended{Status: -1, Reason: "the session was idle for 15 minutes", Code: wire.Failed})
		return
	case strings.HasPrefix(o.Command, "credential"):
		say(wire.Exit, wire.Ended{Status: -1, Reason: "the target does not take the credential", Code: wire.Credential})
		return
	}
	say(wire.Output, []byte(fmt.Sprintf("%s %dx%d %s\n", o.Do, o.Width, o.Height, o.Command)))
	say(wire.Stderr, []byte("oops\n"))
	for {
		k, b, err := wire.ReadFrame(st, buf)
		if err != nil {
			return
		}
		if k == wire.EOF {
			break
		}
		say(wire.Output, bytes.ToUpper(b))
	}
	status := 0
	fmt.Sscanf(o.Command, "exit %d", &status)
	say(wire.Exit, wire.Ended{Status: status})
}

func TestSES4_ExecPassesOnWhatTheCommandDoes(t *testing.T) {
	h := newHubBox(t, nas, shell)
	h.login()
	for name, c := range map[string]struct {
		args []string
		want exitCode
		out  string
		say  string
	}{
		"success":             {[]string{"exec", "7", "--", "tr", "a-z", "A-Z"}, 0, "exec 0x0 tr a-z A-Z\nTYPED", "oops\n"},
		"its status":          {[]string{"exec", "7", "--", "exit", "42"}, 42, "exec 0x0 exit 42\nTYPED", "oops\n"},
		"a status too high":   {[]string{"exec", "7", "--", "exit", "300"}, 255, "exec 0x0 exit 300\nTYPED", "oops\n"},
		"ended at the box":    {[]string{"exec", "7", "--", "reason x"}, exitFailure, "", "idle for 15 minutes"},
		"credential":          {[]string{"exec", "7", "--", "credential"}, exitDenied, "", "does not take the credential"},
		"the right host key":  {[]string{"exec", "7", "--host-key", "SHA256:right", "--", "new-key"}, 0, "exec 0x0 new-key\nTYPED", "oops\n"},
		"another host key":    {[]string{"exec", "7", "--host-key", "SHA256:wrong", "--", "new-key"}, exitVerification, "", "SHA256:right, and not the one of --host-key"},
		"terminal, no screen": {[]string{"connect", "7"}, 0, "terminal 80x24 \nTYPED", "recorded"},
	} {
		code, out, diag := h.run(strings.NewReader("typed"), c.args...)
		if code != c.want || out != c.out || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q %q, want %d %q %q", name, code, out, diag, c.want, c.out, c.say)
		}
	}
}

func TestSES4_EscapeAtTheBeginningOfALine(t *testing.T) {
	for in, want := range map[string]string{
		"~.":             "|",
		"abc~.":          "abc~.",
		"abc\r~.def":     "abc\r|",
		"a\n~.":          "a\n|",
		"~~.":            "~.",
		"~x\r~~\r":       "~x\r~\r",
		"x\r~":           "x\r",
		"ls ~/.ssh\r\n~": "ls ~/.ssh\r\n",
	} {
		for _, size := range []int{1, 100} { // as typed, and as pasted
			e, got := &escape{start: true}, ""
			for part := range slices.Chunk([]byte(in), size) {
				out, leave := e.filter(part)
				got += string(out)
				if leave {
					got += "|"
					break
				}
			}
			if got != want {
				t.Errorf("%q by %d: %q, want %q", in, size, got, want)
			}
		}
	}
}

func TestSES4_HostKeyIsAskedFor(t *testing.T) {
	q := wire.Question{Target: "nas (192.0.2.5:22)", Algorithm: "ssh-ed25519", Fingerprint: "SHA256:right"}
	for typed, want := range map[string]bool{
		"yes\n": true, "SHA256:right\n": true, "no\n": false, "": false, "\n\n\n": false, "y\nyes\n": true, "SHA256:wrong\nno\n": false, "yes": false,
		strings.Repeat("y", 5000): false,
	} {
		in := make(chan []byte, 10)
		for _, part := range strings.SplitAfter(typed, "\n") {
			in <- []byte(part)
		}
		close(in)
		var out bytes.Buffer
		if got := askHostKey(&out, q, in); got != want || !strings.Contains(out.String(), "SHA256:right") {
			t.Errorf("%.20q: %v, want %v\n%s", typed, got, want, &out)
		}
	}
}

// The certificate of an https target is pinned, and another one refused.
func TestSES5_OpenPinsTheCertificate(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page of "+r.Host) })
	var web *httptest.Server
	start := func() {
		web = httptest.NewUnstartedServer(page)
		web.Config.ErrorLog = log.New(io.Discard, "", 0)
		web.TLS = nil
		c := certtest.Self(t)
		web.StartTLS()
		web.TLS.Certificates[0] = c
		t.Cleanup(web.Close)
	}
	start()
	h := newHubBox(t, targets.Target{Name: "NAS Süd", Kind: targets.HTTPS, Host: "nas.lan", Port: 5001}, func(o wire.Open, st wire.Stream) {
		defer st.Close()
		c, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil || o.Do != wire.Web || wire.WriteReply(st, wire.Reply{}) != nil {
			return
		}
		defer c.Close()
		go func() { io.Copy(c, st); c.(*net.TCPConn).CloseWrite() }()
		io.Copy(st, c)
	})
	h.login()
	visit := func(args ...string) (string, exitCode, string) {
		line, stop := outPipe(t, h, append([]string{"open", "7", "--no-browser"}, args...)...)
		first := strings.TrimSpace(line())
		b := browser(t)
		body := ""
		if strings.HasPrefix(first, "http://nas-s-d-") {
			resp, err := b.Get(first)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			all, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = string(all)
		}
		code, diag := stop()
		return body, code, diag
	}
	if body, code, diag := visit(); body != "page of nas.lan:5001" || code != exitInterrupted || !strings.Contains(diag, "is pinned from now on") {
		t.Fatalf("%q %d %s", body, code, diag)
	}
	if body, _, diag := visit(); body != "page of nas.lan:5001" || strings.Contains(diag, "pinned from now on") {
		t.Errorf("again: %q %s", body, diag)
	}
	web.Close()
	start()
	if code, out, diag := h.run(nil, "open", "7", "--no-browser"); code != exitVerification || out != "" || !strings.Contains(diag, "another certificate") {
		t.Errorf("another certificate: %d %q %s", code, out, diag)
	}
	if body, _, diag := visit("--forget-certificate"); body != "page of nas.lan:5001" || !strings.Contains(diag, "is pinned from now on") {
		t.Errorf("the new one: %q %s", body, diag)
	}
}

func TestSES5_TargetsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	key := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "key")
	if err := os.WriteFile(key, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"no kind":            {[]string{"target", "add", "x", "--address", "nas.lan"}, exitUsage, "kind"},
		"a kind that is not": {[]string{"target", "add", "x", "--kind", "telnet", "--address", "nas.lan:23"}, exitUsage, "not a kind"},
		"no port":            {[]string{"target", "add", "x", "--kind", "tcp", "--address", "nas.lan"}, exitUsage, "has no port"},
		"the box's loopback": {[]string{"target", "add", "x", "--kind", "ssh", "--address", "127.0.0.1"}, exitUsage, "not the address of a host"},
		"no such target":     {[]string{"target", "remove", "printer"}, exitNotFound, "no target printer"},
		"a secret in clear":  {[]string{"target", "credential", "7", "--user", "ann", "--secret", "hunter2"}, exitUsage, "never the secret itself"},
		"two secrets":        {[]string{"target", "credential", "7", "--user", "ann", "--secret", "file:password", "--key", "file:key"}, exitUsage, "--secret or with --key"},
		"nobody":             {[]string{"target", "credential", "7", "--secret", "file:password"}, exitUsage, "--user"},
		"a key that is none": {[]string{"target", "credential", "7", "--user", "ann", "--key", "file:password"}, exitUsage, "not a private key"},
	} {
		if code, _, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q, want %d and %q", name, code, diag, c.want, c.say)
		}
	}
	if len(h.posted) != 0 {
		t.Errorf("posted: %q", h.posted)
	}
	for _, c := range []struct {
		args []string
		path string
		want string
	}{
		{[]string{"target", "add", "printer", "--kind", "http", "--address", "printer.lan", "--recording", "off", "--idle", "5"}, api.Targets,
			`{"name":"printer","kind":"http","host":"printer.lan","port":80,"recording":"off","idle":5}`},
		{[]string{"target", "change", "NAS Süd", "--address", "[2001:db8::5]:2222"}, api.TargetChange,
			`{"id":7,"name":"NAS Süd","kind":"ssh","host":"2001:db8::5","port":2222,"recording":"","idle":0}`},
		{[]string{"target", "credential", "7", "--user", "ann", "--secret", "file:password"}, api.Credential, `{"id":7,"user":"ann","password":"violet tractor"}`},
		{[]string{"target", "credential", "7", "--user", "ann", "--key", "file:key"}, api.Credential,
			`{"id":7,"user":"ann","private_key":"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"}`},
		{[]string{"target", "credential", "7", "--remove"}, api.Credential, `{"id":7,"user":""}`},
		{[]string{"target", "forget-host-key", "7"}, api.HostKeys, `{"id":7}`},
		{[]string{"target", "remove", "7"}, api.TargetRemove, `{"id":7}`},
	} {
		if code, out, diag := h.run(nil, c.args...); code != 0 || string(h.posted[c.path]) != c.want {
			t.Errorf("%v: %d %s%s\n%s, want\n%s", c.args, code, out, diag, h.posted[c.path], c.want)
		}
	}
}

func TestSES7_SessionsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	h.sessions = []api.Session{
		{ID: targets.ID{0x3f, 1}, State: api.Live, Target: nas, Technician: "ada@example.org", Open: []string{"terminal"}, Path: "relay", Started: time.Now()},
		{ID: targets.ID{0x3f, 2}, State: api.Lost, Target: nas, Technician: "eve@example.org", Started: time.Now()},
		{ID: targets.ID{0x40}, State: api.Over, Target: nas, Reason: "idle\x1b[2J", Started: time.Now()},
	}
	if code, out, diag := h.run(nil, "sessions", "list"); code != 0 || strings.Count(out, "\n") != 3 || !strings.Contains(out, "3f010000  live     NAS Süd") {
		t.Errorf("%d %s%s", code, out, diag)
	}
	if code, out, _ := h.run(nil, "sessions", "list", "--all"); code != 0 || strings.Count(out, "\n") != 4 || strings.ContainsRune(out, 0x1b) {
		t.Errorf("%d %q", code, out)
	}
	for typed, want := range map[string]exitCode{"3f": exitConflict, "40": exitNotFound, "": exitNotFound, "zz": exitNotFound} {
		if code, _, diag := h.run(nil, "sessions", "end", typed); code != want || h.posted[api.End] != nil {
			t.Errorf("end %q: %d %s", typed, code, diag)
		}
	}
	if code, _, diag := h.run(nil, "sessions", "end", "3F01"); code != 0 || !strings.Contains(string(h.posted[api.End]), `"3f01`) {
		t.Errorf("%d %s %s", code, diag, h.posted[api.End])
	}
}

const cast = `{"version": 2, "width": 80, "height": 24}
[0.5, "o", "hello "]
[10.5, "o", "world"]
[10.6, "r", "100x30"]
[11.6, "o", "\r\n"]
`

func TestSES9_RecordingsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	h.cast = cast
	if code, out, _ := h.run(nil, "record", "list"); code != 0 || !strings.Contains(out, "ab000000") || !strings.Contains(out, "1m1s") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := h.run(nil, "record", "export", "ab"); code != 0 || out != cast {
		t.Errorf("%d %s", code, out)
	}
	file := filepath.Join(t.TempDir(), "nas.cast")
	if code, _, diag := h.run(nil, "record", "export", "ab", "--file", file); code != 0 {
		t.Errorf("%d %s", code, diag)
	}
	if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 || i.Size() != int64(len(cast)) {
		t.Errorf("%v, %v", i, err)
	}
	if code, _, _ := h.run(nil, "record", "export", "ab", "--file", file); code != exitConflict {
		t.Errorf("over a file: %d", code)
	}
	if code, out, diag := h.run(nil, "record", "play", "ab", "--speed", "1000"); code != 0 || !strings.HasPrefix(out, "hello world\r\n\x1b[0m") {
		t.Errorf("%d %q %s", code, out, diag)
	}
	for _, bad := range [][]string{{"--speed", "0"}, {"--speed", "-1"}, {"--idle-limit", "-1s"}} {
		if code, _, _ := h.run(nil, append([]string{"record", "play", "ab"}, bad...)...); code != exitUsage {
			t.Errorf("%v: %d", bad, code)
		}
	}
	if code, _, _ := h.run(strings.NewReader("no\n"), "record", "remove", "ab"); code != exitConflict || h.posted[api.RecordingEnd] != nil {
		t.Errorf("removed after a no: %d", code)
	}
	if code, _, _ := h.run(strings.NewReader("yes\n"), "record", "remove", "ab"); code != 0 || h.posted[api.RecordingEnd] == nil {
		t.Errorf("%d", code)
	}
	for _, bad := range []string{"", "x\n", `{"version": 1}` + "\n", `{"version": 2}` + "\n[1]\n", `{"version": 2}` + "\n[\"x\",\"o\",\"\"]\n"} {
		h.cast = bad
		if code, _, diag := h.run(nil, "record", "play", "ab"); code != exitVerification {
			t.Errorf("%q: %d %s", bad, code, diag)
		}
	}
}

func TestSES9_PlayKeepsTime(t *testing.T) {
	for _, c := range []struct {
		p    player
		want string
	}{
		{player{speed: 1}, "[500ms 10s 100ms 1s]"},
		{player{speed: 2}, "[250ms 5s 50ms 500ms]"},
		{player{speed: 2, idle: 2 * time.Second}, "[250ms 1s 50ms 500ms]"},
	} {
		var waited []time.Duration
		var out bytes.Buffer
		err := c.p.play(t.Context(), strings.NewReader(cast), &out, func(_ context.Context, d time.Duration) error {
			waited = append(waited, d.Round(time.Millisecond))
			return nil
		})
		if err != nil || fmt.Sprint(waited) != c.want || out.String() != "hello world\r\n" {
			t.Errorf("%+v: %v %v %q", c.p, err, waited, &out)
		}
	}
}

func TestSES5_NamesForOpenSSH(t *testing.T) {
	for name, want := range map[string]string{"nas": "nas", "NAS 2": "nas-2", "Drucker Süd": "drucker-s-d", "--": "", "a.b": "a-b", strings.Repeat("x", 100): strings.Repeat("x", 40)} {
		if got := hostLabel(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	got := sshConfig("/opt/it's 100%/gatehouse", "[2001:db8::1]:8443")
	want := "Host *.gatehouse\n  ProxyCommand '/opt/it'\\''s 100%%/gatehouse' connect %n --stdio --box [2001:db8::1]:8443\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
}
