// Package script runs the scripts that specify the command line of gatehouse.
package script

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatehouse/appliance/audit"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(bin, "gatehouse"), "gatehouse/cmd/gatehouse")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the tool: %v\n%s", err, out)
	}
	return bin
}

func TestUSE2_Scripts(t *testing.T) {
	bin := build(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Values[started{}] = &started{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "box": startBox, "man": startMan, "auditlog": writeLog, "edit": edit, "lastgroup": lastGroup,
			"console": func(ts *testscript.TestScript, neg bool, args []string) { startConsole(t, ts, neg, args) },
			"systems": giveSystems, "cutonce": cutOnce, "trialends": trialEnds,
		},
	})
}

// exits CODE COMMAND … runs a command and compares its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var e *exec.ExitError
	if errors.As(err, &e) {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// box CODE|owned starts a box that answers the set-up routes, and sets BOX to
// its address and WORDS to its proof words.
func startBox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: box CODE|owned")
	}
	var salt [16]byte
	var key [32]byte
	owned := args[0] == "owned"
	if !owned {
		code, err := proof.ParseCode(args[0])
		ts.Check(err)
		key = proof.Derive(code, salt)
	}
	address, spki := serve(ts, routes(owned, salt, key))
	ts.Setenv("BOX", address)
	ts.Setenv("WORDS", proof.Words(spki))
}

// console starts the box's own console, owned by ada@example.org, sets BOX, and
// leaves the files password and code1 to code9, of which each works once.
func startConsole(t *testing.T, ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: console")
	}
	b, br := consoletest.Owned(t, console.Run)
	ts.Check(os.WriteFile(ts.MkAbs("password"), []byte(consoletest.Password+"\n"), 0o600))
	for i, c := range br.Codes[:9] {
		ts.Check(os.WriteFile(ts.MkAbs(fmt.Sprintf("code%d", i+1)), []byte(c+"\n"), 0o600))
	}
	ts.Setenv("BOX", ts.Value(started{}).(*started).note(ts, t, b))
	ts.Setenv("WORDS", b.Ready().Certificate.Words)
}

func routes(owned bool, salt [16]byte, key [32]byte) http.Handler {
	mux := http.NewServeMux()
	state := "unclaimed"
	if owned {
		state = "ready"
	}
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"name": "gatehouse-7f3k", "state": state})
	})
	if owned {
		return mux
	}
	mux.HandleFunc("GET /api/v1/setup", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"name": "gatehouse-7f3k", "salt": salt[:]})
	})
	mux.HandleFunc("POST /api/v1/setup/proof", func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Proof []byte }
		binding, err := proof.Binding(r.TLS)
		if err != nil || json.NewDecoder(r.Body).Decode(&q) != nil || !proof.VerifyClient(key, binding, q.Proof) {
			answer(w, http.StatusForbidden, map[string]string{"detail": "The proof is not right."})
			return
		}
		p := proof.ServerProof(key, binding)
		answer(w, http.StatusOK, map[string]any{"proof": p[:], "ticket": "ticket"})
	})
	mux.HandleFunc("POST /api/v1/setup/claim", func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Ticket, Name, Email, Password string }
		if json.NewDecoder(r.Body).Decode(&q) != nil || q.Ticket != "ticket" || q.Name == "" || q.Password == "" {
			answer(w, http.StatusForbidden, map[string]string{"detail": "The ticket is not valid."})
			return
		}
		state = "ready"
		answer(w, http.StatusCreated, map[string]string{"email": q.Email})
	})
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

// serve starts a server with a certificate of its own.
func serve(ts *testscript.TestScript, h http.Handler) (address string, spki [32]byte) {
	own, err := certtest.New()
	ts.Check(err)
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
	s.StartTLS()
	ts.Defer(s.Close)
	return strings.TrimPrefix(s.URL, "https://"), sha256.Sum256(own.Leaf.RawSubjectPublicKeyInfo)
}

// man puts a man in the middle, with a certificate of his own, before BOX: he
// passes everything on, and MAN is his address.
func startMan(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: man")
	}
	real := ts.Getenv("BOX")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ts.Defer(client.CloseIdleConnections)
	address, _ := serve(ts, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host, r.RequestURI = "https", real, ""
		resp, err := client.Do(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	ts.Setenv("MAN", address)
}

// auditlog DIR writes a log of ten events and a checkpoint, and DIR.pem, its key.
func writeLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: auditlog DIR")
	}
	dir := ts.MkAbs(args[0])
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	w, err := audit.Open(dir, audit.Config{
		Key: &key.PublicKey, Now: time.Now, Rand: rand.Reader, GID: -1,
		Sign: func(_ context.Context, d []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, key, d) },
	})
	ts.Check(err)
	for range 10 {
		_, err := w.Append(context.Background(), control.Event{Actor: "ada@example.org", Action: "sign-in", Outcome: "ok"})
		ts.Check(err)
	}
	_, err = w.Checkpoint(context.Background())
	ts.Check(err)
	ts.Check(w.Close())
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	ts.Check(err)
	ts.Check(os.WriteFile(dir+".pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
}

// lastgroup FROM TO writes what stands after the last hyphen of a file.
func lastGroup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: lastgroup FROM TO")
	}
	text := ts.ReadFile(args[0])
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text[strings.LastIndexByte(text, '-')+1:]), 0o600))
}

// edit FROM TO OLD NEW copies a file with the first OLD replaced.
func edit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: edit FROM TO OLD NEW")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Replace(ts.ReadFile(args[0]), args[2], args[3], 1)), 0o644))
}

// The reference lists every command, and the tool has every one it lists.
func TestUSE2_ReferenceIsWhole(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command(filepath.Join(build(t), "gatehouse"), "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 8 {
		t.Fatalf("%d manual pages, %v", len(pages), err)
	}
	have := make(map[string]bool)
	for _, p := range pages {
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(p), ".1"), "-", " ")
		have[name] = true
		if !strings.Contains(strings.ReplaceAll(string(doc), "-", " "), "\n### `"+name) && name != "gatehouse" {
			t.Errorf("docs/cli.md does not list %q", name)
		}
	}
	for line := range strings.Lines(string(doc)) {
		if rest, ok := strings.CutPrefix(line, "### `"); ok {
			var words []string
			for _, w := range strings.Fields(strings.Split(rest, "`")[0]) {
				if strings.ToLower(w) == w && !strings.HasPrefix(w, "[") && !strings.HasPrefix(w, "-") {
					words = append(words, strings.ReplaceAll(w, "-", " "))
				}
			}
			if name := strings.Join(words, " "); !have[name] && name != "gatehouse completion" {
				t.Errorf("docs/cli.md lists %q, which the tool does not have", name)
			}
		}
	}
}
