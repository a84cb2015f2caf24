package mdns

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// link is a cable with a clock of its own: what one sends to the group, all
// others get at once.
type link struct {
	t     *testing.T
	now   time.Time
	hosts []*end
	sent  []sent
}

type end struct {
	from netip.AddrPort
	*Responder
}

type sent struct {
	at   time.Duration // since the beginning
	from netip.AddrPort
	Packet
	message
}

var beginning = time.Unix(1_800_000_000, 0)

func newLink(t *testing.T) *link { return &link{t: t, now: beginning} }

func service(name, address string) Service {
	return Service{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Port: 443,
		Text: []string{"name=" + name, "state=unclaimed", "version=0.1.0"}}
}

// most is the random of tests: always all of it.
func most(d time.Duration) time.Duration { return d }

func (l *link) join(s Service) *end {
	l.t.Helper()
	r, err := NewResponder(s, l.now, most)
	if err != nil {
		l.t.Fatal(err)
	}
	e := &end{netip.AddrPortFrom(s.Addresses[0], Port), r}
	l.hosts = append(l.hosts, e)
	return e
}

// run lets time pass, in steps of 5 ms.
func (l *link) run(d time.Duration) {
	l.t.Helper()
	for end := l.now.Add(d); l.now.Before(end); l.now = l.now.Add(5 * time.Millisecond) {
		for _, h := range l.hosts {
			if next := h.Next(); next.IsZero() || next.After(l.now) {
				continue
			}
			for _, p := range h.Due(l.now) {
				l.send(h.from, p)
			}
		}
	}
}

// send puts a packet on the cable.
func (l *link) send(from netip.AddrPort, p Packet) {
	l.t.Helper()
	m, err := parse(p.Data)
	if err != nil {
		l.t.Fatalf("%v sent what it cannot read: %v", from, err)
	}
	l.sent = append(l.sent, sent{l.now.Sub(beginning), from, p, m})
	if p.To.IsValid() {
		return
	}
	for _, h := range l.hosts {
		if h.from == from {
			continue
		}
		if err := h.Receive(p.Data, from, l.now); err != nil {
			l.t.Fatalf("%v to %v: %v", from, h.from, err)
		}
	}
}

// ask sends a question from a host that is none of ours.
func (l *link) ask(from string, m content) {
	l.t.Helper()
	b, err := m.pack()
	if err != nil {
		l.t.Fatal(err)
	}
	l.send(netip.MustParseAddrPort(from), Packet{Data: b})
}

func q(t *testing.T, name string, kind dnsmessage.Type) content {
	t.Helper()
	one, err := ask(name, kind)
	if err != nil {
		t.Fatal(err)
	}
	return content{questions: []dnsmessage.Question{one}}
}

// since are the packets of a host from a time on, then the cable is clean.
func (l *link) take(from netip.AddrPort) []sent {
	list := slices.DeleteFunc(slices.Clone(l.sent), func(s sent) bool { return s.from != from })
	l.sent = nil
	return list
}
