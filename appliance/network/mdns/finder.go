package mdns

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// What a Finder keeps at most, however many answer.
const (
	mostFound   = 256
	mostRecords = 4096
)

// Found is a box that answered. Nothing of it is proved: anybody on the link
// can say anything.
type Found struct {
	Name      string       `json:"name"` // as it answers: NAME.local
	Addresses []netip.Addr `json:"addresses"`
	Port      uint16       `json:"port"`
	State     string       `json:"state"`
	Version   string       `json:"version"`
}

// Question asks a link for boxes.
func Question() ([]byte, error) {
	q, err := ask(TypeBox, dnsmessage.TypePTR)
	if err != nil {
		return nil, err
	}
	return content{questions: []dnsmessage.Question{q}}.pack()
}

// Finder collects answers. The zero Finder is ready.
type Finder struct {
	records []record
	zones   map[netip.Addr]string // of link-local addresses
}

// Receive takes a packet, and passes over what is no answer about boxes. link
// is where it came in; "" if that is not known, then link-local addresses are
// of no use.
func (f *Finder) Receive(packet []byte, link string) error {
	m, err := parse(packet)
	if err != nil {
		return err
	}
	for _, a := range m.Answers {
		if a.Type == dnsmessage.TypeAAAA {
			f.zone(a, link)
		}
		if a.TTL == 0 || len(f.records) >= mostRecords || !strings.HasSuffix(a.Name, "."+domain) || slices.ContainsFunc(f.records, a.same) {
			continue
		}
		switch a.Type {
		case dnsmessage.TypePTR:
			if a.Name != TypeBox {
				continue
			}
		case dnsmessage.TypeSRV, dnsmessage.TypeTXT:
			if !strings.HasSuffix(a.Name, "."+TypeBox) {
				continue
			}
		case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		default:
			continue
		}
		f.records = append(f.records, a)
	}
	return nil
}

func (f *Finder) zone(a record, link string) {
	if ip, ok := netip.AddrFromSlice(a.Data); ok && ip.IsLinkLocalUnicast() && link != "" && len(f.zones) < mostRecords {
		if f.zones == nil {
			f.zones = make(map[netip.Addr]string)
		}
		f.zones[ip] = link
	}
}

// Boxes are those that gave a name and an address, by name.
func (f *Finder) Boxes() []Found {
	var list []Found
	for _, p := range f.records {
		if p.Type != dnsmessage.TypePTR || len(list) >= mostFound {
			continue
		}
		if instance, ok := nameAt(p.Data); ok {
			if b := f.box(instance); len(b.Addresses) > 0 {
				list = append(list, b)
			}
		}
	}
	label := func(b Found) string { return strings.TrimSuffix(b.Name, ".local") }
	slices.SortFunc(list, func(a, b Found) int { return cmp.Compare(label(a), label(b)) })
	return list
}

func (f *Finder) box(instance string) (b Found) {
	host := ""
	for _, r := range f.records {
		switch {
		case r.Name != instance:
		case r.Type == dnsmessage.TypeSRV && len(r.Data) > 6 && host == "":
			b.Port = uint16(r.Data[4])<<8 | uint16(r.Data[5])
			host, _ = nameAt(r.Data[6:])
		case r.Type == dnsmessage.TypeTXT:
			b.State, b.Version = cmp.Or(b.State, word(value(r.Data, "state"))), cmp.Or(b.Version, word(value(r.Data, "version")))
		}
	}
	if label, ok := strings.CutSuffix(host, "."+domain); !ok || !isLabel(label) || b.Port == 0 {
		return Found{} // no name that a person could be shown
	}
	b.Name = strings.TrimSuffix(host, ".")
	for _, r := range f.records {
		if r.Name != host || r.Type != dnsmessage.TypeA && r.Type != dnsmessage.TypeAAAA || len(b.Addresses) >= mostAddresses {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Data)
		if !ok || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() || ip.Is4In6() {
			continue
		}
		if zone := f.zones[ip]; ip.Is6() && ip.IsLinkLocalUnicast() {
			if zone == "" {
				continue
			}
			ip = ip.WithZone(zone)
		}
		b.Addresses = append(b.Addresses, ip)
	}
	slices.SortFunc(b.Addresses, func(x, y netip.Addr) int { return cmp.Or(cmp.Compare(rank(x), rank(y)), x.Compare(y)) })
	return b
}

// rank puts first what is most likely reached and typed.
func rank(a netip.Addr) int {
	switch {
	case a.Is4() && !a.IsLinkLocalUnicast():
		return 0
	case a.Is6() && !a.IsLinkLocalUnicast():
		return 1
	case a.Is4():
		return 2
	}
	return 3
}

// value finds key=value among the strings of a TXT record (RFC 6763 section 6).
func value(text []byte, key string) string {
	for len(text) > 0 {
		n := int(text[0])
		if n >= len(text) {
			return ""
		}
		if k, v, ok := bytes.Cut(text[1:1+n], []byte{'='}); ok && lower(string(k)) == key {
			return string(v)
		}
		text = text[1+n:]
	}
	return ""
}

// word lets through what a version or a state is made of.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r > ' ' && r <= '~' {
			return r
		}
		return '?'
	}, s[:min(len(s), 64)])
}
