// Package guide is the guided change of the network at the console: questions, answers and what comes of them, without a terminal.
package guide

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// mostLinks is how many links fit the console; more are set on the page.
const mostLinks = 14

// width is what a line may have, of the console's 80 columns.
const width = 72

// Guide is one guided change. It asks line by line, shows what it would set,
// and wants a yes; q at any question leaves all as it is.
type Guide struct {
	state    control.NetworkState
	settings control.NetworkSettings
	link     control.LinkSettings
	carrier  string   // what the link is made on, if it is a new VLAN or bond
	said     []string // what was answered so far

	shown []string
	text  string
	step  func(*Guide, string) (again string)
	end   Outcome
}

// Outcome is what an answer led to.
type Outcome int

// Asks: there is another question, or the same again. Left: nothing is to be
// changed. Set: Settings are what is wanted.
const (
	Asks Outcome = iota
	Left
	Set
)

// New begins a change of the network. A change that waits to be kept is no
// part of it: it may be what locked somebody out.
func New(st control.NetworkState) *Guide {
	set := st.Settings
	if st.Candidate != nil {
		set = st.Kept
	}
	set = netconf.Named(set, st.Own) // a copy
	d := &Guide{state: st, settings: set}
	shown := []string{" Network", ""}
	for i, l := range st.Links[:min(len(st.Links), mostLinks)] {
		shown = append(shown, fmt.Sprintf("   %-2d %s", i+1, d.describe(l)))
	}
	if n := len(st.Links) - mostLinks; n > 0 {
		shown = append(shown, fmt.Sprintf("   and %d more, on the page Network", n))
	}
	if n := len(netconf.Absent(set, st.Own)); n > 0 {
		shown = append(shown, "", fmt.Sprintf("   What is set for cards that are not there (%d) is kept; the page Network drops it.", n))
	}
	d.ask(shown, "Which link? Its number, then Enter; only Enter leaves all as it is: ", (*Guide).pick)
	return d
}

// Question is what stands on the console, and what is asked below it.
func (d *Guide) Question() (shown []string, text string) { return d.shown, d.text }

// Settings are what was asked for, once the outcome is Set.
func (d *Guide) Settings() control.NetworkSettings { return d.settings }

// Answer takes a line. A wrong one is asked again, and again says why.
func (d *Guide) Answer(l string) (o Outcome, again string) {
	if l == "q" || l == "Q" {
		return Left, ""
	}
	again = d.step(d, l)
	return d.end, again
}

func (d *Guide) ask(shown []string, text string, step func(*Guide, string) string) {
	d.shown, d.text, d.step = shown, text, step
}

// describe is one link in a line.
func (d *Guide) describe(l control.Link) string {
	cable := "no cable"
	if l.Carrier {
		cable = "cable"
	}
	how := map[string]string{"dhcp": "DHCP", "slaac": "automatic", "link-local": "no DHCP answered", "static": "fixed", "": "automatic"}[l.Source]
	if how == "" {
		how = l.Source
	}
	if x := d.find(l.Name); x != nil && x.Mode != netconf.Automatic {
		how = map[string]string{netconf.Static: "fixed", netconf.Off: "off"}[x.Mode]
	}
	var list []string
	for _, a := range l.Addresses {
		if !a.Addr().Is6() || !a.Addr().IsLinkLocalUnicast() {
			list = append(list, a.String())
		}
	}
	slices.SortStableFunc(list, func(a, b string) int { // the short ones, which people know, first
		return strings.Count(a, ":") - strings.Count(b, ":")
	})
	if len(list) > 2 {
		list = append(list[:2], fmt.Sprintf("and %d more", len(list)-2))
	}
	return strings.TrimRight(cut(fmt.Sprintf("%-15s %-9s %-17s %s", l.Name, cable, how, strings.Join(list, " ")), width), " ")
}

func (d *Guide) find(name string) *control.LinkSettings {
	if i := slices.IndexFunc(d.settings.Links, func(l control.LinkSettings) bool { return l.Name == name }); i >= 0 {
		return &d.settings.Links[i]
	}
	return nil
}

// next shows what was said and asks on.
func (d *Guide) next(text string, step func(*Guide, string) string) {
	d.ask(d.screen(d.said), text, step)
}

// screen is what stands above a question.
func (d *Guide) screen(lines []string) []string {
	shown := append([]string{" Network: " + d.link.Name, ""}, lines...)
	if len(lines) > 0 {
		shown = append(shown, "")
	}
	return append(shown, "   Enter alone takes what stands in brackets; q leaves all as it is.")
}

func (d *Guide) note(what, value string) {
	d.said = append(d.said, fmt.Sprintf("   %-11s %s", what, value))
}

func (d *Guide) pick(l string) string {
	if l == "" {
		d.end = Left
		return ""
	}
	n, err := strconv.Atoi(l)
	if err != nil || n < 1 || n > min(len(d.state.Links), mostLinks) {
		return "There is no link of that number."
	}
	link := d.state.Links[n-1]
	for _, b := range d.settings.Bonds {
		if slices.Contains(b.Links, link.Name) {
			return link.Name + " is a part of " + b.Name + ": choose that one."
		}
	}
	d.link = control.LinkSettings{Name: link.Name, Mode: netconf.Automatic}
	if x := d.find(link.Name); x != nil {
		d.link = *x
	} else if i := slices.IndexFunc(d.state.Own, func(x control.Link) bool { return x.Name == link.Name }); i >= 0 {
		d.link.MAC = d.state.Own[i].MAC // steadier than the name, which follows the order of cards
	}
	d.askMode()
	return ""
}

// made says whether the link is a VLAN or bond of the settings.
func (d *Guide) made() bool {
	return slices.ContainsFunc(d.settings.VLANs, func(v control.VLAN) bool { return v.Name == d.link.Name }) ||
		slices.ContainsFunc(d.settings.Bonds, func(b control.Bond) bool { return b.Name == d.link.Name })
}

func (d *Guide) askMode() {
	var lines []string
	for _, l := range d.state.Links {
		if l.Name == d.link.Name {
			lines = append(lines, "   now: "+strings.TrimPrefix(d.describe(l), fmt.Sprintf("%-15s ", l.Name)), "")
		}
	}
	word := func(w, what string) { lines = append(lines, fmt.Sprintf("   %-11s %s", w, what)) }
	word(netconf.Automatic, "addresses by DHCP and router advertisements")
	word(netconf.Static, "addresses that you type")
	word(netconf.Off, "the link is not used")
	if d.made() {
		word("remove", "take "+d.link.Name+" away")
	} else {
		word("vlan", "a new tagged network on it")
		if len(d.state.Links) > 1 {
			word("bond", "join it with other links")
		}
	}
	d.ask(d.screen(lines), "Type one of these words ["+d.link.Mode+"]: ", (*Guide).mode)
}

func (d *Guide) mode(l string) string {
	if l = strings.ToLower(l); l == "" {
		l = d.link.Mode
	}
	made := d.made() || d.carrier != ""
	switch {
	case l == netconf.Automatic || l == "auto" || l == "dhcp":
		d.link = control.LinkSettings{Name: d.link.Name, MAC: d.link.MAC, Mode: netconf.Automatic, MTU: d.link.MTU}
		d.note("addresses", "automatic, by DHCP and router advertisements")
		d.askResolvers()
	case l == netconf.Static:
		d.link.Mode = netconf.Static
		d.askAddresses()
	case l == netconf.Off:
		d.link = control.LinkSettings{Name: d.link.Name, MAC: d.link.MAC, Mode: netconf.Off}
		d.note("addresses", "none: the link is off")
		d.confirm()
	case l == "remove" && d.made() && d.carrier == "":
		d.drop()
		d.note("remove", d.link.Name)
		d.confirm()
	case l == "vlan" && !made:
		d.next("VLAN id, 1 to 4094: ", (*Guide).vlan)
	case l == "bond" && !made && len(d.state.Links) > 1:
		d.next("With which links? Their numbers in the list, with spaces between: ", (*Guide).bond)
	default:
		return "Type one of these words."
	}
	return ""
}

// drop takes the link out of the settings.
func (d *Guide) drop() {
	name := d.link.Name
	d.settings.VLANs = slices.DeleteFunc(d.settings.VLANs, func(v control.VLAN) bool { return v.Name == name })
	d.settings.Bonds = slices.DeleteFunc(d.settings.Bonds, func(b control.Bond) bool { return b.Name == name })
	d.settings.Links = slices.DeleteFunc(d.settings.Links, func(l control.LinkSettings) bool { return l.Name == name })
	d.link.Mode = "" // nothing to set
}

func (d *Guide) vlan(l string) string {
	id, err := strconv.ParseUint(l, 10, 16)
	if err != nil || id < 1 || id > 4094 {
		return "A VLAN id is a number from 1 to 4094."
	}
	v := control.VLAN{Name: fmt.Sprintf("%s.%d", d.link.Name, id), On: d.link.Name, ID: uint16(id)}
	if len(v.Name) > 15 {
		v.Name = fmt.Sprintf("vlan%d", id)
	}
	if slices.ContainsFunc(d.state.Links, func(x control.Link) bool { return x.Name == v.Name }) {
		return "There is " + v.Name + " already: choose it in the list."
	}
	d.settings.VLANs = append(d.settings.VLANs, v)
	d.note("new", fmt.Sprintf("VLAN %d on %s", id, d.link.Name))
	d.carrier, d.link = v.On, control.LinkSettings{Name: v.Name, Mode: netconf.Automatic}
	d.next("automatic (DHCP) or static? [automatic]: ", (*Guide).mode)
	return ""
}

func (d *Guide) bond(l string) string {
	members := []string{d.link.Name}
	for _, w := range strings.Fields(l) {
		n, err := strconv.Atoi(w)
		if err != nil || n < 1 || n > len(d.state.Links) {
			return "There is no link of the number " + cut(w, 10) + "."
		}
		if name := d.state.Links[n-1].Name; !slices.Contains(members, name) {
			members = append(members, name)
		}
	}
	if len(members) < 2 {
		return "A bond is made of two links or more."
	}
	name := "bond0"
	for i := 1; slices.ContainsFunc(d.settings.Bonds, func(b control.Bond) bool { return b.Name == name }); i++ {
		name = fmt.Sprint("bond", i)
	}
	d.settings.Bonds = append(d.settings.Bonds, control.Bond{Name: name, Links: members, Mode: "active-backup"})
	d.settings.Links = slices.DeleteFunc(d.settings.Links, func(x control.LinkSettings) bool { return slices.Contains(members, x.Name) })
	d.note("new", "bond of "+strings.Join(members, ", ")+": one works, the others wait")
	d.carrier, d.link = members[0], control.LinkSettings{Name: name, Mode: netconf.Automatic}
	d.next("automatic (DHCP) or static? [automatic]: ", (*Guide).mode)
	return ""
}

func bracket(list string) string {
	if list == "" {
		return ": "
	}
	return " [" + list + "]: "
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, " ")
}

func (d *Guide) askAddresses() {
	if len(d.link.Addresses) == 0 && d.carrier == "" { // what it has now is the best guess
		for _, l := range d.state.Links {
			if l.Name != d.link.Name {
				continue
			}
			for _, a := range l.Addresses {
				if a.Addr().Is4() && !a.Addr().IsLinkLocalUnicast() {
					d.link.Addresses = append(d.link.Addresses, a)
				}
			}
			if len(d.link.Addresses) > 0 && len(d.link.Gateways) == 0 {
				d.link.Gateways = slices.Clone(l.Gateways)
			}
		}
	}
	d.next("Address and length, such as 192.168.1.40/24; several with spaces between"+bracket(join(d.link.Addresses)), (*Guide).addresses)
}

func (d *Guide) addresses(l string) string {
	if l != "" {
		var list []netip.Prefix
		for _, w := range strings.Fields(strings.ReplaceAll(l, ",", " ")) {
			p, err := netip.ParsePrefix(w)
			if err != nil || p.Addr().Is4In6() {
				return cut(w, 50) + " is not an address with its length, such as 192.168.1.40/24."
			}
			list = append(list, p)
		}
		d.link.Addresses = list
		if !slices.ContainsFunc(d.link.Gateways, func(g netip.Addr) bool { return d.reaches(g) }) {
			d.link.Gateways = nil // of the network before
		}
	}
	if len(d.link.Addresses) == 0 {
		return "A fixed link has an address, such as 192.168.1.40/24."
	}
	d.note("addresses", join(d.link.Addresses))
	d.next("Gateway, such as 192.168.1.1; - for none"+bracket(join(d.link.Gateways)), (*Guide).gateways)
	return ""
}

func (d *Guide) reaches(g netip.Addr) bool {
	return slices.ContainsFunc(d.link.Addresses, func(p netip.Prefix) bool { return p.Contains(g) })
}

func (d *Guide) gateways(l string) string {
	list, again := addressList(l, d.link.Gateways)
	if again != "" {
		return again
	}
	for i, g := range list {
		if slices.ContainsFunc(list[:i], func(x netip.Addr) bool { return x.Is4() == g.Is4() }) {
			return "One gateway for IPv4 and one for IPv6 is the most."
		}
		if !d.reaches(g) && !g.IsLinkLocalUnicast() {
			return g.String() + " is not on a network of this link."
		}
	}
	d.link.Gateways = list
	d.note("gateway", none(join(list)))
	d.askResolvers()
	return ""
}

// addressList reads addresses; nothing typed is what was before, - is none.
func addressList(l string, before []netip.Addr) (list []netip.Addr, again string) {
	switch l {
	case "":
		return before, ""
	case "-":
		return nil, ""
	}
	for _, w := range strings.Fields(strings.ReplaceAll(l, ",", " ")) {
		a, err := netip.ParseAddr(w)
		if err != nil || a.Zone() != "" {
			return nil, cut(w, 50) + " is not an address."
		}
		list = append(list, a.Unmap())
	}
	return list, ""
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (d *Guide) askResolvers() {
	before := d.settings.Resolvers
	if len(before) == 0 && d.link.Mode == netconf.Static && d.carrier == "" {
		before = d.state.Resolvers // learnt ones go with the lease
	}
	d.settings.Resolvers = before
	shown := join(before)
	if shown == "" {
		shown = "-"
	}
	d.next("Resolvers, for names such as time servers; - for those of the network"+bracket(shown), (*Guide).resolvers)
}

func (d *Guide) resolvers(l string) string {
	list, again := addressList(l, d.settings.Resolvers)
	if again != "" {
		return again
	}
	d.settings.Resolvers = list
	text := join(list)
	if text == "" {
		text = "those of the network"
	}
	d.note("resolvers", text)
	d.confirm()
	return ""
}

// confirm shows the whole, and sets it at a yes.
func (d *Guide) confirm() {
	if d.link.Mode != "" {
		name := d.link.Name
		d.settings.Links = slices.DeleteFunc(d.settings.Links, func(l control.LinkSettings) bool { return l.Name == name })
		if d.link.Mode != netconf.Automatic || d.link.MTU != 0 {
			d.settings.Links = append(d.settings.Links, d.link)
		}
	}
	shown := append([]string{" Network: " + d.link.Name + " will be set so:", ""}, d.said...)
	shown = append(shown, "", "   It takes effect at once, and stays.")
	d.ask(shown, "Set it? Type yes, then Enter: ", func(d *Guide, l string) string {
		d.end = Left
		if l == "yes" {
			d.end = Set
		}
		return ""
	})
}

// cut shortens what does not fit.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n-2] + ".."
}
