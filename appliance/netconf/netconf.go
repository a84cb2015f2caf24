// Package netconf judges network settings, says in words what a change does, and writes them in one strict form.
//
// It is pure: what the machine has is handed in. Who applies settings is
// package host; who keeps them, package boot; who may ask, package monitor.
package netconf

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/control"
)

// The modes of a link. One without settings is automatic.
const (
	Automatic = "automatic"
	Static    = "static"
	Off       = "off"
)

// The modes of a bond.
const (
	ActiveBackup = "active-backup"
	LACP         = "802.3ad"
)

// Limits, far above any real box. They bound what a request can make the
// kernel hold, and keep the whole within Size.
const (
	mostLinks     = 32
	mostVLANs     = 32
	mostBonds     = 8
	mostMembers   = 8
	mostAddresses = 16
	mostRoutes    = 32
	mostResolvers = 3 // resolv.conf(5): MAXNS
	mostSearch    = 6
	mostTimes     = 8
	smallestMTU   = 1280 // RFC 8200, 5
	largestMTU    = 9216
)

// Of gives the settings of a link; nil: it has none, and is automatic.
func Of(s control.NetworkSettings, name string) *control.LinkSettings {
	i := slices.IndexFunc(s.Links, func(l control.LinkSettings) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Links[i]
}

// Mode is how a link of that name gets its addresses. The part of a bond has
// none of its own.
func Mode(s control.NetworkSettings, name string) string {
	if BondOf(s, name) != "" {
		return Off
	}
	if l := Of(s, name); l != nil {
		return l.Mode
	}
	return Automatic
}

// BondOf is the bond that a link is a part of; "" if it is of none.
func BondOf(s control.NetworkSettings, name string) string {
	for _, b := range s.Bonds {
		if slices.Contains(b.Links, name) {
			return b.Name
		}
	}
	return ""
}

// made says whether a link of that name is one that the settings make.
func made(s control.NetworkSettings, name string) bool {
	return slices.ContainsFunc(s.VLANs, func(v control.VLAN) bool { return v.Name == name }) ||
		slices.ContainsFunc(s.Bonds, func(b control.Bond) bool { return b.Name == name })
}

// Named replaces the names of links that are told by their MAC address by
// those that they have now, wherever they are meant: a link keeps its settings
// when the kernel counts the cards in another order. There are the links of
// the machine itself, with the address that is in the card.
func Named(s control.NetworkSettings, there []control.Link) control.NetworkSettings {
	now := make(map[string]string)
	s.Links = slices.Clone(s.Links)
	for i, l := range s.Links {
		if l.MAC == "" || made(s, l.Name) {
			continue
		}
		j := slices.IndexFunc(there, func(t control.Link) bool { return strings.EqualFold(t.MAC, l.MAC) })
		if j < 0 {
			// Its card is not there; another one may have its name now.
			now[l.Name] = absentName(l.MAC)
		} else {
			now[l.Name] = there[j].Name
		}
		s.Links[i].Name = now[l.Name]
	}
	rename := func(name string) string {
		if n, ok := now[name]; ok {
			return n
		}
		return name
	}
	s.VLANs = slices.Clone(s.VLANs)
	for i := range s.VLANs {
		s.VLANs[i].On = rename(s.VLANs[i].On)
	}
	s.Bonds = slices.Clone(s.Bonds)
	for i := range s.Bonds {
		s.Bonds[i].Links = slices.Clone(s.Bonds[i].Links)
		for j := range s.Bonds[i].Links {
			s.Bonds[i].Links[j] = rename(s.Bonds[i].Links[j])
		}
	}
	return s
}

// absentName is what settings are called whose card is not there: of their own
// for each card, the same each time, and no longer than a name may be. People
// do not see it.
func absentName(mac string) string {
	var n uint64
	m, _ := net.ParseMAC(mac) // checked settings have one
	for _, b := range m[:min(len(m), 6)] {
		n = n<<8 | uint64(b)
	}
	return "gone-" + strconv.FormatUint(n, 36)
}

// Absent are the settings, Named, of cards that are not there. They are kept,
// apply to nobody, and count again when the card comes back.
func Absent(s control.NetworkSettings, there []control.Link) []control.LinkSettings {
	return slices.DeleteFunc(slices.Clone(s.Links), func(l control.LinkSettings) bool {
		return made(s, l.Name) || slices.ContainsFunc(there, func(t control.Link) bool { return t.Name == l.Name })
	})
}

// checker collects what is wrong.
type checker struct {
	s        control.NetworkSettings
	there    []control.Link // nil: not known
	waiting  map[[2]string]bool
	problems []control.Problem
	networks []taken
}

// taken says who has which network.
type taken struct {
	network netip.Prefix
	link    string
	card    bool // the link is told by its card
}

// Check judges settings against the links that the machine has by itself; nil
// if that is not known, as when a kept file is read. No problem: they can be
// applied, as far as anybody can know before.
func Check(s control.NetworkSettings, there []control.Link) []control.Problem {
	return CheckChange(control.NetworkSettings{}, s, there)
}

// CheckChange judges settings that follow those that are kept. What is said
// there of a link that is not there now, word by word, may be said again: a
// card that was taken out must not hold up changes of the others.
func CheckChange(kept, s control.NetworkSettings, there []control.Link) []control.Problem {
	c := &checker{s: s, there: there}
	for _, n := range []struct {
		what      string
		got, most int
	}{
		{"links", len(s.Links), mostLinks}, {"vlans", len(s.VLANs), mostVLANs}, {"bonds", len(s.Bonds), mostBonds},
		{"resolvers", len(s.Resolvers), mostResolvers}, {"search", len(s.Search), mostSearch}, {"time", len(s.Time), mostTimes},
	} {
		if n.got > n.most {
			c.problem("", n.what, "there are %d, and at most %d are possible", n.got, n.most)
		}
	}
	if len(c.problems) > 0 {
		return c.problems // the rest would take as long as they like
	}
	c.wait(kept)
	c.bonds()
	c.vlans()
	seen := make(map[string]bool)
	for _, l := range s.Links {
		switch {
		case seen[l.Name]:
			c.problem(l.Name, "name", "it is there twice: one link has one set of settings")
		case c.link(l):
			c.addresses(l)
			c.ways(l)
		}
		seen[l.Name] = true
	}
	c.servers()
	if len(c.problems) == 0 {
		if b, err := Encode(s); err != nil || len(b) > Size {
			c.problem("", "", "the settings are too long: %d bytes, and %d are possible", len(b), Size)
		}
	}
	return c.problems
}

// wait finds what is said of links that are not there as it was before. The
// keys are two names: of a link and none, a VLAN and what it is on, a bond and
// a part of it.
func (c *checker) wait(kept control.NetworkSettings) {
	if c.there == nil {
		return
	}
	c.waiting = make(map[[2]string]bool)
	// Names follow the cards; both have the same order as what they are of.
	s, kept := Named(c.s, c.there), Named(kept, c.there)
	for i, l := range s.Links {
		if before := Of(kept, l.Name); before != nil && Equal(one(*before), one(l)) {
			c.waiting[[2]string{c.s.Links[i].Name}] = true
		}
	}
	for i, v := range s.VLANs {
		if slices.Contains(kept.VLANs, v) {
			c.waiting[[2]string{v.Name, c.s.VLANs[i].On}] = true
		}
	}
	for i, b := range s.Bonds {
		for j, m := range b.Links {
			if BondOf(kept, m) == b.Name {
				c.waiting[[2]string{b.Name, c.s.Bonds[i].Links[j]}] = true
			}
		}
	}
}

func one(l control.LinkSettings) control.NetworkSettings {
	return control.NetworkSettings{Links: []control.LinkSettings{l}}
}

// problem notes one mistake, with the link and the field that it is in.
func (c *checker) problem(link, field, reason string, args ...any) {
	c.problems = append(c.problems, control.Problem{File: "network", Text: strings.TrimSpace(printable(link) + " " + field), Reason: fmt.Sprintf(reason, args...)})
}

func printable(s string) string {
	if len(s) > 40 {
		s = s[:40]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// validName keeps to what is safe in a path of /proc/sys and on a screen: a
// letter, then letters, digits and . _ -, at most 15 (IFNAMSIZ less the end).
func validName(s string) bool {
	if s == "" || len(s) > 15 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	// "all" and "default" are not links but settings of all; the rest is the
	// kernel's own.
	if slices.Contains([]string{"lo", "all", "default", "bonding_masters"}, s) {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == "" && !strings.Contains(s, "..")
}

// physical says whether the machine has a link of that name by itself.
func (c *checker) physical(name string) bool {
	if made(c.s, name) || !validName(name) {
		return false
	}
	if l := Of(c.s, name); l != nil && l.MAC != "" {
		return c.there == nil || c.has(func(t control.Link) bool { return strings.EqualFold(t.MAC, l.MAC) })
	}
	return c.there == nil || c.has(func(t control.Link) bool { return t.Name == name })
}

func (c *checker) has(f func(control.Link) bool) bool { return slices.ContainsFunc(c.there, f) }

// which lists the machine's own links, for people.
func (c *checker) which() string {
	var names []string
	for _, l := range c.there {
		names = append(names, l.Name)
	}
	if len(names) == 0 {
		return "there are none"
	}
	return "there are " + strings.Join(names, ", ")
}

// newName judges the name of a link that is to be made.
func (c *checker) newName(name string, seen map[string]bool) bool {
	switch {
	case !validName(name):
		c.problem(name, "name", "%q cannot be the name of a link: use a letter and then up to 14 of a-z, 0-9 and . _ -", printable(name))
	case seen[name]:
		c.problem(name, "name", "two links of that name are to be made: give each its own")
	case c.has(func(l control.Link) bool { return l.Name == name }):
		c.problem(name, "name", "the machine has a link of that name by itself: take another name")
	default:
		seen[name] = true
		return true
	}
	return false
}

func (c *checker) bonds() {
	names, members := make(map[string]bool), make(map[string]string)
	for _, b := range c.s.Bonds {
		if !c.newName(b.Name, names) {
			continue
		}
		if b.Mode != ActiveBackup && b.Mode != LACP {
			c.problem(b.Name, "mode", "%q is no mode of a bond: use %s (any switch) or %s (LACP, set up at the switch, too)", printable(b.Mode), ActiveBackup, LACP)
		}
		if len(b.Links) == 0 || len(b.Links) > mostMembers {
			c.problem(b.Name, "links", "a bond has 1 to %d links, and this one %d", mostMembers, len(b.Links))
			continue
		}
		for _, m := range b.Links {
			switch {
			case members[m] != "":
				c.problem(b.Name, "links", "%s is a part of %s already", printable(m), members[m])
			case made(c.s, m):
				c.problem(b.Name, "links", "%s is made by these settings: a bond is made of the machine's own links", printable(m))
			case !c.physical(m) && !c.waiting[[2]string{b.Name, m}]:
				c.problem(b.Name, "links", "there is no link %q of the machine: %s", printable(m), c.which())
			default:
				members[m] = b.Name
			}
		}
	}
}

func (c *checker) vlans() {
	names, tags := make(map[string]bool), make(map[string]string)
	for _, b := range c.s.Bonds {
		names[b.Name] = true
	}
	for _, v := range c.s.VLANs {
		if !c.newName(v.Name, names) {
			continue
		}
		if v.ID < 1 || v.ID > 4094 {
			c.problem(v.Name, "id", "%d is no number of a VLAN: use 1 to 4094", v.ID)
		}
		bond := slices.ContainsFunc(c.s.Bonds, func(b control.Bond) bool { return b.Name == v.On })
		tag := fmt.Sprintf("%d on %s", v.ID, printable(v.On))
		switch {
		case !bond && made(c.s, v.On):
			c.problem(v.Name, "on", "%s is a VLAN itself: put it on a link of the machine or on a bond", v.On)
		case !bond && !c.physical(v.On) && !c.waiting[[2]string{v.Name, v.On}]:
			c.problem(v.Name, "on", "there is no link %q to put it on: %s", printable(v.On), c.which())
		case BondOf(c.s, v.On) != "":
			c.problem(v.Name, "on", "%s is a part of %s: put it on that", v.On, BondOf(c.s, v.On))
		case Mode(c.s, v.On) == Off:
			c.problem(v.Name, "on", "%s is off, and nothing passes over it: set it to automatic or static", v.On)
		case tags[tag] != "":
			c.problem(v.Name, "id", "%s is VLAN %s already", tags[tag], tag)
		}
		tags[tag] = v.Name
	}
}

// link judges which link is meant and how; false: its addresses mean nothing.
func (c *checker) link(l control.LinkSettings) bool {
	if l.MAC != "" {
		if m, err := net.ParseMAC(l.MAC); err != nil || len(m) != 6 || m.String() != strings.ToLower(l.MAC) {
			c.problem(l.Name, "mac", "%q is not a MAC address: write it as in 52:54:00:12:34:56", printable(l.MAC))
			return false
		}
		if made(c.s, l.Name) {
			c.problem(l.Name, "mac", "it is made by these settings and has no address of its own: leave the MAC address out")
			return false
		}
	}
	for _, other := range c.s.Links {
		if l.MAC != "" && other.Name != l.Name && strings.EqualFold(other.MAC, l.MAC) {
			c.problem(l.Name, "mac", "%s is the link of that MAC address, too", printable(other.Name))
			return false
		}
	}
	switch {
	case !validName(l.Name):
		c.problem(l.Name, "name", "%q cannot be the name of a link", printable(l.Name))
		return false
	case !made(c.s, l.Name) && !c.physical(l.Name) && !c.waiting[[2]string{l.Name}]:
		who := "name"
		if l.MAC != "" {
			who = "MAC address"
		}
		c.problem(l.Name, "name", "there is no link of that %s: %s", who, c.which())
		return false
	}
	if l.MTU != 0 && (l.MTU < smallestMTU || l.MTU > largestMTU) {
		c.problem(l.Name, "mtu", "%d is outside %d to %d bytes (1500 is usual)", l.MTU, smallestMTU, largestMTU)
	}
	bare := len(l.Addresses)+len(l.Gateways)+len(l.Routes) == 0
	switch bond := BondOf(c.s, l.Name); {
	case bond != "" && (!bare || l.Mode == Static || l.MTU != 0):
		c.problem(l.Name, "mode", "it is a part of %s, which has the addresses and the MTU: set them there", bond)
	case l.Mode != Automatic && l.Mode != Static && l.Mode != Off:
		c.problem(l.Name, "mode", "%q is no mode: use %s, %s or %s", printable(l.Mode), Automatic, Static, Off)
	case l.Mode != Static && !bare:
		c.problem(l.Name, "mode", "addresses, gateways and routes are those of a static link, and this one is %s", l.Mode)
	case l.Mode == Static && len(l.Addresses) == 0:
		c.problem(l.Name, "addresses", "a static link has an address: write it with the length of its network, as in 192.0.2.7/24")
	default:
		return true
	}
	return false
}
