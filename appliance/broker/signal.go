package broker

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// Signal takes a browser's offer to the agent, and its answer back.
func (b *Broker) Signal(ctx context.Context, who asker.Who, q api.SignalAsk) (api.Signalled, error) {
	l, err := b.mine(who, q.Session)
	if err != nil {
		return api.Signalled{}, err
	}
	n, err := b.lineOf(l)
	switch {
	case err != nil:
		return api.Signalled{}, err
	case l.grant.Transport != session.WebRTC:
		return api.Signalled{}, asker.Refuse("This session is not a browser's.")
	case len(q.SDP) > maxSDP:
		return api.Signalled{}, asker.Refuse("The offer is larger than offers are.")
	}
	s := attend.Signal{Session: q.Session, SDP: q.SDP, Port: who.Local.Port(), Hosts: faces(who)}
	for range signalTickets {
		id, err := session.NewID(rand.Reader)
		if err != nil {
			return api.Signalled{}, err
		}
		t, err := b.agentTicket(l, n, id)
		if err != nil {
			return api.Signalled{}, err
		}
		s.Tickets = append(s.Tickets, t)
	}
	answer := make(chan attend.Signalled, 1)
	b.mu.Lock()
	if l.answers == nil || len(l.answers) >= 4 {
		b.mu.Unlock()
		return api.Signalled{}, asker.Refuse("This session is over, or has too many offers that wait.")
	}
	l.asked++
	s.Number = l.asked
	l.answers[s.Number] = answer
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(l.answers, s.Number)
		b.mu.Unlock()
	}()
	if err := n.send(attend.ToSite{Signal: &s}); err != nil {
		return api.Signalled{}, asker.Refuse("The agent does not answer. Try again in a moment.")
	}
	ctx, cancel := context.WithTimeout(ctx, signalTime)
	defer cancel()
	select {
	case a, ok := <-answer:
		switch {
		case !ok:
			return api.Signalled{}, errNoSession
		case a.Error != "":
			return api.Signalled{}, asker.Refuse("The agent does not take the offer: %s.", strings.TrimSuffix(a.Error, "."))
		}
		return api.Signalled{SDP: a.SDP}, nil
	case <-ctx.Done():
		return api.Signalled{}, asker.Refuse("The agent did not answer in %s. Try again.", signalTime)
	}
}

// Limits of a browser's offer.
const (
	maxSDP        = 16 << 10
	signalTickets = 4
	signalTime    = 8 * time.Second
)

// faces are the addresses by which a browser reaches the gateway: the one that
// it came to, and the one that it typed, where it is one.
func faces(who asker.Who) []string {
	var hosts []string
	host, port, err := net.SplitHostPort(who.Host)
	if err != nil {
		host, port = strings.Trim(who.Host, "[]"), "443"
	}
	if a, err := netip.ParseAddr(host); err == nil && port == strconv.Itoa(int(who.Local.Port())) {
		hosts = append(hosts, a.String())
	}
	if a := who.Local.Addr().Unmap().WithZone(""); a.IsValid() && !slices.Contains(hosts, a.String()) {
		hosts = append(hosts, a.String())
	}
	return hosts
}
