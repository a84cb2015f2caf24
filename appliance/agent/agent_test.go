package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/sealed"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/enroll/report"
)

var ownKey = bytes.Repeat([]byte{5}, 32)

func keysOf(t *testing.T, key []byte) enroll.Keys {
	t.Helper()
	k, err := enroll.APIKey(key).Keys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serveHub is a console that has the hub's two routes, on a local socket.
func serveHub(t *testing.T, path string, h *hub.Hub, next ...http.Handler) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cert.Ephemeral("box")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+enroll.PathEnrol, h.HandleEnrol)
	mux.HandleFunc("POST "+enroll.PathReport, h.HandleReport)
	var handler http.Handler = mux
	if len(next) > 0 {
		handler = next[0]
	}
	srv := &http.Server{Handler: handler, TLSConfig: cert.ServerConfig(c), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() { defer close(done); srv.ServeTLS(l, "", "") }()
	stop = sync.OnceFunc(func() { srv.Close(); <-done })
	t.Cleanup(stop)
	return stop
}

func newHub(t *testing.T, key []byte) *hub.Hub {
	return hub.New(hub.Own(keysOf(t, key)), nil, time.Now, quiet())
}

func newSite(t *testing.T, path string) *site {
	t.Helper()
	id, err := loadIdentity(t.TempDir(), ownKey)
	if err != nil {
		t.Fatal(err)
	}
	return &site{
		keys: keysOf(t, ownKey), id: id, name: "gatehouse-7f3k", version: "0.1.0", state: "/",
		root: fstest.MapFS{
			"proc/uptime":                   {Data: []byte("5.0 1.0")},
			"proc/loadavg":                  {Data: []byte("0.1 0.2 0.3 1/2 3")},
			"proc/meminfo":                  {Data: []byte("MemTotal: 100 kB\nMemAvailable: 50 kB\n")},
			"sys/class/dmi/id/product_name": {Data: []byte(strings.Repeat("long ", 100))},
		},
		statfs: func(string) (report.Usage, error) { return report.Usage{Total: 10, Available: 4}, nil },
		now:    time.Now, log: quiet(),
		dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		pause: func(ctx context.Context, _ time.Duration) { pause(ctx, 20*time.Millisecond) },
		told:  func(context.Context, bool) {},
	}
}

func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ag") // short: a socket's path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen in 20 s: %s", what)
		}
	}
}

// TestHUB2_AnotherHubIsRefused meets a hub that has no such key, one that has
// another key under our public name, and one that answers anything.
func TestHUB2_AnotherHubIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.Handler
		want    string
	}{
		"knows nobody":  {nil, "unknown-key"},
		"answers HTML":  {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>ok") }), "malformed"},
		"answers empty": {http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "malformed"},
		"redirects":     {http.RedirectHandler("https://elsewhere/", http.StatusTemporaryRedirect), "307"},
		"echoes": {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }),
			enroll.ErrMAC.Error()},
		"answers without end": {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}), "malformed"},
		"says no with markup": {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, `{"code":"x","text":"line\nforged log line"}`)
		}), "the hub answers 403 Forbidden"},
	} {
		path := socket(t)
		h := newHub(t, bytes.Repeat([]byte{6}, 32))
		if c.handler != nil {
			serveHub(t, path, h, c.handler)
		} else {
			serveHub(t, path, h)
		}
		enrolled, err := newSite(t, path).attend(t.Context())
		if enrolled || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: enrolled %v, %v; want %q", name, enrolled, err, c.want)
		}
	}
}

// TestHUB2_ManInTheMiddle ends TLS between site and true hub and passes every
// byte on: the hub refuses, since the connection is another, and the site
// sends nothing more than its enrolment.
func TestHUB2_ManInTheMiddle(t *testing.T) {
	front, back := socket(t), socket(t)
	h := newHub(t, ownKey)
	serveHub(t, back, h)
	c, err := cert.Ephemeral("box")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var seen bytes.Buffer
	var mu sync.Mutex
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			victim := tls.Server(raw, cert.ServerConfig(c, "http/1.1"))
			hubward, err := tls.Dial("unix", back, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			if err != nil {
				raw.Close()
				return
			}
			go func() {
				io.Copy(io.MultiWriter(hubward, writer(func(p []byte) {
					mu.Lock()
					defer mu.Unlock()
					seen.Write(p)
				})), victim)
				hubward.Close()
			}()
			go func() { io.Copy(victim, hubward); victim.Close() }()
		}
	}()
	enrolled, err := newSite(t, front).attend(t.Context())
	if enrolled || err == nil || !strings.Contains(err.Error(), "channel") {
		t.Errorf("enrolled %v, %v", enrolled, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if s := seen.String(); strings.Contains(s, enroll.PathReport) || strings.Contains(s, enroll.APIKey(ownKey).Text()) || len(h.Sites()) != 0 {
		t.Errorf("the one in the middle saw:\n%s", s)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// TestLinkIsOneConnection: after its connection ended, a link does not make
// another, on which no hub has proved itself.
func TestLinkIsOneConnection(t *testing.T) {
	path := socket(t)
	h := newHub(t, ownKey)
	stop := serveHub(t, path, h)
	s := newSite(t, path)
	l, err := connect(t.Context(), s.dial, s.keys, s.name, s.now)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	device, err := s.id.public()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.enrol(t.Context(), enroll.Enrol{Site: s.id.site, Device: device}); err != nil {
		t.Fatal(err)
	}
	stop()
	var hits atomic.Int32
	serveHub(t, path, h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	if err := l.report(t.Context(), report.Report{Health: &report.Health{}}); err == nil || hits.Load() != 0 {
		t.Errorf("reported on a new connection (%d requests): %v", hits.Load(), err)
	}
}

// TestUSE3_ReportsAndComesBack runs a site, restarts its hub with an empty
// memory, and sees the site there again.
func TestUSE3_ReportsAndComesBack(t *testing.T) {
	path := socket(t)
	s := newSite(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run = %v", err)
		}
	}()
	for range 2 {
		h := newHub(t, ownKey)
		stop := serveHub(t, path, h)
		wait(t, "inventory and health", func() bool {
			l := h.Sites()
			return len(l) == 1 && l[0].Inventory != nil && l[0].Health != nil
		})
		got := h.Sites()[0]
		if got.Site != s.id.site || got.Metadata.Name != "gatehouse-7f3k" || got.Inventory.Host != "gatehouse-7f3k" ||
			got.Health.Uptime != 5 || len(got.Health.Volumes) != 1 || got.Health.Volumes[0].Available != 4 {
			t.Errorf("%+v", got)
		}
		first := got.HealthAt
		wait(t, "a newer health", func() bool { return h.Sites()[0].HealthAt.After(first) })
		stop()
	}
}

func TestBackOffGrowsAndIsBounded(t *testing.T) {
	s := newSite(t, socket(t)) // nobody listens
	ctx, cancel := context.WithCancel(t.Context())
	var pauses []time.Duration
	s.pause = func(_ context.Context, d time.Duration) {
		if pauses = append(pauses, d); len(pauses) == 10 {
			cancel()
		}
	}
	if err := s.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("run = %v", err)
	}
	for i, d := range pauses {
		full := min(firstPause<<i, longestPause)
		if d < full/2 || d > full*3/2 {
			t.Errorf("pause %d is %s, want %s and a half more or less", i, d, full)
		}
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := loadIdentity(dir, ownKey)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadIdentity(dir, ownKey)
	if err != nil || again.site != first.site || !again.device.Equal(first.device) {
		t.Errorf("another identity after a restart: %v", err)
	}
	path := filepath.Join(dir, identityFile)
	if _, err := loadIdentity(dir, bytes.Repeat([]byte{1}, 32)); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("with another subkey: %v", err)
	}
	for _, content := range [][]byte{nil, []byte("x"), {0x30, 0}} {
		if err := sealed.Write(path, ownKey, identityPurpose, content); err != nil {
			t.Fatal(err)
		}
		if _, err := loadIdentity(dir, ownKey); err == nil {
			t.Errorf("content %x is taken", content)
		}
	}
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(dir, ownKey); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "rubbish" {
		t.Error("the damaged file was replaced")
	}
	other, err := loadIdentity(t.TempDir(), ownKey)
	if err != nil || other.site == first.site {
		t.Errorf("two sites have one id: %v", err)
	}
}

// TestRun goes through the role's own entrance.
func TestRun(t *testing.T) {
	path := socket(t)
	h := newHub(t, ownKey)
	serveHub(t, path, h)
	s := control.NewServer(quiet(), func(int, uint32) (control.Role, bool) { return control.Agent, true })
	control.Handle(s, control.OpStatus, func(context.Context, control.Role, control.None) (control.Status, error) {
		return control.Status{Name: "gatehouse-7f3k"}, nil
	})
	control.Handle(s, control.OpKey, func(_ context.Context, _ control.Role, r control.KeyRequest) (control.Key, error) {
		if r.Purpose == control.PurposeSelfSite {
			return control.Key{Key: ownKey}, nil
		}
		return control.Key{Key: bytes.Repeat([]byte{9}, 32)}, nil
	})
	l, err := net.Listen("unix", socket(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(ctx, l) }()
	defer func() { cancel(); l.Close(); <-served }()
	c, err := control.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, env := range map[string]control.Environment{
		"locked":          {Locked: true, State: t.TempDir(), Gateway: path},
		"without a state": {Gateway: path},
		"without gateway": {State: t.TempDir()},
	} {
		if err := Run(ctx, env, c, quiet()); err == nil {
			t.Errorf("it runs %s", name)
		}
	}
	rctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- Run(rctx, control.Environment{State: t.TempDir(), Gateway: path, Version: "0.1.0"}, c, quiet())
	}()
	wait(t, "a report", func() bool { l := h.Sites(); return len(l) == 1 && l[0].Health != nil })
	if got := h.Sites()[0]; got.Inventory.Kernel == "" || got.Health.Memory.Total == 0 || got.Health.Volumes[0].Total == 0 {
		t.Errorf("%+v %+v", got.Inventory, got.Health)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}
