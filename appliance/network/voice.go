package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/network/mdns"
)

// voice speaks for the box in one group on one link.
type voice struct {
	segment segment
	group   netip.AddrPort
	conn    *net.UDPConn
	lost    func() // called when somebody else has the name
	log     *slog.Logger

	mu        sync.Mutex
	responder *mdns.Responder
	onLink    []netip.Prefix
}

func newVoice(s segment, group netip.AddrPort, service mdns.Service, lost func(), log *slog.Logger) (*voice, error) {
	conn, err := join(s, group)
	if err != nil {
		return nil, err
	}
	r, err := mdns.NewResponder(service, time.Now(), jitter)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &voice{segment: s, group: group, conn: conn, lost: lost, log: log, responder: r, onLink: s.own}, nil
}

// run speaks until ctx ends, then says goodbye and closes the socket.
func (v *voice) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, v.wake)
	defer stop()
	defer v.conn.Close()
	b := make([]byte, mdns.MaxPacket)
	for ctx.Err() == nil {
		v.speak()
		n, from, err := v.conn.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			// The link went down: it is seen and closed soon.
			v.log.Debug("hearing mDNS", "link", v.segment.name, "err", err)
			sleepUntil(ctx, time.Now().Add(time.Second)) // the loop sees how it ended
		default:
			v.hear(b[:n], from)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.send(v.responder.Goodbye())
}

// wake ends the wait for a packet. It is set anew under the same lock, so that
// it is never lost.
func (v *voice) wake() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.until(time.Unix(1, 0))
}

func (v *voice) until(t time.Time) {
	if err := v.conn.SetReadDeadline(t); err != nil {
		v.log.Debug("waiting for mDNS", "link", v.segment.name, "err", err)
	}
}

// speak says what is due and sets when it is to be called again.
func (v *voice) speak() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.send(v.responder.Due(time.Now()))
	v.until(v.responder.Next())
	if v.responder.Lost() {
		v.lost()
	}
}

func (v *voice) send(packets []mdns.Packet) {
	for _, p := range packets {
		to := p.To
		if !to.IsValid() {
			to = v.group
		}
		if _, err := v.conn.WriteToUDPAddrPort(p.Data, to); err != nil {
			v.log.Debug("sending mDNS", "link", v.segment.name, "to", to, "err", err)
		}
	}
}

// hear takes a packet of somebody else on the link: not our own, which comes
// back where two links of the box are in one network.
func (v *voice) hear(b []byte, from netip.AddrPort) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := from.Addr().Unmap().WithZone("")
	service := v.responder.Service()
	if slices.Contains(service.Addresses, a) || slices.Contains(service.Elsewhere, a) ||
		!slices.ContainsFunc(v.onLink, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return
	}
	if err := v.responder.Receive(b, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), time.Now()); err != nil {
		v.log.Debug("a packet of mDNS was passed over", "link", v.segment.name, "from", from, "err", err)
	}
}

// tell changes what is told under the name.
func (v *voice) tell(s segment, service mdns.Service) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.onLink = s.own
	if v.responder.Service().Equal(service) {
		return nil
	}
	defer v.until(time.Unix(1, 0))
	return v.responder.Update(service, time.Now())
}

func (v *voice) state() (name string, settled, lost bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.responder.Service().Name, v.responder.Settled(), v.responder.Lost()
}
