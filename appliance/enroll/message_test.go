package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
)

var at = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func fill(v byte) (n [32]byte) {
	for i := range n {
		n[i] = v
	}
	return n
}

// deviceDER is a P-256 public key: the base point itself.
func deviceDER(t testing.TB) []byte {
	t.Helper()
	p := elliptic.P256().Params()
	raw := append([]byte{4}, append(p.Gx.FillBytes(make([]byte, 32)), p.Gy.FillBytes(make([]byte, 32))...)...)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func enrolSample(t testing.TB) Enrol {
	return Enrol{
		Site: "000102030405060708090a0b0c0d0e0f", Device: deviceDER(t), Time: at,
		Nonce: fill(0xA1), Channel: fill(0xC1),
		Metadata: Metadata{Name: "gatehouse-7f3k", Version: "0.1.0", System: "linux/amd64", Hardware: "Example NAS 2"},
	}
}

func sealEnrol(t testing.TB, k Keys, e Enrol) []byte {
	t.Helper()
	b, err := k.SealEnrol(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHUB2_EnrolRefuses(t *testing.T) {
	k := keysOf(t, fixedKey())
	other := fixedKey()
	other[0] = 0xFF
	stranger := keysOf(t, other)
	impostor := stranger
	impostor.ID = k.ID // knows the public name, not the key
	e := enrolSample(t)
	reseal := func(change func(*rawEnrol)) []byte {
		r := rawEnrol{Version, k.ID, e.Site, e.Device, e.Time.Unix(), e.Nonce[:], e.Metadata, e.Channel[:]}
		change(&r)
		b, err := k.seal(labelEnrol, r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := sealEnrol(t, k, e)
	answer, err := k.SealAnswer(e, at, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrongCurve, err := x509.MarshalPKIXPublicKey(p384.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body []byte
		now  time.Time
		ch   Channel
		want error
	}{
		"another key":             {sealEnrol(t, stranger, e), at, e.Channel, ErrMAC},
		"name without the key":    {sealEnrol(t, impostor, e), at, e.Channel, ErrMAC},
		"another connection":      {good, at, fill(0xC2), ErrExporter},
		"clock behind":            {good, at.Add(MaxSkew + time.Second), e.Channel, ErrSkew},
		"clock ahead":             {good, at.Add(-MaxSkew - time.Second), e.Channel, ErrSkew},
		"the hub's own answer":    {answer, at, e.Channel, ErrMAC},
		"another version":         {reseal(func(r *rawEnrol) { r.Version = 2 }), at, e.Channel, ErrVersion},
		"another id inside":       {reseal(func(r *rawEnrol) { r.ID[0] ^= 1 }), at, e.Channel, ErrMalformed},
		"short nonce":             {reseal(func(r *rawEnrol) { r.Nonce = r.Nonce[1:] }), at, e.Channel, ErrMalformed},
		"short exporter":          {reseal(func(r *rawEnrol) { r.Exporter = nil }), at, e.Channel, ErrMalformed},
		"odd site id":             {reseal(func(r *rawEnrol) { r.Site = "../../etc" }), at, e.Channel, ErrMalformed},
		"no device key":           {reseal(func(r *rawEnrol) { r.Device = nil }), at, e.Channel, ErrMalformed},
		"device key of P-384":     {reseal(func(r *rawEnrol) { r.Device = wrongCurve }), at, e.Channel, ErrMalformed},
		"a name of two lines":     {reseal(func(r *rawEnrol) { r.Metadata.Name = "a\nb" }), at, e.Channel, ErrMalformed},
		"a name right to left":    {reseal(func(r *rawEnrol) { r.Metadata.Name = "a\u202eb" }), at, e.Channel, ErrMalformed},
		"a name of 129 bytes":     {reseal(func(r *rawEnrol) { r.Metadata.Name = strings.Repeat("a", 129) }), at, e.Channel, ErrMalformed},
		"not JSON":                {[]byte("enrol me"), at, e.Channel, ErrMalformed},
		"nothing":                 {nil, at, e.Channel, ErrMalformed},
		"something that follows":  {append(bytes.Clone(good), '{', '}'), at, e.Channel, ErrMalformed},
		"an unknown field":        {bytes.Replace(good, []byte(`{"id"`), []byte(`{"admin":true,"id"`), 1), at, e.Channel, ErrMalformed},
		"one byte over the limit": {append(bytes.Clone(good), bytes.Repeat([]byte(" "), MaxMessage+1-len(good))...), at, e.Channel, ErrMalformed},
	} {
		seen := NewReplay()
		if _, err := k.OpenEnrol(c.body, c.now, c.ch, seen); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		// What was refused must not have spent the nonce of the honest message.
		if _, err := k.OpenEnrol(good, at, e.Channel, seen); err != nil {
			t.Errorf("after %s the good message is refused: %v", name, err)
		}
	}
	seen := NewReplay()
	if _, err := k.OpenEnrol(good, at, e.Channel, seen); err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenEnrol(good, at.Add(MaxSkew), e.Channel, seen); !errors.Is(err, ErrReplay) {
		t.Errorf("the same message again: %v", err)
	}
}

// TestHUB2_EveryBitCounts flips every bit of a message: none may pass.
func TestHUB2_EveryBitCounts(t *testing.T) {
	k := keysOf(t, fixedKey())
	e := enrolSample(t)
	good := sealEnrol(t, k, e)
	for i := range 8 * len(good) {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		got, err := k.OpenEnrol(b, at, e.Channel, NewReplay())
		if err == nil {
			t.Errorf("bit %d flipped is taken: %+v", i, got)
		}
	}
}

func TestHUB2_AnswerRefuses(t *testing.T) {
	k := keysOf(t, fixedKey())
	e := enrolSample(t)
	seal := func(change func(*Enrol), interval time.Duration) []byte {
		x := e
		change(&x)
		b, err := k.SealAnswer(x, at, interval)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	none := func(*Enrol) {}
	other := fixedKey()
	other[5] = 0
	stranger := keysOf(t, other)
	forged, err := stranger.SealAnswer(e, at, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body []byte
		want error
	}{
		"made by a stranger":    {forged, ErrMAC},
		"our own message":       {sealEnrol(t, k, e), ErrMAC},
		"to another message":    {seal(func(x *Enrol) { x.Nonce[0] ^= 1 }, time.Second), ErrReplay},
		"to another site":       {seal(func(x *Enrol) { x.Site = strings.Repeat("f", 32) }, time.Second), ErrReplay},
		"on another connection": {seal(func(x *Enrol) { x.Channel[0] ^= 1 }, time.Second), ErrExporter},
		"no interval":           {seal(none, 0), ErrMalformed},
		"a long interval":       {seal(none, 3601*time.Second), ErrMalformed},
		"a page of HTML":        {[]byte("<html>"), ErrMalformed},
	} {
		if _, err := k.OpenAnswer(c.body, e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	a, err := k.OpenAnswer(seal(none, 10*time.Second), e)
	if err != nil || a.Interval != 10*time.Second || !a.Time.Equal(at) || a.Nonce != e.Nonce {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestHUB2_ChannelNamesTheConnection takes both ends of two TLS connections.
func TestHUB2_ChannelNamesTheConnection(t *testing.T) {
	if _, err := ChannelOf(nil); !errors.Is(err, ErrExporter) {
		t.Errorf("no TLS: %v", err)
	}
	if _, err := ChannelOf(&tls.ConnectionState{Version: tls.VersionTLS12, HandshakeComplete: true}); !errors.Is(err, ErrExporter) {
		t.Errorf("TLS 1.2: %v", err)
	}
	own := certtest.Self(t)
	ends := func() (Channel, Channel) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		client := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
		server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{own}, SessionTicketsDisabled: true})
		done := make(chan error, 1)
		go func() { done <- server.Handshake() }()
		if err := errors.Join(client.Handshake(), <-done); err != nil {
			t.Fatal(err)
		}
		cs, ss := client.ConnectionState(), server.ConnectionState()
		c, err1 := ChannelOf(&cs)
		s, err2 := ChannelOf(&ss)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return c, s
	}
	c1, s1 := ends()
	c2, _ := ends()
	if c1 != s1 {
		t.Error("the two ends of one connection differ")
	}
	if c1 == c2 {
		t.Error("two connections have one value")
	}
}

func FuzzOpenEnrol(f *testing.F) {
	k := keysOf(f, fixedKey())
	e := enrolSample(f)
	f.Add(sealEnrol(f, k, e))
	f.Add([]byte(`{"id":"","message":"e30=","mac":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := k.OpenEnrol(b, at, e.Channel, NewReplay()); err != nil {
			return
		}
		if id, err := Claims(b); err != nil || id != k.ID {
			t.Fatalf("opened, but it claims %s, %v", id, err)
		}
	})
}

// FuzzInside fuzzes what only a site with the key can send.
func FuzzInside(f *testing.F) {
	k := keysOf(f, fixedKey())
	e := enrolSample(f)
	m, err := json.Marshal(rawEnrol{Version, k.ID, e.Site, e.Device, e.Time.Unix(), e.Nonce[:], e.Metadata, e.Channel[:]})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m)
	f.Fuzz(func(t *testing.T, m []byte) {
		b, err := json.Marshal(sealed{k.ID, m, authenticate(k.MAC[:], labelEnrol, k.ID[:], m)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.OpenEnrol(b, at, e.Channel, NewReplay())
		if err != nil {
			return
		}
		if _, err := k.SealEnrol(got); err != nil {
			t.Fatalf("what was taken would not be sent: %v", err)
		}
	})
}
