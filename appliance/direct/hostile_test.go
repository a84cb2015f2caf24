package direct

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/direct/probe"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

func good() offer {
	return offer{Round: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, TCP: 40000, UDP: 40001, Secret: bytes.Repeat([]byte{7}, probe.SecretSize)}
}

func TestSES3_OffersThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*offer){
		"no round":             func(o *offer) { o.Round = 0 },
		"thousands":            func(o *offer) { o.Addresses = slices.Repeat(o.Addresses, 4000) },
		"one too many":         func(o *offer) { o.Addresses = slices.Repeat(o.Addresses, maxCandidates+1) },
		"TCP to a service":     func(o *offer) { o.TCP = 22 },
		"TCP to the last one":  func(o *offer) { o.TCP = lowestPort - 1 },
		"UDP to a service":     func(o *offer) { o.UDP = 53 },
		"no UDP":               func(o *offer) { o.UDP = 0 },
		"a zone":               func(o *offer) { o.Addresses[0] = netip.MustParseAddr("fe80::1%eth0") },
		"IPv4 in IPv6":         func(o *offer) { o.Addresses[0] = netip.MustParseAddr("::ffff:192.0.2.1") },
		"no address in a list": func(o *offer) { o.Addresses[0] = netip.Addr{} },
		"short secret":         func(o *offer) { o.Secret = o.Secret[1:] },
		"long secret":          func(o *offer) { o.Secret = append(o.Secret, 1) },
		"no secret":            func(o *offer) { o.Secret = nil },
	} {
		o := good()
		spoil(&o)
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseOffer(b); !errors.Is(err, session.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, err := json.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseOffer(b); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for _, other := range []string{
		strings.Replace(string(b), `"tcp"`, ` "tcp"`, 1), strings.Replace(string(b), `"tcp"`, `"TCP"`, 1), string(b) + " ",
		strings.Replace(string(b), "{", `{"more":1,`, 1), strings.Replace(string(b), "192.0.2.1", "192.0.2.01", 1), "", "null", "[]",
		strings.Replace(string(b), `["192.0.2.1"]`, "null", 1),
	} {
		if _, err := parseOffer([]byte(other)); !errors.Is(err, session.ErrMalformed) {
			t.Errorf("%q: %v", other, err)
		}
	}
	if _, err := readOffer(bytes.NewReader([]byte{0xff, 0xff})); !errors.Is(err, session.ErrMalformed) {
		t.Errorf("an offer of 64 KiB: %v", err)
	}
	if _, err := readOffer(bytes.NewReader(append([]byte{0, 200}, b...))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an offer that is cut: %v", err)
	}
}

func FuzzOffer(f *testing.F) {
	b, _ := json.Marshal(good())
	f.Add(b)
	f.Add([]byte(`{"round":1,"addresses":[],"tcp":0,"udp":1024,"secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOffer(b)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeOffer(&out, o); err != nil && len(b) <= maxOffer {
			t.Fatalf("%+v was read and cannot be written: %v", o, err)
		} else if err == nil && !bytes.Equal(out.Bytes()[2:], b) {
			t.Fatalf("%q was read and is written as %q", b, out.Bytes()[2:])
		}
	})
}

func TestSES3_TargetsAreAdmittedAndElsewhere(t *testing.T) {
	r := &round{Search: &Search{Config: Config{
		Seen:     netip.MustParseAddr("198.51.100.9"),
		Admitted: func(a netip.Addr) bool { return !netip.MustParsePrefix("192.0.2.0/24").Contains(a) },
	}}, self: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}
	var all []netip.Addr
	for _, s := range []string{
		"127.0.0.1", "::1", "0.0.0.0", "::", "0.1.2.3", "224.0.0.251", "ff02::1", "255.255.255.255", "169.254.169.254", "fe80::1", // nobody's
		"10.0.0.5",   // our own
		"192.0.2.77", // of no list
		"10.0.0.6", "10.0.0.6", "2001:db8::6",
	} {
		all = append(all, netip.MustParseAddr(s))
	}
	got := r.targets(offer{Addresses: all}, 40000)
	want := []netip.AddrPort{netip.MustParseAddrPort("198.51.100.9:40000"), netip.MustParseAddrPort("10.0.0.6:40000"), netip.MustParseAddrPort("[2001:db8::6]:40000")}
	if !slices.Equal(got, want) {
		t.Errorf("targets %v, want %v", got, want)
	}
	if got := r.targets(offer{Addresses: all}, 22); got != nil {
		t.Errorf("targets of port 22: %v", got)
	}
	all = nil
	for i := range 200 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}))
	}
	if got := r.targets(offer{Addresses: all}, 40000); len(got) != maxCandidates || got[0] != want[0] {
		t.Errorf("targets of a long list: %v", got)
	}
}

// outcome has both look for some time, and says how the agent's end ended.
func (e *ends) outcome(t *testing.T, limit time.Duration) (technician, agent error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { technician = seek(ctx, e.technician, e.streams[0]) })
	if _, err := wire.ReadOpen(e.streams[1]); err != nil {
		t.Fatal(err)
	}
	agent = seek(ctx, e.agent, e.streams[1])
	wg.Wait()
	return technician, agent
}

func TestSES3_AnEndThatLiesIsLeft(t *testing.T) {
	for name, lie := range map[string]func(*offer){
		"port 22":   func(o *offer) { o.TCP = 22 },
		"port 53":   func(o *offer) { o.UDP = 53 },
		"thousands": func(o *offer) { o.Addresses = slices.Repeat(o.Addresses, 30) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t)
			e.between(t, lie, nil)
			if _, err := e.outcome(t, 20*time.Second); !errors.Is(err, session.ErrMalformed) {
				t.Errorf("the agent: %v", err)
			}
			e = newEnds(t)
			e.between(t, nil, func(o *offer) { lie(o); o.Round++ })
			if err, _ := e.outcome(t, 20*time.Second); !errors.Is(err, session.ErrMalformed) {
				t.Errorf("the technician's end: %v", err)
			}
		})
	}
}

// Nothing goes to an address that is not admitted, and nothing from there counts.
func TestSES3_NothingGoesWhereNoListAdmits(t *testing.T) {
	t.Parallel()
	trap, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)})
	if err != nil {
		t.Fatal(err)
	}
	defer trap.Close()
	port := uint16(trap.LocalAddr().(*net.UDPAddr).Port)
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lie := func(o *offer) {
		o.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.9")}
		o.UDP, o.TCP = port, uint16(l.Addr().(*net.TCPAddr).Port)
	}
	for name, admitted := range map[string]bool{"admitted": true, "not admitted": false} {
		e := newEnds(t)
		e.agent.Admitted = func(netip.Addr) bool { return admitted }
		e.between(t, lie, nil)
		e.outcome(t, 2*time.Second)
		trap.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _, err := trap.ReadFrom(make([]byte, 2000))
		if got := err == nil; got != admitted {
			t.Errorf("%s: a datagram came: %v", name, got)
		}
		l.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
		c, err := l.Accept()
		if got := err == nil; got != admitted {
			t.Errorf("%s: a call came: %v", name, got)
		}
		if err == nil {
			// What a third party gets is not of the technician's choosing.
			c.SetReadDeadline(time.Now().Add(time.Second))
			if b, _ := io.ReadAll(io.LimitReader(c, 100)); len(b) > probe.CallSize {
				t.Errorf("a third party got %d bytes", len(b))
			}
			c.Close()
		}
		trap.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		for err = nil; err == nil; { // the rest of the round
			_, _, err = trap.ReadFrom(make([]byte, 2000))
		}
	}
}

func TestSES3_WrongKeysFindNoWay(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*ends){
		"another agent":      func(e *ends) { e.agent.Certificate = certtest.Self(t, certtest.Undated) },
		"another technician": func(e *ends) { e.technician.Certificate = certtest.Self(t, certtest.Undated) },
		"another session":    func(e *ends) { e.agent.Grant.ID[0]++ },
	} {
		for kind, offers := range map[string]func(*offer){"tcp": nil, "udp": noTCP} {
			t.Run(name+" by "+kind, func(t *testing.T) {
				t.Parallel()
				e := newEnds(t)
				change(e)
				e.between(t, offers, nil)
				e.outcome(t, 3*time.Second)
				select {
				case w := <-e.ways[1]:
					t.Errorf("the agent took %s", w.kind)
				default:
				}
				// A TLS client believes that it is done before the server has judged
				// it, so it may take the way; no byte comes over it.
				select {
				case w := <-e.ways[0]:
					w.SetReadDeadline(time.Now().Add(time.Second))
					if n, err := w.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, io.EOF) {
						t.Errorf("the technician's end read %d, %v by %s", n, err, w.kind)
					}
				default:
				}
			})
		}
	}
}

func TestSES3_StrangersAreNotTheAgent(t *testing.T) {
	e := newEnds(t)
	var calls atomic.Int32
	e.between(t, func(o *offer) {
		at := fmt.Sprintf("127.0.0.1:%d", o.TCP)
		for range 3 { // before the agent knows of it
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Error(err)
				continue
			}
			calls.Add(1)
			c.Write(make([]byte, probe.CallSize))
			t.Cleanup(func() { c.Close() })
		}
		o.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}, nil)
	e.start(t)
	a, b := next(t, e.ways[0]), next(t, e.ways[1])
	if a.kind != carrier.TCP || b.kind != carrier.TCP || calls.Load() != 3 {
		t.Errorf("ways by %s and %s after %d strangers", a.kind, b.kind, calls.Load())
	}
	carries(t, a, b)
}

func TestSES3_ListsEndADirectWay(t *testing.T) {
	t.Parallel()
	for kind, offers := range map[string]func(*offer){"tcp": nil, "udp": noTCP} {
		t.Run(kind, func(t *testing.T) {
			e := newEnds(t)
			var barred atomic.Bool
			e.agent.Admitted = func(a netip.Addr) bool { return a.IsLoopback() && !barred.Load() }
			e.between(t, offers, nil)
			e.start(t)
			a, b := next(t, e.ways[0]), next(t, e.ways[1])
			carries(t, a, b)
			barred.Store(true)
			a.SetReadDeadline(time.Now().Add(time.Second)) // dead at both ends within it
			if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the technician's end read: %v", err)
			}
			b.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the agent's end read: %v", err)
			}
		})
	}
}

// Who ends a session says why, and the direct way may be the only one left.
func TestSES3_LastWordGetsThrough(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(barred *atomic.Bool, cancel func()){
		"the lists":   func(barred *atomic.Bool, _ func()) { barred.Store(true) },
		"the session": func(_ *atomic.Bool, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnds(t)
			var barred atomic.Bool
			e.agent.Admitted = func(a netip.Addr) bool { return a.IsLoopback() && !barred.Load() }
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { seek(t.Context(), e.technician, e.streams[0]) })
			wg.Go(func() {
				if _, err := wire.ReadOpen(e.streams[1]); err == nil {
					seek(ctx, e.agent, e.streams[1])
				}
			})
			t.Cleanup(func() { cancel(); e.streams[0].Close(); wg.Wait() })
			a, b := next(t, e.ways[0]), next(t, e.ways[1])
			end(&barred, cancel)
			time.Sleep(lastWord / 2)
			if _, err := b.Write([]byte("the end")); err != nil {
				t.Fatal(err)
			}
			a.SetReadDeadline(time.Now().Add(10 * time.Second))
			got := make([]byte, 7)
			if _, err := io.ReadFull(a, got); err != nil {
				t.Errorf("the last word: %v", err)
			}
			if _, err := b.Read(got); err == nil { // and then it is over
				t.Error("the agent's end reads on")
			}
		})
	}
}

func TestSES3_AgentPacesRounds(t *testing.T) {
	t.Parallel()
	e := newEnds(t)
	e.agent.Admitted = func(netip.Addr) bool { return false }
	agent, err := New(e.agent)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(s wire.Stream, round uint32) {
		t.Helper()
		o := good()
		o.Round = round
		if err := writeOffer(s, o); err != nil {
			t.Fatal(err)
		}
		if _, err := readOffer(s); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() (s wire.Stream, done chan error) {
		t.Helper()
		s, other := streamPair(t)
		done = make(chan error, 1)
		var run sync.WaitGroup
		run.Go(func() { done <- agent.Run(t.Context(), other) })
		t.Cleanup(run.Wait)
		if _, err := wire.ReadReply(s); err != nil {
			t.Fatal(err)
		}
		return s, done
	}
	since := time.Now()
	s, done := begin()
	ask(s, 1)
	ask(s, 2)
	second, other := streamPair(t)
	if err := agent.Run(t.Context(), other); err == nil {
		t.Error("two searches run at once")
	}
	var r *wire.Refusal
	if _, err := wire.ReadReply(second); !errors.As(err, &r) {
		t.Errorf("the second one is answered: %v", err)
	}
	if err := writeOffer(s, good()); err != nil { // round 1 again
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, session.ErrMalformed) {
		t.Errorf("a round of the past: %v", err)
	}
	s, _ = begin() // anew, which brings no new patience
	ask(s, 1)
	ask(s, 2)
	if d := time.Since(since); d < 7*time.Second {
		t.Errorf("four rounds with pauses of 1, 2 and 4 s between them took %s", d)
	}
}

func TestSES3_WhoCannotLook(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no side":    func(c *Config) { c.Side = "" },
		"a browser":  func(c *Config) { c.Grant.Transport = session.WebRTC },
		"no lists":   func(c *Config) { c.Admitted = nil },
		"no carrier": func(c *Config) { c.Attach = nil },
	} {
		e := newEnds(t)
		spoil(&e.agent)
		if err := seek(t.Context(), e.agent, e.streams[1]); err == nil {
			t.Errorf("%s looks", name)
		}
	}
}
