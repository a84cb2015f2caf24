package keeper

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/keeper/pebbletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
)

const boxName = "gatehouse-7f3k"

var secret = bytes.Repeat([]byte{9}, 32)

// rig is a keeper with all that it asks for.
type rig struct {
	*Keeper
	t        *testing.T
	dir      string
	identity tls.Certificate
	plain    net.Addr // port 80
	tls      net.Addr // port 443
	ahead    atomic.Int64
	closed   atomic.Bool // port 80 answers nobody
	stopped  func()
	serving  atomic.Pointer[Keeper] // on port 443

	mu         sync.Mutex
	status     control.Status
	challenges map[string]string
	events     []control.Event
	noAudit    error
	named      control.CertificateFiles // of the operator
	heard      func(control.Event)      // after an event is in the audit log
	shown      string
	names      []string
}

func (r *rig) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), challenges: make(map[string]string), status: control.Status{
		Name: boxName, URL: "https://192.168.1.40/", HTTPPort: 80, HTTPSPort: 443, Clock: control.Clock{Trusted: true},
		Links: []control.Link{{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.40/24"), netip.MustParsePrefix("fe80::1/64")}}},
	}}
	var err error
	if r.identity, err = cert.LoadOrCreate(r.dir, secret, boxName); err != nil {
		t.Fatal(err)
	}
	r.plain = pebbletest.Plain(t, http.HandlerFunc(r.port80))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.tls = l.Addr()
	r.open()
	var wg sync.WaitGroup
	wg.Go(func() { r.port443(l, &wg) })
	t.Cleanup(func() { l.Close(); r.stop(); wg.Wait() })
	return r
}

// open opens the keeper as a start of the console does.
func (r *rig) open() {
	r.stop()
	r.Keeper = Open(Config{Dir: r.dir, Key: secret, Identity: r.identity, Log: slog.New(slog.DiscardHandler), Ports: Ports{
		Now: r.now, Settle: time.Millisecond,
		Status: func(context.Context) (control.Status, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.status, nil
		},
		Put: func(_ context.Context, q control.Challenge) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.challenges[q.Token] = q.Text
			return nil
		},
		Drop: func(_ context.Context, q control.ChallengeToken) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.challenges, q.Token)
			return nil
		},
		Files: r.asked,
		Audit: func(_ context.Context, e control.Event) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.noAudit != nil {
				return r.noAudit
			}
			r.events = append(r.events, e)
			if r.heard != nil {
				r.heard(e)
			}
			return nil
		},
		Shown: func(_ context.Context, c tls.Certificate, names []string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.shown, r.names = cert.Fingerprint(c), names
			return nil
		},
	}})
	r.serving.Store(r.Keeper)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tasks := r.Tasks()
	wg.Go(func() { task.Run(ctx, tasks...) })
	r.stopped = func() { cancel(); wg.Wait() }
	r.eventually("the first look", func() bool { m, _ := r.seen(); return len(m.names) > 0 })
}

func (r *rig) stop() {
	if r.stopped != nil {
		r.stopped()
		r.stopped = nil
	}
}

func (r *rig) port80(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	text := r.challenges[strings.TrimPrefix(q.URL.Path, "/.well-known/acme-challenge/")]
	r.mu.Unlock()
	if r.closed.Load() { // as a list does it: no answer at all
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			c.Close()
		}
		return
	}
	if text == "" {
		http.NotFound(w, q)
		return
	}
	w.Write([]byte(text))
}

func (r *rig) port443(l net.Listener, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			tls.Server(c, r.serving.Load().TLSConfig("h2", "http/1.1")).Handshake()
		})
	}
}

// set changes what the box is, and has it looked at.
func (r *rig) set(f func(*control.Status)) {
	r.mu.Lock()
	f(&r.status)
	r.mu.Unlock()
	r.wake()
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	v := r.View()
	r.t.Fatalf("waited in vain for %s: %+v", what, v)
}

func (r *rig) record(action, object string, detail map[string]string) error {
	return r.c.Ports.Audit(context.Background(), control.Event{Actor: "ann@example.com", Action: action, Object: object, Detail: detail})
}

func (r *rig) did(action string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if e.Action == action {
			n++
		}
	}
	return n
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// sees is what a client is shown under a name, "" for an address.
func (r *rig) sees(name string) *x509.Certificate {
	r.t.Helper()
	return r.answers(name, netip.MustParseAddr("192.168.1.40")).Leaf
}

func (r *rig) isIdentity(name string) bool {
	return bytes.Equal(r.sees(name).Raw, r.identity.Leaf.Raw)
}

func (r *rig) shows() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shown
}

func TestNET10_OwnCAServesAndFollowsTheBox(t *testing.T) {
	r := newRig(t)
	if !r.isIdentity("") || !r.isIdentity(boxName) {
		t.Fatal("without a source browsers see something else than the identity")
	}
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf", func() bool { return r.View().Serving })
	pool := x509.NewCertPool()
	pool.AddCert(r.Authority().Root)
	for name, host := range map[string]string{"": "192.168.1.40", boxName: boxName, boxName + ".local": boxName + ".local", boxName + ".local.": boxName + ".local"} {
		if _, err := r.sees(name).Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	// The pin stays, and so do names that the certificate is not for.
	for _, name := range []string{cert.IdentityName, "evil.example", "IDENTITY.gatehouse.invalid"} {
		if !r.isIdentity(name) {
			t.Errorf("%s: not the identity", name)
		}
	}
	leaf := r.sees("")
	r.eventually("the console's words", func() bool { return r.shows() == cert.Fingerprint(tls.Certificate{Certificate: [][]byte{leaf.Raw}}) })

	// Another address: another leaf, without a person.
	r.set(func(s *control.Status) {
		s.URL = "https://192.168.1.77/"
		s.Links[0].Addresses[0] = netip.MustParsePrefix("192.168.1.77/24")
	})
	r.eventually("a leaf for the new address", func() bool {
		return r.answers("", netip.MustParseAddr("192.168.1.77")).Leaf.VerifyHostname("192.168.1.77") == nil
	})
	// A public one that the root may not sign for is told and not tried for ever.
	r.set(func(s *control.Status) {
		s.Links = append(s.Links, control.Link{Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24")}})
	})
	r.eventually("the hint at a new root", func() bool { return strings.Join(r.View().Root.Uncovered, "") == "198.51.100.7" })
	issued := r.did("use certificate")
	for range 5 {
		r.must(r.look(t.Context()))
	}
	if n := r.did("use certificate"); n != issued {
		t.Errorf("%d leaves for an address that cannot be signed for", n-issued)
	}
	// After two thirds of its life there is another.
	before := r.sees("").SerialNumber
	r.ahead.Store(int64(21 * 24 * time.Hour))
	r.wake()
	r.eventually("the renewal", func() bool {
		return r.answers("", netip.MustParseAddr("192.168.1.77")).Leaf.SerialNumber.Cmp(before) != 0 && r.View().Serving
	})
	if got := r.did("choose certificate source"); got != 1 {
		t.Errorf("%d choices in the audit log", got)
	}
	root := r.Authority().Fingerprint()
	r.must(r.Choose(context.Background(), Choice{Source: CA, NewCA: true}, r.record))
	r.eventually("a leaf of the new root", func() bool { return r.View().Serving && len(r.View().Root.Uncovered) == 0 })
	if r.Authority().Fingerprint() == root {
		t.Error("the root is the old one")
	}
	r.must(r.Choose(context.Background(), Choice{Source: Self}, r.record))
	if !r.isIdentity(boxName) {
		t.Error("the identity was chosen and is not served")
	}
}

func TestNET10_AWrongClockPostponesAndNeverServesTheExpired(t *testing.T) {
	r := newRig(t)
	r.set(func(s *control.Status) { s.Clock.Trusted = false })
	r.eventually("the doubt", func() bool { m, _ := r.seen(); return !m.trusted })
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.must(r.look(t.Context()))
	if v := r.View(); v.Serving || !strings.Contains(v.Problem, "clock is not trusted") || !r.isIdentity("") {
		t.Errorf("%+v", v)
	}
	if err := r.Renew(r.record); err == nil || !strings.Contains(err.Error(), "set the clock first") {
		t.Errorf("renewing by a doubtful clock: %v", err)
	}
	r.set(func(s *control.Status) { s.Clock.Trusted = true })
	r.eventually("a leaf once the clock is right", func() bool { return r.View().Serving })
	leaf := r.sees("")
	// The clock falls back by ten years and nobody vouches for it: the leaf was
	// good when it was made, so it is the clock that is behind.
	r.set(func(s *control.Status) { s.Clock.Trusted = false })
	r.ahead.Store(int64(-10 * 365 * 24 * time.Hour))
	r.must(r.look(t.Context()))
	if !bytes.Equal(r.sees("").Raw, leaf.Raw) {
		t.Error("a clock that is behind took the leaf away")
	}
	// Far ahead: expired by all that is known, and never shown.
	r.ahead.Store(int64(60 * 24 * time.Hour))
	r.must(r.look(t.Context()))
	if v := r.View(); !r.isIdentity("") || v.Serving || !strings.Contains(v.Problem, "expired") || !strings.Contains(v.Problem, "postponed") {
		t.Errorf("an expired one: %+v", v)
	}
	// Trusted again: mended by itself.
	r.set(func(s *control.Status) { s.Clock.Trusted = true })
	r.eventually("a new leaf", func() bool { return r.View().Serving && !r.isIdentity("") })
	// Made by a clock that was ahead, seen by one that is right: made anew.
	r.ahead.Store(0)
	r.wake()
	r.eventually("a leaf of the right time", func() bool { return r.View().Serving && r.sees("").NotBefore.Before(time.Now()) })
}

func TestNET10_KeysStayInSealedFiles(t *testing.T) {
	r := newRig(t)
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf", func() bool { return r.View().Serving })
	r.stop()
	entries, err := os.ReadDir(r.dir)
	r.must(err)
	encoded, err := r.Authority().Encode()
	r.must(err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		r.must(err)
		if fi, _ := e.Info(); fi.Mode().Perm() != 0o600 || !strings.HasSuffix(e.Name(), ".sealed") {
			t.Errorf("%s has mode %v", e.Name(), fi.Mode())
		}
		for _, text := range []string{"PRIVATE", boxName, "authority", string(encoded[40:80]), string(r.Authority().Root.Raw[:40])} {
			if bytes.Contains(b, []byte(text)) {
				t.Errorf("%s holds %q as it is", e.Name(), text)
			}
		}
	}
	// It is there after a restart, and another box's key does not open it.
	leaf := r.sees("")
	r.open()
	if !bytes.Equal(r.sees("").Raw, leaf.Raw) {
		t.Error("the leaf did not outlive a restart")
	}
}

func TestNET10_ADamagedFileIsKeptAndNothingIsBlocked(t *testing.T) {
	r := newRig(t)
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf", func() bool { return r.View().Serving })
	r.stop()
	path := filepath.Join(r.dir, file)
	b, err := os.ReadFile(path)
	r.must(err)
	b[len(b)/2] ^= 1
	r.must(os.WriteFile(path, b, 0o600))
	r.open()
	if v := r.View(); !r.isIdentity(boxName) || !strings.Contains(v.Problem, "do not open") {
		t.Errorf("%+v", v)
	}
	for name, err := range map[string]error{
		"ca": r.Choose(context.Background(), Choice{Source: CA}, r.record), "renew": r.Renew(r.record), "revoke": r.Revoke(t.Context(), r.record),
		"import": r.Import([]byte("x"), []byte("x"), r.record),
	} {
		if err == nil || !strings.Contains(err.Error(), "do not open") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
		t.Error("the damaged file was replaced")
	}
	r.must(r.Choose(context.Background(), Choice{Source: Self}, r.record))
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf again", func() bool { return r.View().Serving })
}

func TestNET10_NothingChangesWithoutTheAuditLog(t *testing.T) {
	r := newRig(t)
	r.mu.Lock()
	r.noAudit = errors.New("the disk is full")
	r.mu.Unlock()
	for _, c := range []Choice{{Source: CA}, {Source: Self}, {Source: ACME, ACME: ACMESettings{Names: []string{"gate.example.net"}, Agreed: true}}} {
		if err := r.Choose(context.Background(), c, r.record); err == nil {
			t.Errorf("%s was chosen", c.Source)
		}
	}
	if v := r.View(); v.Source != Self || v.Root != nil || len(v.History) != 0 {
		t.Errorf("%+v", v)
	}
	r.mu.Lock()
	r.noAudit = nil
	r.mu.Unlock()
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf", func() bool { return r.View().Serving })
	r.mu.Lock()
	r.noAudit = errors.New("the disk is full")
	r.mu.Unlock()
	serial := r.sees("").SerialNumber
	r.ahead.Store(int64(21 * 24 * time.Hour))
	r.wake()
	r.eventually("the failure", func() bool { return r.View().Trouble.Failures == 1 })
	if r.sees("").SerialNumber.Cmp(serial) != 0 {
		t.Error("a leaf that is not in the audit log is served")
	}
	if next := r.View().Trouble.Next; next.Before(r.now()) || next.After(r.now().Add(time.Hour)) {
		t.Errorf("the next try is at %s", next)
	}
}

func TestNET10_ChoicesAreJudged(t *testing.T) {
	r := newRig(t)
	acme := func(s ACMESettings) Choice { return Choice{Source: ACME, ACME: s} }
	for want, c := range map[string]Choice{
		"is not a source": {Source: "magic"}, "was brought yet": {Source: Brought}, "terms": acme(ACMESettings{Names: []string{"gate.example.net"}, Directory: "https://127.0.0.1:1/"}),
		"at least one host name": acme(ACMESettings{Agreed: true}), "https://": acme(ACMESettings{Agreed: true, Names: []string{"a.example"}, Directory: "http://x"}),
	} {
		var refused *Refusal
		if err := r.Choose(context.Background(), c, r.record); !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, err := range []error{r.Renew(r.record), r.Revoke(t.Context(), r.record), r.Import(nil, nil, r.record)} {
		var refused *Refusal
		if !errors.As(err, &refused) {
			t.Errorf("%v", err)
		}
	}
	if len(r.events) != 0 {
		t.Errorf("refusals are in the audit log: %v", r.events)
	}
}

func TestNET10_ChallengesOfOthersAreNotAnswered(t *testing.T) {
	r := newRig(t)
	c, err := tls.Dial("tcp", r.tls.String(), &tls.Config{InsecureSkipVerify: true, ServerName: boxName, NextProtos: []string{acmeProtocol}})
	if err == nil {
		c.Close()
		t.Error("acme-tls/1 is answered though nothing waits")
	}
	plain, err := tls.Dial("tcp", r.tls.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{acmeProtocol, "http/1.1"}})
	r.must(err)
	defer plain.Close()
	if p := plain.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("protocol %s", p)
	}
}
