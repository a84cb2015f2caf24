package flow

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

// delayed passes datagrams on after d, both ways, between who sends first and to.
func delayed(b *testing.B, to netip.AddrPort, d time.Duration) (there, back netip.AddrPort) {
	b.Helper()
	if d == 0 {
		return to, back
	}
	sockets := [2]*net.UDPConn{udpSocket(b), udpSocket(b)}
	first := make(chan netip.AddrPort, 1)
	type late struct {
		at time.Time
		b  []byte
	}
	pass := func(from, over *net.UDPConn, dest func() netip.AddrPort, learn bool) {
		queue := make(chan late, 1<<16)
		go func() {
			var addr netip.AddrPort
			for l := range queue {
				if !addr.IsValid() {
					addr = dest()
				}
				time.Sleep(time.Until(l.at))
				over.WriteToUDPAddrPort(l.b, addr)
			}
		}()
		defer close(queue)
		buf := make([]byte, 2048)
		for {
			n, who, err := from.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if learn {
				first <- who
				learn = false
			}
			select {
			case queue <- late{time.Now().Add(d), append([]byte(nil), buf[:n]...)}:
			default: // as a full router
			}
		}
	}
	go pass(sockets[0], sockets[1], func() netip.AddrPort { return to }, true) // ends with its socket
	go pass(sockets[1], sockets[0], func() netip.AddrPort { return <-first }, false)
	return sockets[0].LocalAddr().(*net.UDPAddr).AddrPort(), sockets[1].LocalAddr().(*net.UDPAddr).AddrPort()
}

func udpSocket(b *testing.B) *net.UDPConn {
	b.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	raw.Control(func(fd uintptr) { // as root: what is measured is the ends, not what the way between loses
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	})
	if err != nil {
		b.Log("a small buffer will lose datagrams:", err)
	}
	return c
}

// BenchmarkUDP is what one way by UDP carries, agent to technician.
func BenchmarkUDP(b *testing.B) {
	for _, d := range []time.Duration{0, 50 * time.Millisecond} {
		b.Run(fmt.Sprintf("round trip %s", 2*d), func(b *testing.B) {
			own, other := certtest.Self(b, certtest.Undated), certtest.Self(b, certtest.Undated)
			g := session.Grant{ID: session.ID{1}, Transport: session.TLS, Key: session.KeyOf(own.Leaf), Agent: session.KeyOf(other.Leaf)}
			a, t := udpSocket(b), udpSocket(b)
			at, back := delayed(b, a.LocalAddr().(*net.UDPAddr).AddrPort(), d)
			from := t.LocalAddr().(*net.UDPAddr).AddrPort()
			if d > 0 {
				from = back
			}
			agent := make(chan net.Conn, 1)
			go func() {
				c, err := Answer(b.Context(), a, from, g, other)
				if err != nil {
					b.Error(err)
				}
				agent <- c
			}()
			c, err := Dial(b.Context(), t, at, g, own)
			if err != nil {
				b.Fatal(err)
			}
			w := <-agent
			if w == nil {
				b.Fatal("no agent")
			}
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			b.ResetTimer()
			go func() {
				for range b.N {
					w.Write(chunk)
				}
			}()
			if _, err := io.CopyN(io.Discard, c, int64(b.N)<<20); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			c.Close()
			w.Close()
		})
	}
}
