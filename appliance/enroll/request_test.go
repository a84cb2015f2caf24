package enroll

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"
)

func requestSample() Request {
	return Request{Method: "POST", Path: PathReport, Body: []byte(`{"version":1}`), Channel: fill(0xC1)}
}

func TestHUB2_RequestRefuses(t *testing.T) {
	k := keysOf(t, fixedKey())
	other := fixedKey()
	other[0] = 9
	stranger := keysOf(t, other)
	good := k.Authorize(requestSample(), at, fill(0xB1))
	for name, c := range map[string]struct {
		header string
		change func(*Request)
		now    time.Time
		want   error
	}{
		"another key":        {stranger.Authorize(requestSample(), at, fill(0xB1)), func(*Request) {}, at, ErrMAC},
		"another method":     {good, func(r *Request) { r.Method = "PUT" }, at, ErrMAC},
		"another path":       {good, func(r *Request) { r.Path += "?x" }, at, ErrMAC},
		"another body":       {good, func(r *Request) { r.Body = append(r.Body, ' ') }, at, ErrMAC},
		"another connection": {good, func(r *Request) { r.Channel[0] ^= 1 }, at, ErrMAC},
		"too late":           {good, func(*Request) {}, at.Add(MaxSkew + time.Second), ErrSkew},
		"too early":          {good, func(*Request) {}, at.Add(-MaxSkew - time.Second), ErrSkew},
	} {
		a, err := ParseAuthorization(c.header)
		if err != nil {
			t.Fatal(err)
		}
		r := requestSample()
		c.change(&r)
		if err := k.Verify(a, r, c.now, NewReplay()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	seen := NewReplay()
	a, err := ParseAuthorization(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(a, requestSample(), at, seen); err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(a, requestSample(), at, seen); !errors.Is(err, ErrReplay) {
		t.Errorf("the same request again: %v", err)
	}
}

// TestRequestPartsDoNotRun shows that bytes cannot move from one signed part to the next.
func TestRequestPartsDoNotRun(t *testing.T) {
	k := keysOf(t, fixedKey())
	a, b := requestSample(), requestSample()
	a.Method, a.Path = "PO", "ST/x"
	b.Method, b.Path = "POST", "/x"
	if k.Authorize(a, at, fill(1)) == k.Authorize(b, at, fill(1)) {
		t.Error("two requests have one MAC")
	}
}

func TestAuthorizationForm(t *testing.T) {
	k := keysOf(t, fixedKey())
	good := k.Authorize(requestSample(), at, fill(0xB1))
	f := strings.Split(good, " ")
	with := func(i int, s string) string {
		g := append([]string(nil), f...)
		g[i] = s
		return strings.Join(g, " ")
	}
	for name, h := range map[string]string{
		"empty":            "",
		"another scheme":   with(0, "Bearer"),
		"no MAC":           strings.Join(f[:4], " "),
		"a sixth part":     good + " x",
		"two spaces":       strings.Replace(good, " ", "  ", 1),
		"time with sign":   with(2, "+"+f[2]),
		"time with zero":   with(2, "0"+f[2]),
		"time not decimal": with(2, "1e9"),
		"short nonce":      with(3, f[3][2:]),
		"upper case":       with(4, strings.ToUpper(f[4])),
		"short MAC":        with(4, f[4][2:]),
		"long":             good + strings.Repeat("0", 512),
	} {
		if _, err := ParseAuthorization(h); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHUB2_ReplayIsBoundedAndFailsClosed(t *testing.T) {
	r := NewReplay()
	k := keysOf(t, fixedKey())
	nonce := func(i int) (n Nonce) {
		binary.BigEndian.PutUint64(n[:], uint64(i))
		return n
	}
	for i := range maxNonces {
		if err := r.Check(k.ID, nonce(i), at, at); err != nil {
			t.Fatalf("nonce %d: %v", i, err)
		}
	}
	if err := r.Check(k.ID, nonce(maxNonces), at, at); !errors.Is(err, ErrReplay) {
		t.Errorf("one over the limit: %v", err)
	}
	if err := r.Check(k.ID, nonce(maxNonces), at, at.Add(MaxSkew)); !errors.Is(err, ErrReplay) {
		t.Errorf("one over the limit, as late as can be: %v; nonces were forgotten while their messages are still taken", err)
	}
	var neighbour ID
	if err := r.Check(neighbour, nonce(0), at, at); err != nil {
		t.Errorf("another site is refused because of the first: %v", err)
	}
	// A nonce is remembered until its message is too old to be taken.
	if err := r.Check(k.ID, nonce(0), at, at.Add(MaxSkew)); !errors.Is(err, ErrReplay) {
		t.Errorf("after 300 s: %v", err)
	}
	later := at.Add(MaxSkew + time.Second)
	if err := r.Check(k.ID, nonce(0), at, later); !errors.Is(err, ErrSkew) {
		t.Errorf("after 301 s: %v", err)
	}
	if err := r.Check(k.ID, nonce(maxNonces), later, later); err != nil {
		t.Errorf("there is room again after 301 s: %v", err)
	}
	for i := range maxKeys {
		var id ID
		binary.BigEndian.PutUint64(id[:], uint64(i)+1)
		r.Check(id, nonce(0), later, later)
	}
	if len(r.keys) > maxKeys {
		t.Errorf("%d keys are remembered", len(r.keys))
	}
	var last ID
	last[0] = 0xFF
	if err := r.Check(last, nonce(0), later, later); !errors.Is(err, ErrReplay) {
		t.Errorf("a key over the limit: %v", err)
	}
	much := later.Add(2 * MaxSkew)
	if err := r.Check(last, nonce(0), much, much); err != nil {
		t.Errorf("old keys were not forgotten: %v", err)
	}
}

func FuzzAuthorization(f *testing.F) {
	k := keysOf(f, fixedKey())
	f.Add(k.Authorize(requestSample(), at, fill(0xB1)))
	f.Add(Scheme + " a 1 b c")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAuthorization(s)
		if err != nil {
			return
		}
		if err := k.Verify(a, requestSample(), a.Time, NewReplay()); err == nil &&
			s != k.Authorize(requestSample(), a.Time, a.nonce) {
			t.Fatalf("another form of the header is taken: %q", s)
		}
	})
}
