package browser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of connections through the gateway. ICE takes them for a network that
// loses packets: what does not fit into the queue of a slow one is lost, and
// SCTP sends it again.
const (
	maxPacket = 8 << 10 // bytes, of ICE, DTLS: what they send is below 1,500
	maxQueue  = 256     // packets to one connection
	maxInbox  = 64      // packets from all
)

// gateway is the connections that came through the gateway as one packet
// socket: each packet in a frame of RFC 4571, the address that of the browser.
type gateway struct {
	local  net.Addr
	inbox  chan packet
	closed chan struct{}
	gone   func() // the last connection has ended

	mu    sync.Mutex
	conns map[netip.AddrPort]*framed
	wg    sync.WaitGroup
}

type packet struct {
	from netip.AddrPort
	b    []byte
}

// framed is one connection.
type framed struct {
	net.Conn
	out chan []byte
}

func newGateway(local netip.AddrPort, gone func()) *gateway {
	return &gateway{local: net.TCPAddrFromAddrPort(local), inbox: make(chan packet, maxInbox), closed: make(chan struct{}), gone: gone, conns: make(map[netip.AddrPort]*framed)}
}

// add takes a connection that a browser made, and closes it in the end.
func (g *gateway) add(c net.Conn, from netip.AddrPort) error {
	f := &framed{c, make(chan []byte, maxQueue)}
	g.mu.Lock()
	select {
	case <-g.closed:
		g.mu.Unlock()
		return errors.Join(net.ErrClosed, c.Close())
	default:
	}
	if g.conns[from] != nil {
		g.mu.Unlock()
		return errors.Join(fmt.Errorf("the gateway says that two connections come from %s", from), c.Close())
	}
	g.conns[from] = f
	g.wg.Add(2)
	g.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer g.wg.Done()
		f.write(done)
	}()
	go func() {
		defer g.wg.Done()
		defer close(done)
		g.read(f, from)
	}()
	return nil
}

// lastTime is how long what is queued may take when the connection is over: the
// last packets say so, and why.
const lastTime = time.Second

// write sends what is queued until the connection ends, and what is queued then.
func (f *framed) write(done <-chan struct{}) {
	defer f.Close() // its reader sees that
	for {
		select {
		case b := <-f.out:
			if _, err := f.Write(b); err != nil {
				return
			}
			continue
		default:
		}
		select {
		case b := <-f.out:
			if _, err := f.Write(b); err != nil {
				return
			}
		case <-done:
			if len(f.out) == 0 {
				return
			}
		}
	}
}

// read passes on what comes until the connection ends.
func (g *gateway) read(f *framed, from netip.AddrPort) {
	defer func() {
		f.SetWriteDeadline(time.Now().Add(lastTime))
		g.mu.Lock()
		delete(g.conns, from)
		last := len(g.conns) == 0
		g.mu.Unlock()
		if last {
			g.gone()
		}
	}()
	var head [2]byte
	for {
		if _, err := io.ReadFull(f, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > maxPacket {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(f, b); err != nil {
			return
		}
		select {
		case g.inbox <- packet{from, b}:
		case <-g.closed:
			return
		}
	}
}

// ReadFrom is net.PacketConn's.
func (g *gateway) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case <-g.closed:
		return 0, nil, net.ErrClosed
	case k := <-g.inbox:
		return copy(p, k.b), net.TCPAddrFromAddrPort(k.from), nil
	}
}

// WriteTo is net.PacketConn's. It never blocks: ICE's checks of other ways must
// not wait for a connection that is slow.
func (g *gateway) WriteTo(p []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.TCPAddr)
	if !ok || len(p) > maxPacket {
		return 0, fmt.Errorf("a packet of %d bytes to %v cannot go through the gateway", len(p), to)
	}
	ap := a.AddrPort()
	g.mu.Lock()
	f := g.conns[netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())]
	g.mu.Unlock()
	if f == nil {
		return 0, net.ErrClosed
	}
	select {
	case f.out <- append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(p)), uint16(len(p))), p...):
	default: // full: lost
	}
	return len(p), nil
}

// Close ends all connections, each when what is queued for it is sent.
func (g *gateway) Close() error {
	g.mu.Lock()
	select {
	case <-g.closed:
		g.mu.Unlock()
		return nil
	default:
	}
	close(g.closed)
	var errs []error
	for _, f := range g.conns {
		errs = append(errs, f.SetReadDeadline(time.Unix(1, 0)))
	}
	g.mu.Unlock()
	g.wg.Wait()
	return errors.Join(errs...)
}

// LocalAddr is net.PacketConn's.
func (g *gateway) LocalAddr() net.Addr { return g.local }

// SetDeadline is called before Close alone, which does the same.
func (g *gateway) SetDeadline(time.Time) error { return nil }

// SetReadDeadline is not used by ICE.
func (g *gateway) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline has nothing to limit: a write never blocks.
func (g *gateway) SetWriteDeadline(time.Time) error { return nil }
