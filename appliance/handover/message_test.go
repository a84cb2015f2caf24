package handover

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

var sample = Meta{
	Kind:   Web,
	Remote: netip.MustParseAddrPort("[2001:db8::7]:50000"),
	Local:  netip.MustParseAddrPort("192.0.2.1:443"),
	Scopes: []string{"console", "sites"},

	Accepted: 1<<40 + 7,
}

func TestMessageRefuses(t *testing.T) {
	good, err := appendMessage(nil, sample, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, _, err := parseMessage(good[:n]); !errors.Is(err, errMalformed) {
			t.Errorf("the first %d of %d bytes are taken: %v", n, len(good), err)
		}
	}
	alter := func(i int, v byte) []byte {
		b := bytes.Clone(good)
		b[i] = v
		return b
	}
	for name, b := range map[string][]byte{
		"another version":    alter(0, 1),
		"an unknown kind":    alter(1, byte(len(kinds))),
		"an odd address":     alter(2, 5),
		"bytes that follow":  append(bytes.Clone(good), 0),
		"a length too large": alter(len(good)-len("hello")-4, 0xFF),
	} {
		if _, _, err := parseMessage(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

func TestMessageNotWritten(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Meta)
		peeked int
	}{
		"unknown kind":    {func(m *Meta) { m.Kind = "ssh" }, 0},
		"too many scopes": {func(m *Meta) { m.Scopes = make([]string, maxScopes+1) }, 0},
		"empty scope":     {func(m *Meta) { m.Scopes = []string{""} }, 0},
		"long scope":      {func(m *Meta) { m.Scopes = []string{strings.Repeat("x", maxScope+1)} }, 0},
		"long peek":       {func(*Meta) {}, MaxPeeked + 1},
	} {
		m := sample
		c.change(&m)
		if _, err := appendMessage(nil, m, make([]byte, c.peeked)); err == nil {
			t.Errorf("%s: written, want an error", name)
		}
	}
}

func TestMessageLargestFits(t *testing.T) {
	m := sample
	m.Remote = netip.MustParseAddrPort("[fe80::1%" + strings.Repeat("z", 40) + "]:1")
	m.Local = m.Remote
	m.Scopes = nil
	for range maxScopes {
		m.Scopes = append(m.Scopes, strings.Repeat("s", maxScope))
	}
	b, err := appendMessage(nil, m, make([]byte, MaxPeeked))
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > maxHead+MaxPeeked {
		t.Errorf("%d bytes, the receiver has room for %d", len(b), maxHead+MaxPeeked)
	}
	got, peeked, err := parseMessage(b)
	if err != nil || !reflect.DeepEqual(got, m) || len(peeked) != MaxPeeked {
		t.Errorf("parse = %+v, %d bytes, %v", got, len(peeked), err)
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range []Meta{sample, {Kind: Agent}, {Kind: ACME, Remote: sample.Local, Local: sample.Local}} {
		b, err := appendMessage(nil, m, []byte("\x16\x03\x01"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, peeked, err := parseMessage(b)
		if err != nil {
			return
		}
		again, err := appendMessage(nil, m, peeked)
		if err != nil {
			t.Fatalf("what was taken cannot be written: %v", err)
		}
		// netip writes one form of what it reads; the meaning must be the same.
		m2, peeked2, err := parseMessage(again)
		if err != nil || !reflect.DeepEqual(m, m2) || !bytes.Equal(peeked, peeked2) {
			t.Fatalf("%+v became %+v: %v", m, m2, err)
		}
	})
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":          "192.0.2.7/32",
		"::ffff:192.0.2.7":   "192.0.2.7/32",
		"2001:db8:1:2:3::9":  "2001:db8:1:2::/64",
		"fe80::1%eth0":       "fe80::/64",
		"2001:db8:1:3::9999": "2001:db8:1:3::/64",
	} {
		if got := Source(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("Source(%s) = %s, want %s", in, got, want)
		}
	}
}
