package network

import (
	"net/netip"
	"slices"
	"time"

	"gatehouse/appliance/control"
)

// port is a link as the kernel tells of it.
type port struct {
	Name    string
	Index   int
	MAC     string // bytes, so that ports compare
	Carrier bool
	Taken   int    // how often what was set here was taken away by a change; control.NetworkState
	Card    string // the MAC address in the card, as text, if the link is one of the machine's own
}

// change is what to do about one link.
type change struct {
	Port  port
	Start bool // else stop and take back
}

// plan compares the links that are worked on with those that are there: a link
// that came or got a carrier starts; one that went, lost it, or has the name
// but is another one (a USB adapter replugged), or lost what was set there, stops, and starts anew when it
// can. Stops come first, by name, so that the order is always the same.
func plan(running, seen map[string]port) []change {
	var changes []change
	for _, name := range sortedNames(running) {
		if now, ok := seen[name]; !ok || !now.Carrier || now != running[name] {
			changes = append(changes, change{Port: running[name]})
		}
	}
	for _, name := range sortedNames(seen) {
		if now := seen[name]; now.Carrier && running[name] != now {
			changes = append(changes, change{Port: now, Start: true})
		}
	}
	return changes
}

func sortedNames[V any](m map[string]V) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// learnt is all that is known of one link.
type learnt struct {
	v4, v6     *lease
	ra         advertised   // names, by router advertisements
	linkLocal  netip.Prefix // the fallback, used while there is no v4
	end4, end6 time.Time    // of the leases
}

// request says it in PID 1's words. Without anything it takes back what was set.
// The time is that of the shorter lease: the kernel takes the addresses away
// then, even if this process is no more.
func (k learnt) request(name string, now time.Time) control.NetworkApply {
	r := control.NetworkApply{Interface: name}
	switch {
	case k.v4 != nil:
		r.Source = "dhcp"
		r.MTU = k.v4.MTU
		r.Seconds = shorter(r.Seconds, k.end4.Sub(now))
		r.Addresses = append(r.Addresses, k.v4.Address)
		if k.v4.Gateway.IsValid() {
			r.Gateways = append(r.Gateways, k.v4.Gateway)
		}
	case k.linkLocal.IsValid():
		r.Source = "link-local"
		r.Addresses = append(r.Addresses, k.linkLocal)
	}
	if k.v6 != nil {
		r.Source = "dhcp"
		if k.v6.Address.IsValid() {
			r.Addresses = append(r.Addresses, k.v6.Address)
			r.Seconds = shorter(r.Seconds, k.end6.Sub(now))
		}
	}
	for _, l := range []*lease{k.v4, k.v6} {
		if l != nil {
			r.Resolvers = append(r.Resolvers, l.Resolvers...)
			r.Search = append(r.Search, l.Search...)
		}
	}
	if ra := values(k.ra.resolvers); len(ra) > 0 || len(k.ra.search) > 0 {
		r.Resolvers = append(r.Resolvers, ra...)
		r.Search = append(r.Search, values(k.ra.search)...)
		if r.Source == "" {
			r.Source = "slaac"
		}
	}
	// In their order, each once: DHCP and advertisements often name the same.
	var resolvers []netip.Addr
	for _, a := range r.Resolvers {
		if !slices.Contains(resolvers, a) && len(resolvers) < 2*mostResolvers {
			resolvers = append(resolvers, a)
		}
	}
	r.Resolvers = resolvers
	slices.Sort(r.Search)
	r.Search = slices.Compact(r.Search)
	r.Search = r.Search[:min(len(r.Search), mostSearch)]
	return r
}

// empty says that there are no servers to be had of the link.
func (k learnt) empty() bool { return k.v4 == nil && k.v6 == nil && len(k.ra.resolvers) == 0 }

// shorter is the lesser of s seconds, if there are any, and d; at least one,
// since none means for ever.
func shorter(s uint32, d time.Duration) uint32 {
	n := uint32(max(1, d/time.Second))
	if s == 0 {
		return n
	}
	return min(s, n)
}

// sameRequest says whether PID 1 would set the same; the remaining time is
// left out, since a renewal is told anyway.
func sameRequest(a, b control.NetworkApply) bool {
	return a.Interface == b.Interface && a.Source == b.Source && a.MTU == b.MTU &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Gateways, b.Gateways) &&
		slices.Equal(a.Resolvers, b.Resolvers) && slices.Equal(a.Search, b.Search)
}
