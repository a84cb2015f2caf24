package technician

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"gatehouse/appliance/session/wire"
)

// MaxConnections is how many connections one forwarded port has at a time.
const MaxConnections = 256

// Forward serves a listener: each connection becomes a stream to the target's
// port. It returns when ctx ends, the session is over, or the listener fails;
// report hears of connections that did not come to be.
func (s *Session) Forward(ctx context.Context, l net.Listener, report func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		select {
		case <-ctx.Done():
		case <-s.Done():
		}
		l.Close()
	})
	room := make(chan struct{}, MaxConnections)
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-s.Done():
				return s.Err()
			default:
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accepting connections: %w", err)
		}
		select {
		case room <- struct{}{}:
		default:
			c.Close()
			report(fmt.Errorf("a connection was refused: there are %d already", MaxConnections))
			continue
		}
		work.Go(func() {
			defer func() { <-room }()
			if err := s.forward(ctx, c); err != nil {
				report(err)
			}
		})
	}
}

func (s *Session) forward(ctx context.Context, c net.Conn) error {
	defer c.Close()
	st, _, err := s.Open(ctx, wire.Open{Do: wire.Forward})
	if err != nil {
		return err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { c.Close(); st.Close() })
	defer stop()
	return Exchange(st, c.(*net.TCPConn))
}

// HalfCloser is a connection of which the writing side ends by itself.
type HalfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// Exchange copies both ways until both have ended. The end of one way is passed
// on and leaves the other open; an error ends both.
func Exchange(a, b HalfCloser) error {
	there := make(chan error, 1)
	go func() { there <- pour(a, b) }()
	back := pour(b, a)
	if back != nil {
		// The other direction would wait for an end that does not come.
		end(a)
		end(b)
	}
	return errors.Join(back, <-there)
}

// pour copies from one to the other, and its end.
func pour(to, from HalfCloser) error {
	_, err := io.Copy(to, from)
	if err != nil {
		end(to)
		end(from)
		return err
	}
	return to.CloseWrite()
}

func end(x HalfCloser) {
	if c, ok := x.(io.Closer); ok {
		c.Close()
	}
}

// Dial opens a stream of an opaque function as a connection.
func (s *Session) Dial(ctx context.Context, do wire.Do) (net.Conn, error) {
	st, _, err := s.Open(ctx, wire.Open{Do: do})
	if err != nil {
		return nil, err
	}
	return &conn{Stream: st, at: address(s.Grant.Target.Name)}, nil
}

// conn is a stream where a connection is wanted. It has no deadlines: it ends
// with the session, or by Close.
type conn struct {
	wire.Stream
	at address
}

type address string

func (a address) Network() string { return "gatehouse" }
func (a address) String() string  { return string(a) }

func (c *conn) LocalAddr() net.Addr              { return address("technician") }
func (c *conn) RemoteAddr() net.Addr             { return c.at }
func (c *conn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *conn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
