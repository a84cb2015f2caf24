package network

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// A change of the address that a person uses takes the browser's session with
// it: cookies belong to an address. Signing in anew takes longer than the
// change waits, so its author gets a ticket: 130 bits, good for keeping this
// one change, once, as its author, and for nothing else.
type ticket struct {
	person    string
	candidate string // "" until the change is in effect
	until     time.Time
}

const (
	ticketTime = 10 * time.Minute // from the look at the difference
	mostOfThem = 64
)

type tickets struct {
	now func() time.Time
	mu  sync.Mutex
	all map[string]ticket
}

// issue makes one for a person.
func (t *tickets) issue(person string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for name, x := range t.all {
		if !now.Before(x.until) || len(t.all) >= mostOfThem {
			delete(t.all, name)
		}
	}
	name := rand.Text()
	t.all[name] = ticket{person: person, until: now.Add(ticketTime)}
	return name
}

// bind says which candidate a person's ticket is for.
func (t *tickets) bind(name, person, candidate string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x, ok := t.all[name]; ok && x.person == person {
		x.candidate, x.until = candidate, t.now().Add(2*control.KeepWithin)
		t.all[name] = x
	}
}

func (t *tickets) find(name string) (ticket, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, ok := t.all[name]
	return x, ok && t.now().Before(x.until)
}

func (t *tickets) use(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, name)
}

// newAddresses are those that the settings give and the box does not have now:
// where a person goes on whose address goes away.
func newAddresses(s control.NetworkSettings, now control.NetworkState) (list []netip.Addr) {
	for _, l := range s.Links {
		if l.Mode == netconf.Off {
			continue
		}
		for _, p := range l.Addresses {
			had := slices.ContainsFunc(now.Links, func(x control.Link) bool {
				return slices.ContainsFunc(x.Addresses, func(q netip.Prefix) bool { return q.Addr() == p.Addr() })
			})
			if !had && !p.Addr().IsLinkLocalUnicast() && !slices.Contains(list, p.Addr()) {
				list = append(list, p.Addr())
			}
		}
	}
	return list
}

// otherAddresses are those that the box keeps, for one who can reach it there.
func otherAddresses(s control.NetworkSettings, now control.NetworkState, local netip.Addr) (list []netip.Addr) {
	for _, l := range now.Links {
		x := netconf.Of(s, l.Name)
		for _, p := range l.Addresses {
			a := p.Addr()
			stays := x == nil || x.Mode == netconf.Automatic || x.Mode == netconf.Static && slices.Contains(x.Addresses, p)
			if stays && a != local && !a.IsLinkLocalUnicast() && !a.IsLoopback() && l.Carrier {
				list = append(list, a)
			}
		}
	}
	return list
}
