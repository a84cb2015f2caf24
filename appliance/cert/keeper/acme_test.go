package keeper

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/cert/keeper/pebbletest"
	"gatehouse/appliance/control"
)

const quarter = 90 * 24 * 3600 // seconds

// order has Pebble give certificates for this machine's loopback address.
func (r *rig) order(p *pebbletest.Server, challenge string) {
	r.t.Helper()
	r.must(r.Choose(context.Background(), Choice{Source: ACME, ACME: ACMESettings{Directory: p.Directory, Roots: p.Roots, Email: "ann@example.com", Names: []string{"127.0.0.1"}, Challenge: challenge, Agreed: true}}, r.record))
}

func (r *rig) loopback() *tls.Certificate { return r.answers("", netip.MustParseAddr("127.0.0.1")) }

func TestNET10_ACMEIssueRenewRevoke(t *testing.T) {
	for _, challenge := range []string{"http-01", "tls-alpn-01"} {
		t.Run(challenge, func(t *testing.T) {
			r := newRig(t)
			p := pebbletest.Start(t, r.plain, r.tls, quarter)
			r.order(p, challenge)
			r.eventually("a certificate", func() bool { return r.View().Serving })
			first := r.loopback()
			if first.Leaf.VerifyHostname("127.0.0.1") != nil || !r.isIdentity(boxName) || !r.isIdentity(cert.IdentityName) {
				t.Errorf("%v is served; the box's own names are the identity's: %v", first.Leaf.IPAddresses, r.isIdentity(boxName))
			}
			v := r.View()
			if third := v.Certificate.From.Add(60 * 24 * time.Hour); v.Renewal.Sub(third).Abs() > time.Minute || v.Trouble.Text != "" || v.History[0].What != "issued" {
				t.Errorf("%+v", v)
			}
			r.mu.Lock()
			left := len(r.challenges)
			r.mu.Unlock()
			if left != 0 || len(r.alpn) != 0 {
				t.Error("an answered challenge is still there")
			}
			// It is there after a restart, and is not ordered again.
			orders := r.did("order certificate")
			r.open()
			if !bytes.Equal(r.loopback().Certificate[0], first.Certificate[0]) || r.did("order certificate") != orders {
				t.Error("the restart lost it")
			}
			r.must(r.Renew(r.record))
			r.eventually("another certificate", func() bool { return !bytes.Equal(r.loopback().Certificate[0], first.Certificate[0]) })
			second := r.loopback()
			if bytes.Equal(second.Leaf.RawSubjectPublicKeyInfo, first.Leaf.RawSubjectPublicKeyInfo) {
				t.Error("the renewed one has the old key")
			}
			// By itself, once it is time.
			r.ahead.Store(int64(61 * 24 * time.Hour))
			r.wake()
			r.eventually("the renewal in time", func() bool {
				return !bytes.Equal(r.loopback().Certificate[0], second.Certificate[0]) && r.did("use certificate") == 3
			})
			r.ahead.Store(0)
			last := r.loopback()
			r.must(r.Revoke(t.Context(), r.record))
			if !p.Revoked(last.Certificate[0]) || p.Revoked(first.Certificate[0]) {
				t.Error("the server does not know that it was revoked")
			}
			if v := r.View(); v.Source != Self || v.History[0].What != "revoked" || !bytes.Equal(r.loopback().Certificate[0], r.identity.Certificate[0]) {
				t.Errorf("after the revocation: %+v", v)
			}
			if r.did("revoke certificate") != 1 || r.did("renew certificate") != 1 {
				t.Error("the audit log misses something")
			}
		})
	}
}

func TestNET10_ACMEWithPort80Closed(t *testing.T) {
	r := newRig(t)
	p := pebbletest.Start(t, r.plain, r.tls, quarter)
	r.closed.Store(true)
	r.set(func(s *control.Status) { s.Firewall.Lists = true })
	r.eventually("lists on", func() bool { return r.View().Lists })
	r.order(p, "http-01")
	r.eventually("the failure", func() bool { return r.View().Trouble.Failures == 1 })
	v := r.View()
	for _, want := range []string{"could not reach port 80 of 127.0.0.1", "allowlists are on", "switch the lists off"} {
		if !strings.Contains(v.Trouble.Text, want) {
			t.Errorf("%q is not in: %s", want, v.Trouble.Text)
		}
	}
	if v.Serving || v.Trouble.Next.Sub(v.Trouble.At) != 10*time.Minute || !r.isIdentity(boxName) || v.History[0].What != "failed" {
		t.Errorf("%+v", v)
	}
	// No second try before its time, however often it looks.
	for range 3 {
		r.must(r.look(t.Context()))
	}
	if n := r.did("order certificate"); n != 1 {
		t.Errorf("%d orders", n)
	}
	// The pauses grow.
	r.ahead.Store(int64(11 * time.Minute))
	r.wake()
	r.eventually("the second failure", func() bool { return r.View().Trouble.Failures == 2 })
	if v := r.View(); v.Trouble.Next.Sub(v.Trouble.At) != 30*time.Minute {
		t.Errorf("the second pause is %s", v.Trouble.Next.Sub(v.Trouble.At))
	}
	// Opened, and asked for by a person: at once.
	r.closed.Store(false)
	r.must(r.Renew(r.record))
	r.eventually("the certificate", func() bool { return r.View().Serving })
	if v := r.View(); v.Trouble.Text != "" {
		t.Errorf("%+v", v.Trouble)
	}
}

func TestNET10_ACMEWaitsForTheClock(t *testing.T) {
	r := newRig(t)
	p := pebbletest.Start(t, r.plain, r.tls, quarter)
	r.set(func(s *control.Status) { s.Clock.Trusted = false })
	r.eventually("the doubt", func() bool { m, _ := r.seen(); return !m.trusted })
	r.order(p, "http-01")
	r.must(r.look(t.Context()))
	if v := r.View(); r.did("order certificate") != 0 || !strings.Contains(v.Problem, "postponed") {
		t.Errorf("ordered by a clock that nobody vouches for: %+v", v)
	}
	r.set(func(s *control.Status) { s.Clock.Trusted = true })
	r.eventually("a certificate", func() bool { return r.View().Serving })
	// Expired: the identity at once, and a new one when the server can be had.
	r.closed.Store(true)
	r.ahead.Store(int64(100 * 24 * time.Hour))
	r.must(r.look(t.Context()))
	if v := r.View(); v.Serving || !bytes.Equal(r.loopback().Certificate[0], r.identity.Certificate[0]) {
		t.Errorf("an expired one is served: %+v", v)
	}
}

func TestNET10_AnotherServerGetsAnotherAccount(t *testing.T) {
	r := newRig(t)
	p := pebbletest.Start(t, r.plain, r.tls, quarter)
	unread := r.Choose(context.Background(), Choice{Source: ACME, ACME: ACMESettings{Directory: p.Directory, Roots: p.Roots, Names: []string{"127.0.0.1"}}}, r.record)
	if unread == nil || !strings.Contains(unread.Error(), "They are at data:text/plain") {
		t.Errorf("the terms are not named: %v", unread)
	}
	r.order(p, "http-01")
	r.eventually("a certificate", func() bool { return r.View().Serving })
	account := bytes.Clone(r.kept.Account)
	r.order(p, "tls-alpn-01")
	if !bytes.Equal(account, r.kept.Account) {
		t.Error("the same server got another account")
	}
	other := pebbletest.Start(t, r.plain, r.tls, quarter)
	r.order(other, "http-01")
	if bytes.Equal(account, r.kept.Account) {
		t.Error("two servers know one account")
	}
	r.eventually("a certificate of the other", func() bool { return r.View().Serving })
}

// keyAndChain is a pair as a person would paste it.
func keyAndChain(t *testing.T, until time.Time, names ...string) (chain, key []byte) {
	t.Helper()
	return certtest.PEM(t, certtest.Self(t, certtest.Names(names...), certtest.Names("192.168.1.40"), certtest.Until(until)))
}

func TestNET10_BroughtOnesAreServedAndWarned(t *testing.T) {
	r := newRig(t)
	taken, takenKey := keyAndChain(t, time.Now().Add(60*24*time.Hour), cert.IdentityName)
	r.must(r.Import(taken, takenKey, r.record))
	if !r.isIdentity(cert.IdentityName) {
		t.Error("a certificate took the identity's name")
	}
	chain, key := keyAndChain(t, time.Now().Add(60*24*time.Hour), "gate.example.net")
	_, other := keyAndChain(t, time.Now().Add(time.Hour), "gate.example.net")
	if err := r.Import(chain, other, r.record); err == nil {
		t.Error("another's key was taken")
	}
	r.must(r.Import(chain, key, r.record))
	if v := r.View(); !v.Serving || v.Source != Brought || v.Problem != "" || r.isIdentity("gate.example.net") || r.isIdentity("") || !r.isIdentity(boxName) {
		t.Errorf("%+v", v)
	}
	r.eventually("its name is ours", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return strings.Join(r.names, " ") == "gate.example.net 192.168.1.40"
	})
	r.ahead.Store(int64(40 * 24 * time.Hour))
	if v := r.View(); !strings.Contains(v.Problem, "nothing renews it") || !v.Serving {
		t.Errorf("no warning three weeks before: %+v", v)
	}
	r.ahead.Store(int64(61 * 24 * time.Hour))
	if v := r.View(); v.Serving || !r.isIdentity("gate.example.net") {
		t.Errorf("expired and served: %+v", v)
	}
	if err := r.Import(chain, key, r.record); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired one was taken: %v", err)
	}
}

func TestNET10_FilesOfTheOperator(t *testing.T) {
	r := newRig(t)
	chain, key := keyAndChain(t, time.Now().Add(60*24*time.Hour), "gate.example.net")
	r.takeFiles(t.Context(), control.CertificateFiles{Version: 1, Named: true, Chain: chain, Key: key})
	if v := r.View(); v.Source != Files || !v.Serving || r.isIdentity("gate.example.net") {
		t.Fatalf("%+v", v)
	}
	good := r.sees("gate.example.net").Raw
	_, other := keyAndChain(t, time.Now().Add(time.Hour), "gate.example.net")
	for _, bad := range []control.CertificateFiles{{Named: true, Chain: chain, Key: other}, {Named: true, Problem: "no such file"}, {Named: true}} {
		r.takeFiles(t.Context(), bad)
		if v := r.View(); v.Problem == "" || !bytes.Equal(r.sees("gate.example.net").Raw, good) {
			t.Errorf("the last good one did not stay: %+v", v)
		}
	}
	if err := r.Choose(context.Background(), Choice{Source: CA}, r.record); err == nil || !strings.Contains(err.Error(), "configuration") {
		t.Errorf("%v", err)
	}
	chain, key = keyAndChain(t, time.Now().Add(90*24*time.Hour), "gate.example.net")
	r.takeFiles(t.Context(), control.CertificateFiles{Version: 2, Named: true, Chain: chain, Key: key})
	if v := r.View(); v.Problem != "" || bytes.Equal(r.sees("gate.example.net").Raw, good) {
		t.Errorf("the new one is not used: %+v", v)
	}
	if b, err := r.c.Ports.Status(t.Context()); err != nil || b.Name != boxName {
		t.Error(err)
	}
	if r.files.Key != nil || r.files.Chain != nil {
		t.Error("the key is kept twice")
	}
}
