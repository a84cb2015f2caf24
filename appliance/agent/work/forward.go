package work

import (
	"context"
	"errors"
	"io"
	"net"

	"gatehouse/appliance/session/wire"
)

// copySize is the buffer of one way of one connection, in bytes.
const copySize = 32 << 10

// forward joins a stream with a connection to the target, opaque both ways.
func (s *Session) forward(ctx context.Context, st wire.Stream, o wire.Open) error {
	closed, err := s.opening(ctx, o.Do, nil)
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer closed()
	conn, err := s.link.Dial(ctx)
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := wire.WriteReply(st, wire.Reply{}); err != nil {
		return err
	}
	return join(active{st, s}, conn)
}

// join copies both ways until both have ended. An end of one way is passed on
// as such; a connection that breaks breaks the other, so that a cut is not
// taken for the end of what was sent.
func join(st active, conn net.Conn) error {
	there := make(chan error, 1)
	go func() {
		err := pass(conn, st)
		if err == nil {
			err = closeWrite(conn)
		}
		if err != nil {
			conn.Close()
		}
		there <- err
	}()
	err := pass(st, conn)
	if err == nil {
		err = st.CloseWrite()
	}
	if err != nil {
		reset(st.Stream, "the connection to the target broke")
		conn.Close()
	}
	return errors.Join(err, <-there)
}

func pass(to io.Writer, from io.Reader) error {
	// Plain Write and Read: what is hidden in the two must not copy past the count of use.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copySize))
	return err
}

// reset breaks a stream so that its other end does not take it for a good end,
// where the stream knows the difference.
func reset(st wire.Stream, reason string) {
	switch r := st.(type) {
	case interface{ Reset(string) error }:
		_ = r.Reset(reason) // it is broken either way
	case interface{ Reset(string) }:
		r.Reset(reason)
	}
	st.Close()
}

// closeWrite says on a connection that no more comes from here.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.New("this connection has no half")
}
