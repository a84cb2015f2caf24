package gateway

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/handover"
)

// clientHelloOf is what crypto/tls sends for these protocols.
func clientHelloOf(t testing.TB, protocols ...string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		tls.Client(a, &tls.Config{InsecureSkipVerify: true, ServerName: "box", NextProtos: protocols}).Handshake()
		a.Close()
	}()
	head := make([]byte, recordHead)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// split puts one record's content into records of at most size bytes.
func split(record []byte, size int) []byte {
	var out []byte
	for part := range slices.Chunk(record[recordHead:], size) {
		out = append(append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

// parse feeds b in pieces of a size and gives the protocols.
func parse(b []byte, size int) (protocols []string, done bool, err error) {
	var h hello
	for part := range slices.Chunk(b, size) {
		h.raw = append(h.raw, part...)
		if done, err = h.feed(); err != nil || done {
			break
		}
	}
	if err == nil && done {
		protocols, err = h.protocols()
	}
	return protocols, done, err
}

// rebuild changes a ClientHello's body and puts right the lengths around it.
func rebuild(record []byte, change func(body []byte) []byte) []byte {
	body := change(bytes.Clone(record[recordHead+4:]))
	msg := append([]byte{clientHello, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{recordHandshake, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

// withALPN is a minimal ClientHello with these ALPN extensions, raw.
func withALPN(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0) // no session, one suite, no compression
	var ext []byte
	for _, e := range extensions {
		ext = append(append(ext, 0, extensionALPN, byte(len(e)>>8), byte(len(e))), e...)
	}
	body = append(append(body, byte(len(ext)>>8), byte(len(ext))), ext...)
	return rebuild(make([]byte, recordHead+4), func([]byte) []byte { return body })
}

func alpn(protocols ...string) []byte {
	var list []byte
	for _, p := range protocols {
		list = append(append(list, byte(len(p))), p...)
	}
	return append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
}

func TestHelloRefuses(t *testing.T) {
	good := clientHelloOf(t, "h2")
	record := func(kind, major byte, size int, body []byte) []byte {
		return append([]byte{kind, major, 1, byte(size >> 8), byte(size)}, body...)
	}
	for name, b := range map[string][]byte{
		"HTTP on 443":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"SSH":                      []byte("SSH-2.0-x\r\n"),
		"one wrong byte":           {0x17},
		"SSL 2":                    {0x80, 0x2E, 1, 3, 1},
		"major version 2":          {0x16, 2},
		"empty record":             record(22, 3, 0, nil),
		"record over 16384":        record(22, 3, maxRecord+1, nil),
		"ServerHello":              record(22, 3, 4, []byte{2, 0, 0, 0}),
		"ServerHello, first bytes": record(22, 3, 4000, []byte{2, 0}),
		"over 64 KiB announced":    record(22, 3, 4, []byte{1, 1, 0, 0}),
		"a second message in it":   append(record(22, 3, len(good)-recordHead+1, good[recordHead:]), 0),
		"alert between the parts":  append(split(good, 50)[:55], 21, 3, 3, 0, 2, 1, 0),
		"truncated inside":         rebuild(good, func(b []byte) []byte { return b[:40] }),
		"bytes at the end":         rebuild(good, func(b []byte) []byte { return append(b, 0) }),
		"session id of 33":         rebuild(good, func(b []byte) []byte { b[34] = 33; return b }),
		"odd suites":               rebuild(good, func(b []byte) []byte { b[36+int(b[34])] ^= 1; return b }),
		"nothing but the version":  rebuild(good, func(b []byte) []byte { return b[:2] }),
		"no ALPN list":             withALPN(nil),
		"empty ALPN list":          withALPN([]byte{0, 0}),
		"empty protocol":           withALPN([]byte{0, 1, 0}),
		"protocol too long":        withALPN([]byte{0, 2, 9, 'h'}),
		"ALPN list too long":       withALPN([]byte{0, 9, 2, 'h', '2'}),
		"bytes after the list":     withALPN(append(alpn("h2"), 0)),
		"two ALPN extensions":      withALPN(alpn("h2"), alpn("gatehouse-tunnel/1")),
	} {
		for _, size := range []int{1, 7, len(b)} {
			if p, _, err := parse(b, size); !errors.Is(err, errHello) {
				t.Errorf("%s in pieces of %d: %q, %v, want a refusal", name, size, p, err)
			}
		}
	}
}

func TestHelloIsNotDoneEarly(t *testing.T) {
	good := split(clientHelloOf(t, "h2", "http/1.1"), 100)
	for n := range good {
		if _, done, err := parse(good[:n], max(n, 1)); done || err != nil {
			t.Fatalf("the first %d of %d bytes: done %v, %v", n, len(good), done, err)
		}
	}
}

// TestHelloInPieces sends it in records and reads of every small size.
func TestHelloInPieces(t *testing.T) {
	want := []string{"h2", "http/1.1"}
	good := clientHelloOf(t, want...)
	early := append(bytes.Clone(good), 0x14, 3, 3, 0, 1, 1) // what may follow before an answer
	for _, b := range [][]byte{good, split(good, 1), split(good, 3), split(good, 200), early} {
		for _, size := range []int{1, 2, 5, 64, len(b)} {
			got, done, err := parse(b, size)
			if err != nil || !done || !slices.Equal(got, want) {
				t.Errorf("%d bytes in pieces of %d: %q, %v, %v", len(b), size, got, done, err)
			}
		}
	}
	if p, done, err := parse(clientHelloOf(t), 10); err != nil || !done || p != nil {
		t.Errorf("without ALPN: %q, %v, %v", p, done, err)
	}
	if p, _, err := parse(withALPN(alpn("\x0a\x0a", "h2", "\xda\xda", "\x0a\x1a")), 10); err != nil || !slices.Equal(p, []string{"h2", "\x0a\x1a"}) {
		t.Errorf("with GREASE: %q, %v", p, err)
	}
	bare := rebuild(make([]byte, recordHead+4), func([]byte) []byte {
		return append(append([]byte{3, 3}, make([]byte, 32)...), 0, 0, 2, 0x13, 1, 1, 0)
	})
	if p, done, err := parse(bare, 10); err != nil || !done || p != nil {
		t.Errorf("without extensions: %q, %v, %v", p, done, err)
	}
}

func TestDispatch(t *testing.T) {
	for _, c := range []struct {
		protocols string
		kind      handover.Kind
		alert     byte
	}{
		{"gatehouse-tunnel/1", "", alertNoApplicationProtocol},
		{"gatehouse-relay/2", "", alertNoApplicationProtocol},
		{"gatehouse-relay/1", meeting, 0},
		{"gatehouse-tunnel/1 h2", "", alertIllegalParameter},
		{"h2 gatehouse-relay/1", "", alertIllegalParameter},
		{"gatehouse-tunnel/1 gatehouse-relay/1", "", alertIllegalParameter},
		{"h2 http/1.1 gatehouse-anything", "", alertIllegalParameter},
		{"ssh", "", alertNoApplicationProtocol},
		{"H2", "", alertNoApplicationProtocol},
		{"acme-tls/1 ssh", "", alertNoApplicationProtocol},
		{"", handover.Web, 0},
		{"h2", handover.Web, 0},
		{"http/1.1", handover.Web, 0},
		{"h2 http/1.1", handover.Web, 0},
		{"h3 h2", handover.Web, 0},
		{"acme-tls/1", handover.ACME, 0},
	} {
		kind, alert := dispatch(strings.Fields(c.protocols))
		if kind != c.kind || alert != c.alert {
			t.Errorf("%q goes to %q, alert %d; want %q, %d", c.protocols, kind, alert, c.kind, c.alert)
		}
	}
}

var errStop = errors.New("stop")

// oracle is what crypto/tls sees in the same bytes.
func oracle(b []byte) (protocols []string, ok bool) {
	err := tls.Server(&canned{r: bytes.NewReader(b)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			protocols, ok = h.SupportedProtos, true
			return nil, errStop
		},
	}).Handshake()
	return protocols, ok && errors.Is(err, errStop)
}

type canned struct {
	net.Conn
	r io.Reader
}

func (c *canned) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) Close() error                     { return nil }

// FuzzHello holds the parser against crypto/tls, which the console uses: what
// goes to the console must look the same to both.
func FuzzHello(f *testing.F) {
	for _, p := range [][]string{nil, {"h2"}, {"h2", "http/1.1"}, {"gatehouse-tunnel/1"}, {"acme-tls/1"}} {
		b := clientHelloOf(f, p...)
		f.Add(b, uint16(1))
		f.Add(split(b, 30), uint16(100))
	}
	f.Add(withALPN(alpn("h2"), alpn("h2")), uint16(9))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		if len(b) > maxHelloBytes {
			return
		}
		got, done, err := parse(b, int(size)+1)
		whole, done2, err2 := parse(b, len(b)+1)
		if done != done2 || (err == nil) != (err2 == nil) || !slices.Equal(got, whole) {
			t.Fatalf("in pieces %q %v %v, whole %q %v %v", got, done, err, whole, done2, err2)
		}
		if err != nil || !done {
			return
		}
		want, ok := oracle(b)
		want = slices.DeleteFunc(slices.Clone(want), func(p string) bool { return grease([]byte(p)) })
		if ok && !slices.Equal(got, want) {
			t.Fatalf("we see %q, crypto/tls sees %q", got, want)
		}
	})
}
