package gateway

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/cert"
	"gatehouse/appliance/control"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
)

var (
	organisationKey = ed25519.NewKeyFromSeed([]byte("the organisation of these tests!"))
	gatewayKey      atomic.Pointer[control.Meeting] // what the newest gateway said of itself
)

// ends are the keys and the grant of a session.
type ends struct {
	agent, technician tls.Certificate
	grant             session.Grant
	gateway           session.Key
}

func newEnds(t *testing.T) ends {
	t.Helper()
	e := ends{agent: ephemeral(t), technician: ephemeral(t), gateway: session.Key(gatewayKey.Load().Gateway)}
	id, err := session.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	e.grant = session.Grant{ID: id, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.TLS,
		Key: session.KeyOf(e.technician.Leaf), Agent: session.KeyOf(e.agent.Leaf),
		Target:    session.Target{Name: "nas", Kind: session.SSH, Host: "192.0.2.1", Port: 22},
		Functions: right.RemoteControl, Recording: session.RecordingOff, From: now, Until: now.Add(time.Hour)}
	return e
}

func ephemeral(t *testing.T) tls.Certificate {
	t.Helper()
	c, err := cert.Ephemeral("end")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (e ends) ticket(t *testing.T, side session.Side, signer ed25519.PrivateKey) []byte {
	t.Helper()
	b, err := e.grant.Ticket(e.grant.ID, side, e.gateway, time.Now()).Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func meetAt(t *testing.T, address string, e ends, own tls.Certificate, ticket []byte) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return relay.Meet(ctx, c, e.gateway, own, ticket)
}

// TestSES1_GatewayJoinsTicketsOfTheOrganisation goes through port 443 of a
// running gateway.
func TestSES1_GatewayJoinsTicketsOfTheOrganisation(t *testing.T) {
	b := newBed(t, false)
	conn, err := tls.Dial("tcp", b.https, &tls.Config{InsecureSkipVerify: true}) // it has said its key by now
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	e := newEnds(t)
	stranger := ed25519.NewKeyFromSeed([]byte("somebody else’s organisation!!")[:32])
	var refused *relay.Refused
	if _, err := meetAt(t, b.https, e, e.technician, e.ticket(t, session.TechnicianSide, stranger)); !errors.As(err, &refused) {
		t.Errorf("a stranger's ticket: %v", err)
	}
	if _, err := meetAt(t, b.https, e, e.agent, e.ticket(t, session.TechnicianSide, organisationKey)); !errors.As(err, &refused) {
		t.Errorf("a ticket shown by who does not hold its key: %v", err)
	}
	got := make(chan string, 1)
	go func() {
		c, err := meetAt(t, b.https, e, e.agent, e.ticket(t, session.AgentSide, organisationKey))
		if err == nil {
			var s *tls.Conn
			if s, err = relay.Agent(t.Context(), c, e.grant, e.agent); err == nil {
				text := make([]byte, 5)
				if _, err = io.ReadFull(s, text); err == nil {
					got <- string(text)
					return
				}
			}
		}
		got <- err.Error()
	}()
	c, err := meetAt(t, b.https, e, e.technician, e.ticket(t, session.TechnicianSide, organisationKey))
	if err != nil {
		t.Fatal(err)
	}
	s, err := relay.Technician(t.Context(), c, e.grant, e.technician)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s, "hello"); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "hello" {
		t.Errorf("the agent got %q", text)
	}
	if _, err := meetAt(t, b.https, e, e.technician, e.ticket(t, session.TechnicianSide, organisationKey)); !errors.As(err, &refused) {
		t.Errorf("the same meeting again: %v", err)
	}
}

func TestSES1_OrganisationIsAskedForUntilItIsKnown(t *testing.T) {
	now, asked := time.Unix(1e9, 0), 0
	var m control.Meeting
	var fail error
	o := &organisation{ask: func() (control.Meeting, error) { asked++; return m, fail }, now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler)}
	for range 100 {
		if o.key() != nil {
			t.Fatal("there is a key")
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times in a moment", asked)
	}
	now, fail = now.Add(time.Second), errors.New("gone")
	if o.key() != nil || asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	now, fail, m.Organisation = now.Add(time.Second), nil, organisationKey.Public().(ed25519.PublicKey)
	for range 3 {
		if o.key() == nil {
			t.Fatal("there is no key")
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
}
