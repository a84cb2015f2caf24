package reach

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// public is a host key of a kind.
func public(t *testing.T, kind string) ssh.PublicKey {
	t.Helper()
	var k any
	var err error
	switch kind {
	case ssh.KeyAlgoRSA:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case ssh.KeyAlgoECDSA256:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return s.PublicKey()
}

// A target has several keys and shows the one that is asked for first: that has
// to be the pinned one.
func TestSES5_PinnedKindIsAskedForFirst(t *testing.T) {
	for kind, first := range map[string]string{
		ssh.KeyAlgoRSA: ssh.KeyAlgoRSASHA512, ssh.KeyAlgoECDSA256: ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519: ssh.KeyAlgoED25519, "": ssh.KeyAlgoED25519,
	} {
		var pinned [][]byte
		if kind != "" {
			pinned = [][]byte{public(t, kind).Marshal()}
		}
		l := New(Config{Material: attend.Material{HostKeys: pinned}, Times: Usual()})
		all := l.algorithms()
		if all[0] != first || len(all) != 6 {
			t.Errorf("%s: %v", kind, all)
		}
		for _, a := range all {
			if strings.Contains(a, "cert") || a == ssh.KeyAlgoRSA {
				t.Errorf("%s is asked for", a)
			}
		}
	}
	// What is pinned and cannot be read matches nothing, and is not "nothing pinned".
	l := New(Config{Material: attend.Material{HostKeys: [][]byte{[]byte("no key")}}})
	if l.right(public(t, "")) || !strings.Contains(l.fingerprints(), "cannot be read") {
		t.Error("a broken pin")
	}
}

func TestSES5_AddressesAreJudged(t *testing.T) {
	resolve := func(texts ...string) func(context.Context, string) ([]netip.Addr, error) {
		return func(context.Context, string) ([]netip.Addr, error) {
			var all []netip.Addr
			for _, s := range texts {
				all = append(all, netip.MustParseAddr(s))
			}
			return all, nil
		}
	}
	nas := session.Target{Name: "NAS", Kind: session.TCP, Host: "nas.lan", Port: 9}
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprintf("192.0.2.%d", i+1)
	}
	for name, c := range map[string]struct {
		target session.Target
		found  []string
		want   string
	}{
		"good":          {nas, []string{"192.0.2.9", "2001:db8::9"}, "[192.0.2.9 2001:db8::9]"},
		"v4 in v6":      {nas, []string{"::ffff:192.0.2.9"}, "[192.0.2.9]"},
		"some":          {nas, []string{"127.0.0.1", "192.0.2.9", "192.0.2.1", "::1"}, "[192.0.2.9]"},
		"its own":       {nas, []string{"192.0.2.1"}, ""},
		"loopback":      {nas, []string{"127.0.0.1", "::ffff:127.0.0.1"}, ""},
		"none":          {nas, nil, ""},
		"by address":    {session.Target{Kind: session.TCP, Host: "192.0.2.9", Port: 9}, nil, "[192.0.2.9]"},
		"own, by digit": {session.Target{Kind: session.TCP, Host: "192.0.2.1", Port: 9}, nil, ""},
		"link-local":    {session.Target{Kind: session.TCP, Host: "169.254.169.254", Port: 80}, nil, ""},
		"the box":       {session.Target{Kind: session.Box}, nil, ""},
		"many":          {nas, many, fmt.Sprint(many[1 : 1+maxAddresses])},
	} {
		l := New(Config{
			Target: c.target, Resolve: resolve(c.found...), Own: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
			Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("not in this test") },
		})
		got, err := l.addresses(t.Context(), c.target)
		var r *wire.Refusal
		if c.want == "" && !errors.As(err, &r) || c.want != "" && fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A banner comes in lines, harmless, and not without end.
func TestSES5_BannersAreHarmless(t *testing.T) {
	var shown string
	a := &auth{ask: Asker{Banner: func(s string) { shown += s }}}
	for range 100 {
		_ = a.banner("\x1b]0;x\x07evil\u202e\r\nlogin as: \x1b[2A" + strings.Repeat("y", 1000))
	}
	if len(shown) > 3*maxBanner || strings.ContainsAny(strings.ReplaceAll(shown, "\r\n", ""), "\x1b\x07\r\n\u202e") {
		t.Errorf("%d bytes: %.80q", len(shown), shown)
	}
}
