package netfilter

import (
	"cmp"
	"net/netip"
	"slices"

	"gatehouse/appliance/control"
)

// Form says whose machine it is.
type Form int

// On our own image the whole machine is closed but for the two ports; hosted,
// only our own ports are judged and nothing else is touched.
const (
	Box Form = iota
	Hosted
)

// Ports are the TCP ports that are ours; a zero port is not there. Hosted they
// may be ours on one address alone, and somebody else's on another.
type Ports struct {
	HTTP, HTTPS     uint16
	HTTPAt, HTTPSAt netip.Addr // the zero Addr: every address of the machine
}

// State is all that the rules follow from.
type State struct {
	Phase  control.State  // anything unknown is treated as starting: closed
	OnLink []netip.Prefix // our own addresses with their prefix lengths, unmasked, as the kernel has them
	Ports  Ports          // on a box without a word: 80 and 443
	Form   Form
	Lists  Lists // who judges while ready

	// Multicast lets mDNS questions and answers in, on the groups of the link
	// alone (RFC 6762); never hosted, where 5353 is not ours.
	Multicast bool
}

// The names of the counters, as faces show them.
const (
	WebOnLink      = "web_on_link"         // packets to the web ports from the box's own networks
	WebOpen        = "web_open"            // packets to the web ports that no list judges
	WebRefused     = "web_refused"         // packets to the web ports from a source that is not let in
	WebEarly       = "web_refused_early"   // the same, dropped at the link by the early stage (netfilter/xdp)
	WebLate        = "web_refused_late"    // hosted: the same, found after redirection or reassembly
	WebUDP         = "web_udp_refused"     // UDP to the web ports
	WebNew         = "web_connections"     // connections opened
	EchoAnswered   = "echo"                // pings within the limit
	EchoOver       = "echo_over_limit"     // pings over it, dropped
	Neighbour      = "neighbour_discovery" // router and neighbour messages, hop limit 255
	ICMPErrors     = "icmp_errors"         // unreachable, too big, exceeded, parameter
	Groups         = "multicast_groups"    // IGMP and MLD of the link
	DHCP           = "dhcp_seen"           // DHCP replies; read by a packet socket, never by the host
	MDNS           = "mdns"                // mDNS of the link, to its groups, within the limit
	MDNSDropped    = "mdns_dropped"        // to port 5353 otherwise: unicast, off-link, over the limit, or switched off
	InvalidPackets = "invalid"             // belonging to no connection
	Continued      = "established"         // answers to what the box or a let-in client began
	OtherDropped   = "other_dropped"       // everything else that came in
	ForwardDropped = "forward_dropped"     // sent through the box
	Sent           = "sent"                // sent by the box
)

// Limits of what counts as on-link. An address with a wider prefix (a mistyped
// or hostile /8, /0) counts with the part of this length around it.
const (
	widestV4 = 16
	widestV6 = 64
	// mostOnLink bounds the rules that a flood of router advertisements can
	// cause; prefixes beyond it are not let in.
	mostOnLink = 64
)

// OnLink returns the networks that the box is part of, from its own addresses:
// sorted, each once, never wider than /16 (IPv4) and /64 (IPv6). Addresses of
// the loopback, groups and the unspecified address say nothing of a link.
func OnLink(addresses []netip.Prefix) []netip.Prefix {
	var nets []netip.Prefix
	for _, p := range addresses {
		if !p.IsValid() {
			continue
		}
		a, bits := p.Addr().WithZone(""), p.Bits()
		if a.Is4In6() {
			if bits < 96 {
				continue
			}
			a, bits = a.Unmap(), bits-96
		}
		if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			continue
		}
		widest := widestV6
		if a.Is4() {
			widest = widestV4
		}
		nets = append(nets, netip.PrefixFrom(a, max(bits, widest)).Masked())
	}
	slices.SortFunc(nets, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	nets = slices.Compact(nets)
	// A network inside another adds nothing; sorted, the wider one comes first.
	var out []netip.Prefix
	for _, n := range nets {
		if len(out) > 0 && out[len(out)-1].Overlaps(n) {
			continue
		}
		out = append(out, n)
	}
	return out[:min(len(out), mostOnLink)]
}

// Rules returns the rules for a state.
func Rules(s State) RuleSet {
	if s.Form == Hosted {
		return hostedRules(s)
	}
	if s.Ports == (Ports{}) {
		s.Ports = Ports{HTTP: 80, HTTPS: 443}
	}
	return boxRules(s)
}

// List is each port once.
func (p Ports) List() []uint16 {
	var ports []uint16
	for _, n := range []uint16{p.HTTP, p.HTTPS} {
		if n != 0 && !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	return ports
}

// Ours says whether connections to that address and port come to us.
func (p Ports) Ours(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(p.places(), func(q place) bool { return q.port == port && (!q.at.IsValid() || q.at == a.Unmap()) })
}

type place struct {
	at   netip.Addr
	port uint16
}

// places is each once, and none that another has in it.
func (p Ports) places() []place {
	var out []place
	for _, q := range []place{{p.HTTPAt, p.HTTP}, {p.HTTPSAt, p.HTTPS}} {
		if q.port == 0 || slices.Contains(out, q) {
			continue
		}
		if q.at.IsValid() {
			q.at = q.at.Unmap().WithZone("")
		}
		out = append(out, q)
	}
	return out
}

// web judges sources of packets to the web ports; refused is the counter of
// what it drops. It always ends with a verdict for every packet: what lets all
// in is said, never the absence of a rule. Only the first look counts who came
// in, or hosted it would count twice.
func web(s State, name string, first bool, refused string) Chain {
	c := Chain{Name: name}
	counter := func(name string) string {
		if !first {
			return ""
		}
		return name
	}
	reason := ReasonStarting
	switch s.Phase {
	case control.StateReady:
		if s.Lists.Off {
			c.Rules = append(c.Rules, Rule{Counter: counter(WebOpen), Verdict: Accept})
			return c
		}
		reason = ReasonNoList
		c.Rules = append(c.Rules, s.Lists.rules(first)...)
	case control.StateUnclaimed, control.StateLocked:
		reason = ReasonOffLink
		for _, p := range OnLink(s.OnLink) {
			c.Rules = append(c.Rules, Rule{Source: p, Counter: counter(WebOnLink), Verdict: Accept})
		}
	}
	c.Rules = append(c.Rules,
		Rule{Rate: sampleRate, Burst: sampleRate, Sample: reason},
		Rule{Counter: refused, Verdict: Drop})
	return c
}

// raw comes before connection tracking and looks at the web ports alone.
func raw(s State, to string) Chain {
	c := Chain{Name: "raw", Hook: Prerouting, Priority: PriorityRaw}
	c.Rules = append(c.Rules, Rule{Interface: "lo", Verdict: Accept})
	for _, p := range s.Ports.places() {
		c.Rules = append(c.Rules, Rule{Destination: p.at, Proto: TCP, Port: p.port, Verdict: Goto, Target: to})
	}
	return c
}

func boxRules(s State) RuleSet {
	r := raw(s, "web")
	for _, port := range s.Ports.List() {
		r.Rules = append(r.Rules, Rule{Proto: UDP, Port: port, Counter: WebUDP, Verdict: Drop})
	}
	return RuleSet{Chains: []Chain{
		r,
		web(s, "web", true, WebRefused),
		input(s),
		{Name: "forward", Hook: Forward, Drop: true, Rules: []Rule{{Counter: ForwardDropped, Verdict: Drop}}},
		{Name: "output", Hook: Output, Rules: []Rule{{Counter: Sent}}},
	}}
}

// input closes the machine. ICMP comes before connection tracking has a word:
// an echo of a known flow would else escape its limit, and packet-too-big for a
// flow that tracking has forgotten would be lost; the kernel itself checks
// errors against its sockets. Neighbour discovery has no limit, or a flood of
// pings would end IPv6.
func input(s State) Chain {
	c := Chain{Name: "input", Hook: Input, Drop: true}
	add := func(r ...Rule) { c.Rules = append(c.Rules, r...) }
	add(Rule{Interface: "lo", Verdict: Accept})
	for _, t := range []uint8{134, 135, 136} {
		add(Rule{HopLimit: 255, Proto: ICMPv6, Type: t, Counter: Neighbour, Verdict: Accept})
	}
	for _, t := range []uint8{3, 11, 12} {
		add(Rule{Proto: ICMP, Type: t, Counter: ICMPErrors, Verdict: Accept})
	}
	for _, t := range []uint8{1, 2, 3, 4} {
		add(Rule{Proto: ICMPv6, Type: t, Counter: ICMPErrors, Verdict: Accept})
	}
	add(
		Rule{Proto: ICMP, Type: 8, Rate: 20, Burst: 20, Counter: EchoAnswered, Verdict: Accept},
		Rule{Proto: ICMP, Type: 8, Counter: EchoOver, Verdict: Drop},
		Rule{Proto: ICMPv6, Type: 128, Rate: 20, Burst: 20, Counter: EchoAnswered, Verdict: Accept},
		Rule{Proto: ICMPv6, Type: 128, Counter: EchoOver, Verdict: Drop},
		Rule{HopLimit: 1, Proto: IGMP, Counter: Groups, Verdict: Accept},
	)
	for _, t := range []uint8{130, 131, 132, 143} {
		add(Rule{Source: linkLocal, HopLimit: 1, Proto: ICMPv6, Type: t, Counter: Groups, Verdict: Accept})
	}
	// The DHCP clients read the wire with packet sockets, which see a packet
	// before any rule. The host's own stack need not have it: accepted here
	// without a listener it would answer port unreachable, and answer at all.
	add(
		Rule{Proto: UDP, SourcePort: 67, Port: 68, Counter: DHCP, Verdict: Drop},
		Rule{Source: linkLocal, Proto: UDP, SourcePort: 547, Port: 546, Counter: DHCP, Verdict: Drop},
	)
	add(mdns(s)...)
	add(
		Rule{Conn: Invalid, Counter: InvalidPackets, Verdict: Drop},
		Rule{Conn: Established | Related, Counter: Continued, Verdict: Accept},
	)
	switch s.Phase {
	case control.StateReady, control.StateUnclaimed, control.StateLocked:
		for _, port := range s.Ports.List() {
			add(Rule{Proto: TCP, Port: port, Conn: New, Counter: WebNew, Verdict: Accept})
		}
	}
	add(Rule{Counter: OtherDropped, Verdict: Drop})
	return c
}

// The groups of mDNS and its port, RFC 6762 section 3.
var (
	groupV4 = netip.MustParseAddr("224.0.0.251")
	groupV6 = netip.MustParseAddr("ff02::fb")
)

const (
	mdnsPort = 5353
	// mdnsRate is far above what a household of hosts asks, and bounds what a
	// flood costs the role that parses it.
	mdnsRate = 100
)

// mdns judges port 5353 before connection tracking has a word: an answer that
// the box sent to one asker makes a flow, and its other direction would count
// as established and reach the host by unicast.
func mdns(s State) []Rule {
	var rules []Rule
	switch s.Phase {
	case control.StateReady, control.StateUnclaimed, control.StateLocked:
		if !s.Multicast {
			break
		}
		for _, p := range OnLink(s.OnLink) {
			group := groupV6
			if p.Addr().Is4() {
				group = groupV4
			}
			rules = append(rules, Rule{Source: p, Destination: group, Proto: UDP, Port: mdnsPort, Rate: mdnsRate, Burst: mdnsRate, Counter: MDNS, Verdict: Accept})
		}
	}
	return append(rules, Rule{Proto: UDP, Port: mdnsPort, Counter: MDNSDropped, Verdict: Drop})
}

// hostedRules touch nothing but TCP to our own ports: the machine is its
// owner's. UDP of the same number belongs to others there, and so does what the
// machine forwards for its containers and guests to such a port elsewhere. The
// second look, in the input hook, is for what the first cannot see: packets that
// the machine's own NAT redirects to our port, and fragments.
func hostedRules(s State) RuleSet {
	late := Chain{Name: "late", Hook: Input, Priority: PriorityRaw, Rules: raw(s, "web_late").Rules}
	first := raw(s, "web")
	for i := range first.Rules {
		// After the port, so that other packets are not looked up in the routes.
		first.Rules[i].Here = first.Rules[i].Verdict == Goto
	}
	return RuleSet{Chains: []Chain{
		first,
		web(s, "web", true, WebRefused),
		late,
		web(s, "web_late", false, WebLate),
	}}
}

var linkLocal = netip.MustParsePrefix("fe80::/10")
