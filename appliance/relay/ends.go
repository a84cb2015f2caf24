package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"gatehouse/appliance/session"
)

// SessionProtocol is the ALPN name between the two ends of a session, inside
// what the gateway joins.
const SessionProtocol = "gatehouse-session/1"

// Technician makes the technician's end of a session over a connection that
// leads to the agent, through whatever stands between: TLS 1.3 to the holder of
// the agent's key, for this session and no other. On an error it closes the
// connection.
func Technician(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (*tls.Conn, error) {
	t := tls.Client(&whole{Conn: c}, TechnicianTLS(g, own))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the session with the agent: %w", err), c.Close())
	}
	return t, nil
}

// Agent makes the agent's end: the one that answers. It takes the holder of the
// technician's key, for this session and no other. On an error it closes the
// connection.
func Agent(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (*tls.Conn, error) {
	t := tls.Server(&whole{Conn: c}, AgentTLS(g, own))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the session with the technician: %w", err), c.Close())
	}
	return t, nil
}

// TechnicianTLS is what Technician speaks, for a carriage that has TLS inside, as QUIC does.
func TechnicianTLS(g session.Grant, own tls.Certificate) *tls.Config {
	return pinned(g.Agent, own, SessionProtocol, sessionName(g.ID))
}

// AgentTLS is what Agent speaks.
func AgentTLS(g session.Grant, own tls.Certificate) *tls.Config {
	config := pinned(g.Key, own, SessionProtocol, "")
	config.ClientAuth, config.SessionTicketsDisabled = tls.RequireAnyClientCert, true
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		// The name is part of what both ends have signed: a gateway that joins
		// two sessions of the same people the wrong way round is found by it.
		if cs.ServerName != sessionName(g.ID) {
			return fmt.Errorf("%w: the technician means session %.40q", session.ErrOther, cs.ServerName)
		}
		return verify(cs)
	}
	return config
}

// whole is a connection whose end is an error. crypto/tls takes an end between
// two records for a good one, since web servers forget to say goodbye; here it
// would let a gateway cut a file short unseen. The other end's goodbye is read
// before the end, so that is still an end of file.
//
// It also holds back what is written while it is corked: crypto/tls gives the
// kernel each record by itself, which wakes the reader up for each. Who writes
// much (package carrier) finds it by the NetConn of the TLS connection.
type whole struct {
	net.Conn
	mu   sync.Mutex
	held *[]byte // nil: not corked
}

var errCut = errors.New("the connection was cut: the other end did not say that it was done")

// maxHeld is what is held back before it is written all the same.
const maxHeld = 128 << 10

var heldBuffers = sync.Pool{New: func() any { return new([]byte) }}

func (w *whole) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

func (w *whole) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.Conn.Write(b)
	}
	*w.held = append(*w.held, b...)
	if len(*w.held) >= maxHeld {
		return len(b), w.release()
	}
	return len(b), nil
}

// Cork holds back what is written from now on.
func (w *whole) Cork() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = heldBuffers.Get().(*[]byte)
	}
}

// Uncork writes what was held back.
func (w *whole) Uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return nil
	}
	err := w.release()
	heldBuffers.Put(w.held)
	w.held = nil
	return err
}

func (w *whole) release() error {
	_, err := w.Conn.Write(*w.held)
	*w.held = (*w.held)[:0]
	return err
}

func sessionName(id session.ID) string { return id.String() + ".session.gatehouse.internal" }
