// Package netfilter turns the state of the box into the ordered rules that the kernel shall hold.
//
// It knows no kernel: a RuleSet is data with a text form, the same text that
// `nft --stateless list table inet gatehouse` prints once the rules are
// loaded. Package netfilter/nft is the one door that loads them.
package netfilter

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Table is the name of the one table, in the inet family, that is ours.
// Nothing outside of it is ever read or written.
const Table = "gatehouse"

// Hook is where a base chain is called.
type Hook string

// The hooks in use; a chain without one is only reached by goto.
const (
	Prerouting Hook = "prerouting"
	Input      Hook = "input"
	Forward    Hook = "forward"
	Output     Hook = "output"
)

// Priority of the chains: raw comes before connection tracking, so that a
// refused packet costs no entry and a refused source has no old connection
// that keeps it in.
const (
	PriorityRaw    = -300
	PriorityFilter = 0
)

// A Chain is an ordered list of rules; the first verdict counts.
type Chain struct {
	Name     string
	Hook     Hook // "" for a chain that others go to
	Priority int
	Drop     bool // policy drop; else accept
	Rules    []Rule
}

// Proto is a transport protocol by its number (IANA protocol numbers).
type Proto uint8

// The protocols that rules name.
const (
	ICMP   Proto = 1
	IGMP   Proto = 2
	TCP    Proto = 6
	UDP    Proto = 17
	ICMPv6 Proto = 58
)

// Conn is a set of connection-tracking states, as bits of the kernel's
// NF_CT_STATE_BIT.
type Conn uint32

// The states that rules name.
const (
	Invalid     Conn = 1
	Established Conn = 2
	Related     Conn = 4
	New         Conn = 8
)

// Verdict is what becomes of a packet that matches; None goes on to the next rule.
type Verdict string

// The verdicts.
const (
	None   Verdict = ""
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
	Goto   Verdict = "goto" // Rule.Target
)

// A Rule matches when every field that is set matches.
type Rule struct {
	Interface   string       // name of the incoming interface; by name, since indexes change
	Source      netip.Prefix // source address
	Destination netip.Addr   // destination address; of the family of Source, if that is set too
	Set         SetName      // that has the source address
	HopLimit    uint8        // exactly; IPv6 unless Proto is IGMP
	Proto       Proto
	Type        uint8 // ICMP or ICMPv6 type
	SourcePort  uint16
	Port        uint16 // destination port
	Conn        Conn   // any of these states
	Rate        uint64 // at most so many a second; Burst as many again at once
	Burst       uint32
	Sample      Reason // hand a copy of the packet's head to who listens (nflog), with the reason
	Counter     string // named counter of the table
	Verdict     Verdict
	Target      string // of Goto

	Here bool // for an address of this machine, as its routes say
}

// A RuleSet is the whole content of the table.
type RuleSet struct {
	Chains []Chain
}

// Counters lists the named counters in the order in which rules use them.
func (s RuleSet) Counters() []string {
	var names []string
	seen := make(map[string]bool)
	for _, c := range s.Chains {
		for _, r := range c.Rules {
			if r.Counter != "" && !seen[r.Counter] {
				seen[r.Counter] = true
				names = append(names, r.Counter)
			}
		}
	}
	return names
}

// Sets lists the sets that rules ask, in the order of their first use. They
// have to be there, filled, before the rules are loaded.
func (s RuleSet) Sets() []SetName {
	var names []SetName
	for _, c := range s.Chains {
		for _, r := range c.Rules {
			if r.Set != (SetName{}) && !slices.Contains(names, r.Set) {
				names = append(names, r.Set)
			}
		}
	}
	return names
}

// Unsampled is the rule set without the rules that only sample, for a kernel
// that cannot: it refuses the same packets.
func (s RuleSet) Unsampled() RuleSet {
	out := RuleSet{Chains: slices.Clone(s.Chains)}
	for i, c := range out.Chains {
		out.Chains[i].Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r Rule) bool { return r.Sample != "" && r.Verdict == None })
	}
	return out
}

// String writes the rules in the syntax of nft, loadable by `nft -f`; the sets
// are there without their elements.
func (s RuleSet) String() string {
	var b strings.Builder
	b.WriteString("table inet " + Table + " {\n")
	for _, name := range s.Counters() {
		b.WriteString("\tcounter " + name + " {\n\t}\n\n")
	}
	for _, n := range s.Sets() {
		b.WriteString("\tset " + n.String() + " {\n\t\ttype " + n.keyType() + "\n\t\tflags interval\n\t}\n\n")
	}
	for i, c := range s.Chains {
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString("\tchain " + c.Name + " {\n")
		if c.Hook != "" {
			b.WriteString("\t\ttype filter hook " + string(c.Hook) + " priority " + priorityName(c.Priority) + "; policy " + c.policy() + ";\n")
		}
		for _, r := range c.Rules {
			b.WriteString("\t\t" + r.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (c Chain) policy() string {
	if c.Drop {
		return string(Drop)
	}
	return string(Accept)
}

func priorityName(p int) string {
	switch p {
	case PriorityRaw:
		return "raw"
	case PriorityFilter:
		return "filter"
	}
	return strconv.Itoa(p)
}

// String writes one rule in the syntax of nft.
func (r Rule) String() string {
	var words []string
	add := func(w ...string) { words = append(words, w...) }
	if r.Interface != "" {
		add("iifname", strconv.Quote(r.Interface))
	}
	if r.Source.IsValid() {
		add(family(r.Source.Addr()), "saddr", prefixText(r.Source))
	}
	if r.Destination.IsValid() {
		add(family(r.Destination), "daddr", r.Destination.String())
	}
	if r.Set != (SetName{}) {
		add(r.Set.family(), "saddr", "@"+r.Set.String())
	}
	if r.HopLimit != 0 {
		if r.Proto == IGMP {
			add("ip ttl")
		} else {
			add("ip6 hoplimit")
		}
		add(strconv.Itoa(int(r.HopLimit)))
	}
	words = append(words, r.transport()...)
	if r.Here {
		add("fib daddr type local")
	}
	if r.Conn != 0 {
		add("ct state", r.Conn.String())
	}
	if r.Rate != 0 {
		add("limit rate", strconv.FormatUint(r.Rate, 10)+"/second", "burst", strconv.FormatUint(uint64(r.Burst), 10), "packets")
	}
	if r.Sample != "" {
		add("log prefix", strconv.Quote(r.Sample.Prefix()), "group", strconv.Itoa(SampleGroup), "snaplen", strconv.Itoa(SampleLength))
	}
	if r.Counter != "" {
		add("counter name", strconv.Quote(r.Counter))
	}
	if r.Verdict != None {
		add(string(r.Verdict))
	}
	if r.Verdict == Goto {
		add(r.Target)
	}
	return strings.Join(words, " ")
}

func (r Rule) transport() []string {
	switch r.Proto {
	case ICMP:
		return []string{"icmp type", icmpName[r.Type]}
	case ICMPv6:
		return []string{"icmpv6 type", icmpv6Name[r.Type]}
	case IGMP:
		return []string{"ip protocol igmp"}
	}
	name := map[Proto]string{TCP: "tcp", UDP: "udp"}[r.Proto]
	var words []string
	if r.SourcePort != 0 {
		words = append(words, name, "sport", strconv.Itoa(int(r.SourcePort)))
	}
	if r.Port != 0 {
		words = append(words, name, "dport", strconv.Itoa(int(r.Port)))
	}
	return words
}

// String writes the states in the order that nft prints.
func (c Conn) String() string {
	var words []string
	for _, s := range []struct {
		bit  Conn
		name string
	}{{Invalid, "invalid"}, {Established, "established"}, {Related, "related"}, {New, "new"}} {
		if c&s.bit != 0 {
			words = append(words, s.name)
		}
	}
	return strings.Join(words, ",")
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

func (n SetName) family() string {
	if n.V6 {
		return "ip6"
	}
	return "ip"
}

func (n SetName) keyType() string {
	if n.V6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Names of the types in nft's words; a type that is not here is not used.
var (
	icmpName   = map[uint8]string{3: "destination-unreachable", 8: "echo-request", 11: "time-exceeded", 12: "parameter-problem"}
	icmpv6Name = map[uint8]string{1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem",
		128: "echo-request", 130: "mld-listener-query", 131: "mld-listener-report", 132: "mld-listener-done",
		134: "nd-router-advert", 135: "nd-neighbor-solicit", 136: "nd-neighbor-advert", 143: "mld2-listener-report"}
)
