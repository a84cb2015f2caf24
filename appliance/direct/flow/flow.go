// Package flow is a connection between the ends of a session by datagrams: QUIC, with the session's own TLS in it and one stream.
package flow

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
)

const (
	handshakeTime = 5 * time.Second
	aliveEvery    = 2 * time.Second
	silentFor     = 6 * time.Second // a way that is cut: the carrier is told, and goes back to the gateway
	lingerTime    = time.Second     // for the last bytes, and the other end's goodbye
	// window is what is on its way at most: 500 Mb/s at 100 ms are 6.25 MB, and
	// the window must hold as much again to stay open. So much memory a reader
	// that has stopped costs.
	window      = 12 << 20
	firstWindow = 768 << 10
	helloByte   = 1 // the first byte of the stream, or the agent would not learn of it
)

// Codes of our goodbye, for the other end's errors.
const (
	codeDone  = 0
	codeWrong = 1
)

func quicConfig(side session.Side) *quic.Config {
	c := &quic.Config{
		Versions: []quic.Version{quic.Version1}, HandshakeIdleTimeout: handshakeTime, MaxIdleTimeout: silentFor, KeepAlivePeriod: aliveEvery,
		InitialStreamReceiveWindow: firstWindow, MaxStreamReceiveWindow: window,
		InitialConnectionReceiveWindow: firstWindow, MaxConnectionReceiveWindow: window,
		MaxIncomingStreams: -1, MaxIncomingUniStreams: -1,
	}
	if side == session.AgentSide {
		c.MaxIncomingStreams = 1
	}
	return c
}

var quietOnce sync.Once

// transport is QUIC over one socket that is settled with one other. Buffers as
// small as the system allows cost speed alone, and quic-go would say so on
// standard error, which is a technician's terminal.
func transport(c *net.UDPConn) *quic.Transport {
	quietOnce.Do(func() { os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true") })
	return &quic.Transport{Conn: c, DisableVersionNegotiationPackets: true}
}

// Dial is the technician's end, over a socket that is settled with the agent at
// at. It closes c on an error.
func Dial(ctx context.Context, c *net.UDPConn, at netip.AddrPort, g session.Grant, own tls.Certificate) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	f := &flow{transport: transport(c), socket: c}
	var err error
	if f.conn, err = f.transport.Dial(ctx, net.UDPAddrFromAddrPort(at), relay.TechnicianTLS(g, own), quicConfig(session.TechnicianSide)); err == nil {
		f.Stream, err = f.conn.OpenStream()
	}
	if err == nil {
		_, err = f.Stream.Write([]byte{helloByte})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("QUIC with the agent: %w", err), f.abandon())
	}
	return f, nil
}

// Answer is the agent's end.
func Answer(ctx context.Context, c *net.UDPConn, at netip.AddrPort, g session.Grant, own tls.Certificate) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	f := &flow{transport: transport(c), socket: c}
	if err := f.accept(ctx, at, g, own); err != nil {
		return nil, errors.Join(fmt.Errorf("QUIC with the technician: %w", err), f.abandon())
	}
	return f, nil
}

func (f *flow) accept(ctx context.Context, at netip.AddrPort, g session.Grant, own tls.Certificate) error {
	config := quicConfig(session.AgentSide)
	config.GetConfigForClient = func(i *quic.ClientInfo) (*quic.Config, error) {
		// What a stranger sent before the socket was settled is still in it.
		from, ok := i.RemoteAddr.(*net.UDPAddr)
		if !ok || netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), from.AddrPort().Port()) != at {
			return nil, errors.New("a stranger")
		}
		return nil, nil
	}
	l, err := f.transport.Listen(relay.AgentTLS(g, own), config)
	if err != nil {
		return err
	}
	defer l.Close() // what was accepted stays
	if f.conn, err = l.Accept(ctx); err != nil {
		return err
	}
	if f.Stream, err = f.conn.AcceptStream(ctx); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.Stream.SetReadDeadline(time.Unix(1, 0)) })()
	var b [1]byte
	if _, err := io.ReadFull(f.Stream, b[:]); err != nil {
		return err
	}
	if b[0] != helloByte {
		return fmt.Errorf("the stream begins with %d, want %d", b[0], helloByte)
	}
	return nil
}

// flow is the one stream of a QUIC connection as a net.Conn. An io.EOF is the
// other end's goodbye, after all its bytes; a cut is another error.
type flow struct {
	*quic.Stream
	conn      *quic.Conn
	transport *quic.Transport
	socket    *net.UDPConn
	once      sync.Once
}

func (f *flow) LocalAddr() net.Addr  { return f.conn.LocalAddr() }
func (f *flow) RemoteAddr() net.Addr { return f.conn.RemoteAddr() }

// CloseWrite says that no more comes from this end.
func (f *flow) CloseWrite() error { return f.Stream.Close() }

// Close ends both ways. What was written before still goes, for a moment.
func (f *flow) Close() error {
	f.once.Do(func() {
		f.Stream.Close()
		f.Stream.CancelRead(codeDone)
		f.Stream.SetDeadline(time.Unix(1, 0)) // whoever reads or writes ends now
		go func() {                           // ends after lingerTime
			t := time.NewTimer(lingerTime)
			defer t.Stop()
			select {
			case <-f.conn.Context().Done():
			case <-t.C:
			}
			f.abandon()
		}()
	})
	return nil
}

// abandon ends all of it at once.
func (f *flow) abandon() error {
	var errs []error
	if f.conn != nil {
		errs = append(errs, f.conn.CloseWithError(codeWrong, ""))
	}
	return errors.Join(append(errs, f.transport.Close(), f.socket.Close())...)
}
