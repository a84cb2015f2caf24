package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

// wires is what a gateway holds when it has joined two ends: a connection to
// each. It may do with them what it likes.
type wires struct {
	agent, technician *net.TCPConn
	evil              tls.Certificate
	name              string // of the session: the technician's ClientHello has it in clear
	mu                sync.Mutex
	seen              bytes.Buffer // everything that went through
}

// outcome is what the ends had of it.
type outcome struct {
	agent, technician error  // of the handshakes
	version           uint16 // that the agent agreed to
	got               []byte
	ended             error // how reading ended; nil: as the agent meant it
}

// tries is how often each attack is tried, with other bytes each time.
func tries() int {
	if os.Getenv("GATEHOUSE_SOAK") == "1" {
		return 1000
	}
	if testing.Short() {
		return 3
	}
	return 20
}

func random(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err)
	}
	return int(i.Int64())
}

// tcpPair is one connection over loopback.
func tcpPair(t testing.TB) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// record reads one TLS record whole.
func (w *wires) record(c net.Conn) ([]byte, error) {
	b := make([]byte, recordHead)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint16(b[3:]))...)
	if _, err := io.ReadFull(c, b[recordHead:]); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.seen.Write(b)
	w.mu.Unlock()
	return b, nil
}

// pass passes records on, each through f with its number; nil drops it.
func (w *wires) pass(from, to *net.TCPConn, f func(i int, record []byte) []byte) {
	defer to.CloseWrite()
	for i := 0; ; i++ {
		b, err := w.record(from)
		if err != nil {
			return
		}
		if b = f(i, b); b == nil {
			continue
		}
		if _, err := to.Write(b); err != nil {
			return
		}
	}
}

func honest(_ int, b []byte) []byte { return b }

// both runs two directions until they end.
func both(a, b func()) {
	var wg sync.WaitGroup
	wg.Go(a)
	wg.Go(b)
	wg.Wait()
}

// toTechnician meddles with what the agent says after the handshake: its
// records are a ServerHello, a change of cipher spec, one record each of
// extensions, request, certificate, proof and end, then the session's.
func toTechnician(meddle func() func(i int, b []byte) []byte) func(*wires) {
	return func(w *wires) {
		f := meddle()
		both(func() { w.pass(w.technician, w.agent, honest) },
			func() { w.pass(w.agent, w.technician, f) })
	}
}

const handshakeRecords = 7

// through runs both ends through what a gateway does, and has the agent send.
func (b *bench) through(t *testing.T, e ends, ga, gt session.Grant, sent []byte, do func(*wires)) (*wires, outcome) {
	t.Helper()
	w := &wires{evil: certtest.Self(t), name: sessionName(ga.ID)}
	var agent, technician *net.TCPConn
	agent, w.agent = tcpPair(t)
	technician, w.technician = tcpPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var o outcome
	var wg sync.WaitGroup
	wg.Go(func() {
		do(w)
		w.agent.Close()
		w.technician.Close()
	})
	wg.Go(func() {
		defer agent.Close()
		var c net.Conn
		if c, o.version, o.agent = e.agent(ctx, agent, ga, b.agent); o.agent != nil {
			return
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		for rest := sent; len(rest) > 0; {
			n, err := c.Write(rest[:min(len(rest), 1000)])
			if err != nil {
				return
			}
			rest = rest[n:]
		}
		c.Close()
	})
	wg.Go(func() {
		defer technician.Close()
		var c net.Conn
		if c, o.technician = e.technician(ctx, technician, gt, b.techn); o.technician != nil {
			return
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		o.got, o.ended = io.ReadAll(c)
		c.Close()
	})
	wg.Wait()
	return w, o
}

// An attack is what a gateway does with a session that it has joined.
type attack struct {
	do                    func(*wires)
	noAgent, noTechnician bool // an end that has nobody honest to speak with: it may trust nobody
	weak                  ends // are deceived by it: they do without the one check that finds it
}

func attacks() map[string]attack {
	return map[string]attack{
		"swaps keys": {weak: strangers, noAgent: true, noTechnician: true, do: func(w *wires) {
			conf := &tls.Config{Certificates: []tls.Certificate{w.evil}, ServerName: w.name, InsecureSkipVerify: true, NextProtos: []string{SessionProtocol}, ClientAuth: tls.RequireAnyClientCert}
			both(func() { tls.Server(w.technician, conf).Handshake(); w.technician.Close() },
				func() { tls.Client(w.agent, conf).Handshake(); w.agent.Close() })
		}},
		"impersonates the agent": {weak: strangers, noTechnician: true, do: func(w *wires) {
			w.agent.Close()
			tls.Server(w.technician, &tls.Config{Certificates: []tls.Certificate{w.evil}, NextProtos: []string{SessionProtocol}, ClientAuth: tls.RequireAnyClientCert}).Handshake()
		}},
		"impersonates the technician": {weak: strangers, noAgent: true, do: func(w *wires) {
			w.technician.Close()
			c := tls.Client(w.agent, &tls.Config{Certificates: []tls.Certificate{w.evil}, ServerName: w.name, InsecureSkipVerify: true, NextProtos: []string{SessionProtocol}})
			c.Handshake()
			c.Read(make([]byte, 1))
		}},
		"downgrades": {weak: inClear, do: func(w *wires) {
			both(func() {
				w.pass(w.technician, w.agent, func(i int, b []byte) []byte {
					if i == 0 { // supported_versions (RFC 8446, 4.2.1): TLS 1.3 becomes 1.2
						b = bytes.Replace(b, []byte{0, 43, 0, 3, 2, 3, 4}, []byte{0, 43, 0, 3, 2, 3, 3}, 1)
					}
					return b
				})
			}, func() { w.pass(w.agent, w.technician, honest) })
		}},
		"truncates": {weak: trusting, do: toTechnician(func() func(int, []byte) []byte {
			after := handshakeRecords + random(5)
			return func(i int, b []byte) []byte {
				if i >= after {
					return nil
				}
				return b
			}
		})},
		"truncates in a record": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			at := handshakeRecords + random(5)
			return func(i int, b []byte) []byte {
				switch {
				case i == at:
					return b[:random(len(b)-1)+1]
				case i > at:
					return nil
				}
				return b
			}
		})},
		"reorders": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			var held []byte
			at := handshakeRecords + random(5)
			return func(i int, b []byte) []byte {
				switch i {
				case at:
					held = b
					return nil
				case at + 1:
					return append(b, held...)
				}
				return b
			}
		})},
		"drops": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			at := handshakeRecords + random(5)
			return func(i int, b []byte) []byte {
				if i == at {
					return nil
				}
				return b
			}
		})},
		"replays a record": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			at := handshakeRecords + random(5)
			return func(i int, b []byte) []byte {
				if i == at {
					return append(bytes.Clone(b), b...)
				}
				return b
			}
		})},
		"changes a bit": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			at := random(handshakeRecords + 5)
			return func(i int, b []byte) []byte {
				if i == at {
					b[recordHead+random(len(b)-recordHead)] ^= 1 << random(8)
				}
				return b
			}
		})},
		"injects": {weak: inClear, do: toTechnician(func() func(int, []byte) []byte {
			at := handshakeRecords + random(5)
			kind := []byte{20, 21, 22, 23}[random(4)] // an alert would end it as if it were meant
			return func(i int, b []byte) []byte {
				if i == at {
					return append([]byte{kind, 3, 3, 0, 2, 1, 0}, b...)
				}
				return b
			}
		})},
		"reflects": {weak: inClear, noAgent: true, noTechnician: true, do: func(w *wires) {
			both(func() { w.pass(w.technician, w.technician, honest); w.agent.Close() }, func() { w.pass(w.agent, w.agent, honest) })
		}},
	}
}

func TestSES2_HostileRelay(t *testing.T) {
	b := newBench(t, nil)
	try := func(e ends, a attack) (deceived error) {
		g, sent := b.grant(), make([]byte, 8000)
		rand.Read(sent)
		w, o := b.through(t, e, g, g, sent, a.do)
		return judge(a, w, o, sent)
	}
	for name, a := range attacks() {
		t.Run(name, func(t *testing.T) {
			for range tries() {
				if err := try(real, a); err != nil {
					t.Fatal(err)
				}
			}
			for range 100 { // some tries of some attacks change nothing
				if err := try(a.weak, a); err != nil && !errors.Is(err, errClear) {
					t.Logf("without the check: %v", err)
					return
				}
			}
			t.Error("ends without the check are not deceived either: this finds nothing")
		})
	}
	t.Run("crosses two sessions", func(t *testing.T) {
		crossed := attack{do: toTechnician(func() func(int, []byte) []byte { return honest }), noAgent: true, noTechnician: true}
		for range tries() {
			one, two := b.grant(), b.grant()
			w, o := b.through(t, real, one, two, []byte("x"), crossed.do)
			if !errors.Is(o.agent, session.ErrOther) {
				t.Errorf("the agent: %v", o.agent)
			}
			// The technician's handshake is over before the agent has judged; it reads nothing.
			if err := judge(attack{noAgent: true}, w, o, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		w, o := b.through(t, nameless, b.grant(), b.grant(), []byte("x"), crossed.do)
		if judge(crossed, w, o, []byte("x")) == nil {
			t.Error("an agent that does not look at the name is not deceived: this finds nothing")
		}
	})
	// A gateway that only holds back what it passes does no harm, and learns nothing.
	t.Run("delays", func(t *testing.T) {
		slowly := attack{do: toTechnician(func() func(int, []byte) []byte {
			return func(_ int, b []byte) []byte {
				time.Sleep(time.Duration(random(int(3 * time.Millisecond))))
				return b
			}
		})}
		for range tries() {
			canary := make([]byte, 32)
			rand.Read(canary)
			sent := bytes.Repeat(canary, 100)
			g := b.grant()
			w, o := b.through(t, real, g, g, sent, slowly.do)
			if o.agent != nil || o.technician != nil || o.ended != nil || !bytes.Equal(o.got, sent) {
				t.Fatalf("%v, %v, %v, %d bytes of %d", o.agent, o.technician, o.ended, len(o.got), len(sent))
			}
			if bytes.Contains(w.seen.Bytes(), canary) || bytes.Contains(w.seen.Bytes(), []byte(g.Technician)) {
				t.Fatal("what the ends said went through in clear")
			}
			if w, _ := b.through(t, inClear, g, g, sent, slowly.do); !bytes.Contains(w.seen.Bytes(), canary) {
				t.Fatal("what is said in clear is not seen: this finds nothing")
			}
		}
	})
	t.Run("replays a ticket", b.replays)
	t.Run("lies in signalling", b.lies)
}

// judge: an end that was deceived has read something that was not sent so, took
// a cut for the end, trusts who is not the other end, or agreed to less.
func judge(a attack, w *wires, o outcome, sent []byte) error {
	switch {
	case a.noAgent && o.agent == nil, a.noTechnician && o.technician == nil:
		return fmt.Errorf("an end trusts the gateway (the agent: %v, the technician: %v)", o.agent, o.technician)
	case o.agent == nil && o.version != tls.VersionTLS13:
		return fmt.Errorf("the agent agreed to version %#x", o.version)
	case !bytes.HasPrefix(sent, o.got):
		return errors.New("the technician read what the agent did not send")
	case o.technician == nil && o.ended == nil:
		return fmt.Errorf("the technician noticed nothing: %d bytes of %d", len(o.got), len(sent))
	case bytes.Contains(w.seen.Bytes(), sent[:min(len(sent), 32)]) && len(sent) >= 32:
		return errClear
	}
	return nil
}

var errClear = errors.New("what the agent sent went through in clear")

// A gateway that lies before the switch: what it says is refused or clean text.
func TestSES2_GatewayThatLies(t *testing.T) {
	own, evil := certtest.Self(t), certtest.Self(t)
	say := func(what func(c *tls.Conn)) error {
		here, there := tcpPair(t)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			defer there.Close()
			c := tls.Server(there, &tls.Config{Certificates: []tls.Certificate{evil}, NextProtos: []string{Protocol}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true})
			if c.Handshake() == nil {
				what(c)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := Meet(ctx, here, keyOf(evil), own, []byte("ticket"))
		return err
	}
	for name, what := range map[string]func(c *tls.Conn){
		"says nothing":         func(c *tls.Conn) {},
		"ends in a frame":      func(c *tls.Conn) { c.Write([]byte{frameJoined, 0}) },
		"a frame too long":     func(c *tls.Conn) { c.Write([]byte{frameJoined, 0xff, 0xff}) },
		"joined, with more":    func(c *tls.Conn) { writeFrame(c, frameJoined, []byte("x")) },
		"a ticket for a frame": func(c *tls.Conn) { writeFrame(c, frameTicket, nil) },
		"waits for ever":       func(c *tls.Conn) { writeFrame(c, frameWait, nil); io.Copy(io.Discard, c) },
		"waits twice":          func(c *tls.Conn) { writeFrame(c, frameWait, nil); writeFrame(c, frameWait, nil) },
	} {
		if err := say(what); err == nil {
			t.Errorf("%s: taken for a meeting", name)
		}
	}
	err := say(func(c *tls.Conn) { writeFrame(c, frameNo, []byte("\x1b]0;title\x07 \u202e\xff no")) })
	var refused *Refused
	if !errors.As(err, &refused) || strings.ContainsAny(err.Error(), "\x1b\x07\u202e") {
		t.Errorf("%q", err)
	}
}
