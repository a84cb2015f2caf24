package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crypto/sha256"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
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
