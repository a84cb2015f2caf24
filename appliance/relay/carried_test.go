//go:build !race

package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

// hostile is a connection between the ends of a session through a gateway that
// does what it likes with it; nil if it broke the handshake already.
func (b *bench) hostile(t *testing.T, g session.Grant, do func(*wires)) (agent, technician net.Conn) {
	t.Helper()
	w := &wires{evil: certtest.Self(t), name: sessionName(g.ID)}
	var ca, ct *net.TCPConn
	ca, w.agent = tcpPair(t)
	ct, w.technician = tcpPair(t)
	var gateway sync.WaitGroup
	gateway.Go(func() {
		do(w)
		w.agent.Close()
		w.technician.Close()
	})
	t.Cleanup(gateway.Wait)
	t.Cleanup(func() { ca.Close(); ct.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var errs [2]error
	both(func() { agent, _, errs[0] = real.agent(ctx, ca, g, b.agent) }, func() { technician, errs[1] = real.technician(ctx, ct, g, b.techn) })
	if errors.Join(errs[:]...) != nil {
		ca.Close()
		ct.Close()
		return nil, nil
	}
	return agent, technician
}

// carried sends bytes both ways over a session whose gateway attacks one path
// after the other, and says how many it took.
func (b *bench) carried(t *testing.T, attacks []func(*wires)) (paths int) {
	t.Helper()
	g := b.grant()
	lost := make(chan struct{}, 1)
	config := carrier.Config{Keepalive: 50 * time.Millisecond, Misses: 4, Patience: time.Minute}
	agent := carrier.New(carrier.Agent, config)
	config.OnPath = func(_ carrier.Kind, any bool) {
		if !any {
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}
	technician := carrier.New(carrier.Technician, config)
	defer agent.Close("the test is over")
	defer technician.Close("the test is over")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // as the tool does: another meeting when no path is left
		for {
			do := func(w *wires) {
				both(func() { w.pass(w.technician, w.agent, honest) }, func() { w.pass(w.agent, w.technician, honest) })
			}
			if paths < len(attacks) {
				do = attacks[paths]
			}
			paths++
			ca, ct := b.hostile(t, g, do)
			if ca == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			var errs [2]error
			both(func() { errs[0] = agent.Attach(ctx, ca, carrier.Relay) }, func() { errs[1] = technician.Attach(ctx, ct, carrier.Relay) })
			cancel()
			if errs[1] != nil {
				continue
			}
			select {
			case <-lost:
			case <-done:
				return
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	here, err := technician.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	there, err := agent.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { technician.Close("what was lost does not come"); agent.Close("what was lost does not come") }).Stop()
	var flows sync.WaitGroup
	for _, way := range [][2]*carrier.Stream{{here, there}, {there, here}} {
		sent := make([]byte, 1<<20)
		rand.Read(sent)
		flows.Go(func() {
			for rest := sent; len(rest) > 0; {
				n, err := way[0].Write(rest[:min(len(rest), 10_000)])
				if err != nil {
					t.Errorf("writing: %v", err)
					return
				}
				rest = rest[n:]
			}
			way[0].CloseWrite()
		})
		flows.Go(func() {
			if got, err := io.ReadAll(way[1]); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d came, or others: %v", len(got), len(sent), err)
			}
		})
	}
	flows.Wait()
	return paths
}

// What a gateway does to the connection between two ends costs them that
// connection, and not a byte: the carrier goes on over the next.
func TestSES3_HostileRelayUnderACarrier(t *testing.T) {
	b := newBench(t, nil)
	for name, a := range map[string]func(at int, held *[]byte) func(int, []byte) []byte{
		"drops": func(at int, _ *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				if i == at {
					return nil
				}
				return b
			}
		},
		"drops all": func(at int, _ *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				if i >= at {
					return nil
				}
				return b
			}
		},
		"reorders": func(at int, held *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				switch i {
				case at:
					*held = b
					return nil
				case at + 1:
					return append(b, *held...)
				}
				return b
			}
		},
		"doubles": func(at int, _ *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				if i == at {
					return append(bytes.Clone(b), b...)
				}
				return b
			}
		},
		"changes": func(at int, _ *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				if i == at {
					b[len(b)-1] ^= 1
				}
				return b
			}
		},
		"cuts": func(at int, _ *[]byte) func(int, []byte) []byte {
			return func(i int, b []byte) []byte {
				if i == at {
					return b[:random(len(b)-1)+1]
				}
				return b
			}
		},
		"delays": func(int, *[]byte) func(int, []byte) []byte {
			return func(_ int, b []byte) []byte {
				time.Sleep(time.Duration(random(int(2 * time.Millisecond))))
				return b
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			const paths = 5
			for range (tries() + paths - 1) / paths {
				var attacks []func(*wires)
				for range paths {
					attacks = append(attacks, func(w *wires) {
						var held [2][]byte
						both(func() { w.pass(w.technician, w.agent, a(handshakeRecords+random(60), &held[0])) },
							func() { w.pass(w.agent, w.technician, a(handshakeRecords+random(60), &held[1])) })
					})
				}
				took := b.carried(t, attacks)
				if name != "delays" && took < 2 {
					t.Errorf("%d path: the attack did nothing", took)
				}
			}
		})
	}
}
