package browser

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/session"
)

// wired is a data channel in memory.
type wired struct {
	in, out chan message
	closed  chan struct{}
	once    *sync.Once
}

type message struct {
	b    []byte
	text bool
}

func wires() (here, there *wired) {
	a, b, closed, once := make(chan message, 1000), make(chan message, 1000), make(chan struct{}), new(sync.Once)
	return &wired{a, b, closed, once}, &wired{b, a, closed, once}
}

func (w *wired) ReadDataChannel(p []byte) (int, bool, error) {
	select {
	case m := <-w.in:
		return copy(p, m.b), m.text, nil
	default:
	}
	select {
	case m := <-w.in:
		return copy(p, m.b), m.text, nil
	case <-w.closed:
		return 0, false, io.EOF
	}
}

func (w *wired) WriteDataChannel(p []byte, text bool) (int, error) {
	w.out <- message{bytes.Clone(p), text}
	return len(p), nil
}

func (w *wired) SetReadDeadline(time.Time) error { return nil }
func (w *wired) Close() error                    { w.once.Do(func() { close(w.closed) }); return nil }

// A browser that does not keep to the window, or says what is not said, loses
// the stream; nothing of it is kept beyond the window.
func TestSES5_StreamsOfStrangeBrowsers(t *testing.T) {
	for name, sent := range map[string][]message{
		"more than the window":   {{make([]byte, maxMessage), false}, {bytes.Repeat([]byte("x"), maxMessage), false}},
		"another word":           {{[]byte("hello"), true}},
		"an empty word":          {{nil, true}},
		"read what was not sent": {{[]byte("read 1"), true}},
		"read less than before":  {{[]byte("read -1"), true}},
		"no number":              {{[]byte("read x"), true}},
		"bytes after the end":    {{[]byte("end"), true}, {[]byte("x"), false}},
		"the end twice":          {{[]byte("end"), true}, {[]byte("end"), true}},
	} {
		here, there := wires()
		if name == "more than the window" {
			for range Window/maxMessage - 1 {
				sent = append(sent, sent[1])
			}
		}
		for _, m := range sent {
			there.WriteDataChannel(m.b, m.text)
		}
		s := newStream(here)
		done := make(chan struct{})
		go func() { s.pump(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: taken", name)
		}
		if s.in.Len() > Window {
			t.Errorf("%s: %d bytes are kept", name, s.in.Len())
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who does not read stops who writes, at the window and not later.
func TestSES5_WriterWaitsForTheReader(t *testing.T) {
	here, there := wires()
	s, other := newStream(here), newStream(there)
	go s.pump()
	go other.pump()
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 4*Window))
		done <- err
	}()
	waitFor(t, func() bool { other.mu.Lock(); defer other.mu.Unlock(); return other.in.Len() == Window })
	select {
	case err := <-done:
		t.Fatalf("written past the window: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if n, err := io.ReadFull(other, make([]byte, 4*Window)); err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a channel that closed without a word: %v", err)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

const goodOffer = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n" +
	"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n" +
	"a=candidate:1 1 udp 2113937151 e9e66d9e-a939-4f15-8208-a38924606f53.local 48113 typ host generation 0\r\n" +
	"a=candidate:2 1 tcp 1518280447 e9e66d9e-a939-4f15-8208-a38924606f53.local 9 typ host tcptype active\r\n" +
	"a=candidate:3 1 udp 1677729535 203.0.113.9 5000 typ srflx raddr 0.0.0.0 rport 0\r\n" +
	"a=ice-ufrag:yvFN\r\na=ice-pwd:x7XW0sZJ8cZl4xXgYq0aCsH3\r\na=ice-options:trickle\r\nFINGERPRINT\r\na=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n"

func TestSES2_OffersRefused(t *testing.T) {
	key := session.Key{0xab, 1}
	digits := strings.ToUpper(key.String())
	var pairs []string
	for i := 0; i < len(digits); i += 2 {
		pairs = append(pairs, digits[i:i+2])
	}
	print := "a=fingerprint:sha-256 " + strings.Join(pairs, ":")
	good := strings.Replace(goodOffer, "FINGERPRINT", print, 1)
	o, err := readOffer(good, key)
	if err != nil || o.ufrag != "yvFN" || o.password != "x7XW0sZJ8cZl4xXgYq0aCsH3" || o.mid != "0" || len(o.ports) != 1 || o.ports[0] != 48113 {
		t.Fatalf("%+v, %v", o, err)
	}
	swap := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the offer has no %q", old)
		}
		return strings.ReplaceAll(good, old, with)
	}
	for name, sdp := range map[string]string{
		"nothing": "", "no certificate": swap(print+"\r\n", ""), "another certificate": swap(print, strings.Replace(print, "AB", "AC", 1)),
		"two certificates": swap(print, print+"\r\n"+strings.Replace(print, "AB", "AC", 1)), "by SHA-1": swap("sha-256", "sha-1"),
		"a short print": swap(print, print[:40]), "no print": swap(print, "a=fingerprint"),
		"sound": swap("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "m=audio 9 UDP/TLS/RTP/SAVPF 111"), "a second section": good + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n",
		"no section": swap("m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", ""), "it would begin": swap("setup:actpass", "setup:active"), "no setup": swap("a=setup:actpass\r\n", ""),
		"two names": good + "a=ice-ufrag:abcd\r\n", "two passwords": good + "a=ice-pwd:abcd\r\n", "no name": swap("a=ice-ufrag:yvFN\r\n", ""), "no password": swap("a=ice-pwd:x7XW0sZJ8cZl4xXgYq0aCsH3\r\n", ""),
		"a strange mid": swap("a=mid:0", "a=mid:\x01"), "a long mid": swap("a=mid:0", "a=mid:"+strings.Repeat("x", 300)), "too long": good + strings.Repeat("a=x\r\n", maxOffer/4),
	} {
		if o, err := readOffer(sdp, key); err == nil {
			t.Errorf("%s: taken as %+v", name, o)
		}
	}
	many := good + strings.Repeat("a=candidate:1 1 udp 1 x.local 7 typ host\r\n", 50)
	if o, err := readOffer(many, key); err != nil || len(o.ports) > maxCandidates {
		t.Errorf("%d ports, %v", len(o.ports), err)
	}
}

func FuzzReadOffer(f *testing.F) {
	f.Add(goodOffer)
	f.Add("m=application 9 UDP/DTLS/SCTP webrtc-datachannel\na=candidate:1 1 udp 1 x 99999 typ host\n")
	f.Fuzz(func(t *testing.T, sdp string) {
		o, err := readOffer(sdp, session.Key{1})
		if err != nil {
			return
		}
		if len(o.ports) > maxCandidates || !strings.Contains(strings.ToLower(strings.ReplaceAll(sdp, ":", "")), session.Key{1}.String()) {
			t.Fatalf("%+v", o)
		}
		if strings.ContainsAny(writeAnswer(o, "u", "p", session.Key{2}, nil), "\x00\x01") {
			t.Fatal("the answer has what the offer had")
		}
	})
}

// The socket of the direct way hears and answers the technician alone.
func TestSES4_DirectSocketIsForOneAddress(t *testing.T) {
	listen := func(address string) *net.UDPConn {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	own, friend, stranger := listen("127.0.0.1"), listen("127.0.0.2"), listen("127.0.0.3")
	o := only{own, netip.MustParseAddr("127.0.0.2")}
	for _, c := range []*net.UDPConn{stranger, friend} {
		if _, err := c.WriteTo([]byte(c.LocalAddr().String()), own.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	own.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 100)
	n, from, err := o.ReadFrom(b)
	if err != nil || from.String() != friend.LocalAddr().String() || string(b[:n]) != from.String() {
		t.Errorf("heard %q of %v, %v", b[:n], from, err)
	}
	if _, err := o.WriteTo([]byte("x"), stranger.LocalAddr()); err == nil {
		t.Error("a stranger is answered")
	}
	if _, err := o.WriteTo([]byte("x"), friend.LocalAddr()); err != nil {
		t.Error(err)
	}
}
