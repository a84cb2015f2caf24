package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

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
	t := tls.Client(whole{c}, TechnicianTLS(g, own))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the session with the agent: %w", err), c.Close())
	}
	return t, nil
}

// Agent makes the agent's end: the one that answers. It takes the holder of the
// technician's key, for this session and no other. On an error it closes the
// connection.
func Agent(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (*tls.Conn, error) {
	t := tls.Server(whole{c}, AgentTLS(g, own))
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
type whole struct{ net.Conn }

var errCut = errors.New("the connection was cut: the other end did not say that it was done")

func (w whole) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

func sessionName(id session.ID) string { return id.String() + ".session.gatehouse.internal" }
