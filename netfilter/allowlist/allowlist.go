// Package allowlist parses allowlists and compiles them into what the kernel and the roles judge sources by.
//
// It is pure: files come in as readers, and out comes a Policy that is valid by
// construction, or Problems that name file, line and reason. A Policy that is
// off is said to be off; no list is never read as "all may".
package allowlist

import (
	"net/netip"
)

// Scope is a set of what a source may reach on ports 80 and 443.
type Scope uint8

// The scopes. The kernel admits the union; the gateway tells them apart.
const (
	Console    Scope = 1 << iota // pages, API, the tool
	Sites                        // sites that enrol and report, tunnels
	Visitors                     // those who were invited to one session
	Everything = Console | Sites | Visitors
)

// Limits of a Policy; a mistake must not fill the memory of a small box.
const (
	MaxLists  = 64
	MaxRanges = 1 << 20  // of all lists, after merging
	MaxBytes  = 64 << 20 // of all files
)

// Range is the addresses from First to Last, both included, of one family;
// never an IPv4 address in IPv6 form, never with a zone.
type Range struct{ First, Last netip.Addr }

// List is one allowlist. Its ranges are sorted, disjoint and not adjacent: what
// can be merged is.
type List struct {
	Name    string // a to z, 0 to 9 and -, at most 32, beginning with a letter
	Enabled bool
	Scopes  Scope
	Note    string
	Ranges  []Range // IPv4 first
}

// Policy is all lists, in the order in which counters tell a hit.
type Policy struct {
	Enabled bool // the switch for all; off: the lists judge nobody
	XDP     XDP
	Lists   []List
}

// XDP says when the early stage stands before the lists.
type XDP string

// The words for it; the empty one is XDPAuto.
const (
	XDPAuto XDP = "auto" // for lists of XDPFrom ranges or more
	XDPOn   XDP = "on"
	XDPOff  XDP = "off"
)

// XDPFrom is where a stranger's packet costs half as much again as with a
// small list, and filling the tries (a fifth of a second) is lost beside
// filling the sets. Below, the early stage is one more thing that can differ.
const XDPFrom = 100_000

// Early says whether the policy asks for the early stage.
func (p Policy) Early() bool {
	if !p.Enabled || p.XDP == XDPOff {
		return false
	}
	n := 0
	for _, l := range p.Lists {
		if l.Enabled {
			n += len(l.Ranges)
		}
	}
	return p.XDP == XDPOn || n >= XDPFrom
}

// Admits is the union of the scopes that a source has; Everything while the
// policy is off.
func (p Policy) Admits(a netip.Addr) Scope {
	if !p.Enabled {
		return Everything
	}
	a = a.Unmap().WithZone("")
	var s Scope
	for _, l := range p.Lists {
		if l.Enabled && l.Contains(a) {
			s |= l.Scopes
		}
	}
	return s
}

// Contains says whether the list has the address.
func (l List) Contains(a netip.Addr) bool {
	low, high := 0, len(l.Ranges)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if l.Ranges[mid].Last.Less(a) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low < len(l.Ranges) && !a.Less(l.Ranges[low].First) && a.BitLen() == l.Ranges[low].First.BitLen()
}
