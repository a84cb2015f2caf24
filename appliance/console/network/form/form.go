// Package form reads the forms of the network as a person fills them in, and notes what is wrong beside each field.
package form

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// Link is the form of one link as a person fills it in, with what is wrong
// by field. Text stays as it was typed: a mistake is mended, not typed again.
type Link struct {
	Old     string // the link that is edited; "" for a new one
	Kind    string // ethernet, vlan, bond
	Name    string
	On      string // of a VLAN
	ID      string
	Members []string // of a bond
	Bonding string

	Mode                             string
	Addresses, Gateways, Routes, MTU string

	Wrong map[string]string // by field
	Rest  []string          // what belongs to no field
	Links []string          // those that a VLAN or bond can be made of
}

// ReadLink reads the form of a link.
func ReadLink(f url.Values) *Link {
	text := func(name string) string { return strings.TrimSpace(strings.ReplaceAll(f.Get(name), "\r\n", "\n")) }
	return &Link{
		Old: text("old"), Kind: text("kind"), Name: text("name"), On: text("on"), ID: text("id"), Members: f["member"], Bonding: text("bonding"),
		Mode: text("mode"), Addresses: text("addresses"), Gateways: text("gateways"), Routes: text("routes"), MTU: text("mtu"),
		Wrong: make(map[string]string),
	}
}

// LinkOf is the form as it stands for a link in the settings.
func LinkOf(name string, s control.NetworkSettings) *Link {
	f := &Link{Old: name, Name: name, Kind: "ethernet", Mode: netconf.Automatic, Bonding: "active-backup", Wrong: make(map[string]string)}
	if v := VLANOf(s, name); v != nil {
		f.Kind, f.On, f.ID = "vlan", v.On, strconv.Itoa(int(v.ID))
	}
	if b := BondOf(s, name); b != nil {
		f.Kind, f.Members, f.Bonding = "bond", b.Links, b.Mode
	}
	if l := netconf.Of(s, name); l != nil {
		f.Mode, f.Addresses, f.Gateways = l.Mode, lines(l.Addresses), lines(l.Gateways)
		for _, r := range l.Routes {
			f.Routes += r.To.String() + " via " + r.Via.String() + "\n"
		}
		if l.MTU != 0 {
			f.MTU = strconv.Itoa(l.MTU)
		}
	}
	return f
}

func lines[T fmt.Stringer](list []T) string {
	var b strings.Builder
	for _, x := range list {
		b.WriteString(x.String() + "\n")
	}
	return b.String()
}

// VLANOf is the VLAN of that name; nil: there is none.
func VLANOf(s control.NetworkSettings, name string) *control.VLAN {
	if i := slices.IndexFunc(s.VLANs, func(v control.VLAN) bool { return v.Name == name }); i >= 0 {
		return &s.VLANs[i]
	}
	return nil
}

// BondOf is the bond of that name; nil: there is none.
func BondOf(s control.NetworkSettings, name string) *control.Bond {
	if i := slices.IndexFunc(s.Bonds, func(b control.Bond) bool { return b.Name == name }); i >= 0 {
		return &s.Bonds[i]
	}
	return nil
}

// words are the entries of a field: one a line, or with spaces or commas between.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ' ' || r == '\t' || r == ',' })
}

func (f *Link) wrong(field, format string, a ...any) {
	if f.Wrong[field] == "" {
		f.Wrong[field] = fmt.Sprintf(format, a...)
	}
}

// link reads the addressing; what is wrong is noted by field.
func (f *Link) link(s control.NetworkSettings, now control.NetworkState) control.LinkSettings {
	l := control.LinkSettings{Name: f.Name, Mode: f.Mode}
	if before := netconf.Of(s, f.Old); before != nil && f.Old == f.Name {
		l.MAC = before.MAC
	} else if f.Kind == "ethernet" {
		// A name follows the order in which the kernel finds cards; the MAC stays.
		if i := slices.IndexFunc(now.Own, func(x control.Link) bool { return x.Name == f.Name }); i >= 0 {
			l.MAC = now.Own[i].MAC
		}
	}
	if f.MTU != "" {
		n, err := strconv.Atoi(f.MTU)
		if err != nil || n < 1280 || n > 9216 {
			f.wrong("mtu", "%.20q is not a size in bytes from 1280 to 9216. Leave it empty for the usual one.", f.MTU)
		}
		l.MTU = n
	}
	if f.Mode != netconf.Automatic && f.Mode != netconf.Static && f.Mode != netconf.Off {
		f.wrong("mode", "Choose one of the three.")
	}
	if f.Mode != netconf.Static {
		return l // what stands in the other fields is of a fixed link
	}
	for _, w := range words(f.Addresses) {
		p, problem := address(w)
		if problem != "" {
			f.wrong("addresses", "%s", problem)
			continue
		}
		l.Addresses = append(l.Addresses, p)
	}
	if len(l.Addresses) == 0 && f.Wrong["addresses"] == "" {
		f.wrong("addresses", "A fixed link has at least one address, such as 192.168.1.40/24.")
	}
	for _, w := range words(f.Gateways) {
		a, err := netip.ParseAddr(w)
		if err != nil || a.Zone() != "" {
			f.wrong("gateways", "%.60q is not an address. Write one such as 192.168.1.1.", w)
			continue
		}
		if slices.ContainsFunc(l.Gateways, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			f.wrong("gateways", "One gateway for IPv4 and one for IPv6: %s is one too many. Others are routes.", a)
		}
		l.Gateways = append(l.Gateways, a.Unmap())
	}
	for line := range strings.Lines(f.Routes) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		r, problem := route(line)
		if problem != "" {
			f.wrong("routes", "%s", problem)
			continue
		}
		l.Routes = append(l.Routes, r)
	}
	return l
}

// address reads one with its prefix length.
func address(s string) (netip.Prefix, string) {
	p, err := netip.ParsePrefix(s)
	if err == nil && !p.Addr().Is4In6() {
		return p, ""
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return p, fmt.Sprintf("%s has no length: write %s/%d, if the network is that large.", a, a, map[bool]int{true: 24, false: 64}[a.Is4()])
	}
	if host, bits, ok := strings.Cut(s, "/"); ok {
		if a, err := netip.ParseAddr(host); err == nil && !a.Is4In6() && a.Zone() == "" {
			return p, fmt.Sprintf("%.60q: a prefix for %s ends at %d, not %.10q.", s, map[bool]string{true: "IPv4", false: "IPv6"}[a.Is4()], a.BitLen(), bits)
		}
	}
	return p, fmt.Sprintf("%.60q is not an address with its length, such as 192.168.1.40/24 or 2001:db8::40/64.", s)
}

// route reads "10.1.0.0/16 via 192.168.1.254".
func route(line string) (r control.Route, problem string) {
	w := strings.Fields(line)
	if len(w) != 3 || w[1] != "via" {
		return r, fmt.Sprintf("%.80q is not a route: write where to and by which neighbour, such as 10.1.0.0/16 via 192.168.1.254.", line)
	}
	if r.To, problem = address(w[0]); problem != "" {
		return r, problem
	}
	if r.To != r.To.Masked() {
		return r, fmt.Sprintf("%s has bits beyond its length: a route goes to a whole network, %s.", r.To, r.To.Masked())
	}
	via, err := netip.ParseAddr(w[2])
	if err != nil || via.Zone() != "" {
		return r, fmt.Sprintf("%.60q is not the address of a neighbour.", w[2])
	}
	r.Via = via.Unmap()
	return r, ""
}

// Apply puts the form into a copy of the settings.
func (f *Link) Apply(now control.NetworkState) control.NetworkSettings {
	s := clone(now.Settings)
	old := f.Old
	if old == "" && f.taken(s, now) {
		f.wrong("name", "There is a link of this name already.")
	}
	l := f.link(s, now)
	switch f.Kind {
	case "vlan":
		id, err := strconv.ParseUint(f.ID, 10, 16)
		if err != nil || id < 1 || id > 4094 {
			f.wrong("id", "%.20q is not a VLAN id: a number from 1 to 4094.", f.ID)
		}
		if f.On == "" || f.On == f.Name {
			f.wrong("on", "Choose the link that carries it.")
		}
		if f.Name == "" {
			f.Name = fmt.Sprintf("%s.%d", f.On, id)
			l.Name = f.Name
		}
		v := control.VLAN{Name: f.Name, On: f.On, ID: uint16(id)}
		if at := VLANOf(s, old); at != nil {
			*at = v
		} else {
			s.VLANs = append(s.VLANs, v)
		}
	case "bond":
		if len(f.Members) < 2 {
			f.wrong("links", "Choose at least two links.")
		}
		b := control.Bond{Name: f.Name, Links: f.Members, Mode: f.Bonding}
		if at := BondOf(s, old); at != nil {
			*at = b
		} else {
			s.Bonds = append(s.Bonds, b)
		}
		// What was set for its links goes with them into the bond.
		s.Links = slices.DeleteFunc(s.Links, func(x control.LinkSettings) bool { return slices.Contains(f.Members, x.Name) })
	}
	if wrong := nameProblem(f.Name); wrong != "" {
		f.wrong("name", "%s", wrong)
	}
	s.Links = slices.DeleteFunc(s.Links, func(x control.LinkSettings) bool { return x.Name == old || x.Name == f.Name })
	if l.Mode != netconf.Automatic || l.MTU > 0 {
		s.Links = append(s.Links, l)
	}
	return s
}

func (f *Link) taken(s control.NetworkSettings, now control.NetworkState) bool {
	return VLANOf(s, f.Name) != nil || BondOf(s, f.Name) != nil || slices.ContainsFunc(now.Links, func(l control.Link) bool { return l.Name == f.Name })
}

func nameProblem(name string) string {
	if name == "" || len(name) > 15 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" || name[0] == '.' || name[0] == '-' {
		return "A name has 1 to 15 letters, digits, dots and hyphens, such as office or eth0.20."
	}
	return ""
}

func clone(s control.NetworkSettings) control.NetworkSettings {
	s.Links, s.VLANs, s.Bonds = slices.Clone(s.Links), slices.Clone(s.VLANs), slices.Clone(s.Bonds)
	return s
}

// Remove takes a VLAN or bond away, with what was set for it.
func Remove(s control.NetworkSettings, name string) (control.NetworkSettings, bool) {
	out := clone(s)
	out.VLANs = slices.DeleteFunc(out.VLANs, func(v control.VLAN) bool { return v.Name == name })
	out.Bonds = slices.DeleteFunc(out.Bonds, func(b control.Bond) bool { return b.Name == name })
	out.Links = slices.DeleteFunc(out.Links, func(l control.LinkSettings) bool { return l.Name == name })
	return out, len(out.VLANs)+len(out.Bonds) < len(s.VLANs)+len(s.Bonds)
}

// Forget drops what is set for a card that is not there, with the VLANs on it
// and its part in a bond.
func Forget(now control.NetworkState, name string) (control.NetworkSettings, bool) {
	if !slices.ContainsFunc(netconf.Absent(now.Settings, now.Own), func(l control.LinkSettings) bool { return l.Name == name }) {
		return now.Settings, false
	}
	s := clone(now.Settings)
	for _, v := range now.Settings.VLANs {
		if v.On == name {
			s, _ = Remove(s, v.Name)
		}
	}
	for i, b := range s.Bonds {
		s.Bonds[i].Links = slices.DeleteFunc(slices.Clone(b.Links), func(l string) bool { return l == name })
	}
	s.Links = slices.DeleteFunc(s.Links, func(l control.LinkSettings) bool { return l.Name == name })
	return s, true
}

// Names is resolvers, search, time servers and mDNS.
type Names struct {
	Resolvers, Search, Time string
	Multicast               bool
	Wrong                   map[string]string
	Rest                    []string
}

// NamesOf is the form as it stands for the settings.
func NamesOf(s control.NetworkSettings) *Names {
	return &Names{Resolvers: lines(s.Resolvers), Search: strings.Join(s.Search, "\n"), Time: strings.Join(s.Time, "\n"), Multicast: s.Multicast}
}

// ReadNames reads that form.
func ReadNames(f url.Values) *Names {
	return &Names{Resolvers: f.Get("resolvers"), Search: f.Get("search"), Time: f.Get("time"), Multicast: f.Get("multicast") == "yes", Wrong: make(map[string]string)}
}

// Apply puts the form into a copy of the settings.
func (f *Names) Apply(now control.NetworkState) control.NetworkSettings {
	s := clone(now.Settings)
	s.Resolvers, s.Search, s.Time, s.Multicast = nil, words(f.Search), words(f.Time), f.Multicast
	for _, w := range words(f.Resolvers) {
		a, err := netip.ParseAddr(w)
		if err != nil || a.Zone() != "" {
			f.Wrong["resolvers"] = fmt.Sprintf("%.60q is not an address. Write one such as 192.0.2.53 or 2001:db8::53.", w)
			continue
		}
		s.Resolvers = append(s.Resolvers, a.Unmap())
	}
	for field, list := range map[string][]string{"search": s.Search, "time": s.Time} {
		for _, w := range list {
			if !hostName(w) {
				f.Wrong[field] = fmt.Sprintf("%.60q is not a name, such as example.org.", w)
			}
		}
	}
	return s
}

// hostName says whether a word can be a name or, for time servers, an address.
func hostName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return len(s) <= 253 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789.-") == "" && !strings.HasPrefix(s, "-") && !strings.HasPrefix(s, ".") && !strings.Contains(s, "..")
}
