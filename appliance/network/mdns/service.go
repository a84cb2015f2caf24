package mdns

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The services of a box, and how all services of a link are listed.
const (
	domain      = "local."
	TypeBox     = "_gatehouse._tcp." + domain
	typeWeb     = "_https._tcp." + domain
	enumeration = "_services._dns-sd._udp." + domain
)

// Lifetimes in seconds, section 10: what has an address in it is short-lived.
const (
	hostTTL  = 120
	otherTTL = 4500
)

// mostAddresses of a link are told.
const mostAddresses = 8

// Service is what a box tells of itself on one link.
type Service struct {
	Name      string       // a label: gatehouse-7f3k
	Addresses []netip.Addr // of the link
	Elsewhere []netip.Addr // of the box on other links: seen under our name, they are no conflict
	Port      uint16       // of the page
	Text      []string     // key=value; known to everybody on the link
}

// Equal says whether two tell the same.
func (s Service) Equal(o Service) bool {
	return s.Name == o.Name && s.Port == o.Port && slices.Equal(s.Addresses, o.Addresses) &&
		slices.Equal(s.Elsewhere, o.Elsewhere) && slices.Equal(s.Text, o.Text)
}

// check refuses what cannot be written as records.
func (s Service) check() error {
	if !isLabel(s.Name) {
		return fmt.Errorf("%q is not a label of a host name: letters, digits and hyphens, at most 63", s.Name)
	}
	for _, t := range s.Text {
		if len(t) > 255 {
			return fmt.Errorf("%d bytes are too long for a string of a TXT record: at most 255", len(t))
		}
	}
	return nil
}

// isLabel is RFC 1123 section 2.1, in lower case.
func isLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63
}

// own is a record of ours, and when it goes out.
type own struct {
	record
	shared bool       // others may have records of this name and type too
	absent bool       // NSEC: says which types there are, to who asked for another
	sent   time.Time  // last multicast
	due    time.Time  // zero: nobody asked
	asker  netip.Addr // who asked, if it was one, and may still say what it knows
}

func (s Service) host() string { return s.Name + "." + domain }

// unique are the names that nobody else may have.
func (s Service) unique() []string {
	return []string{s.host(), s.Name + "." + TypeBox, s.Name + "." + typeWeb}
}

// records are all that a box says.
func (s Service) records() []*own {
	var list []*own
	add := func(o own) { list = append(list, &o) }
	unique := func(name string, t dnsmessage.Type, ttl uint32, data []byte) {
		add(own{record: record{Name: name, Type: t, Flush: true, TTL: ttl, Data: data}})
	}
	var hostTypes []dnsmessage.Type
	for _, a := range s.Addresses[:min(len(s.Addresses), mostAddresses)] {
		t := dnsmessage.TypeAAAA
		if a.Is4() {
			t = dnsmessage.TypeA
		}
		hostTypes = append(hostTypes, t)
		unique(s.host(), t, hostTTL, a.AsSlice())
	}
	add(absence(s.host(), hostTTL, hostTypes))
	var text []byte
	for _, t := range s.Text {
		text = append(append(text, byte(len(t))), t...)
	}
	if len(text) == 0 {
		text = []byte{0} // a TXT record has at least one string
	}
	for _, kind := range []string{TypeBox, typeWeb} {
		instance := s.Name + "." + kind
		add(own{shared: true, record: record{Name: kind, Type: dnsmessage.TypePTR, TTL: otherTTL, Data: appendName(nil, instance)}})
		add(own{shared: true, record: record{Name: enumeration, Type: dnsmessage.TypePTR, TTL: otherTTL, Data: appendName(nil, kind)}})
		unique(instance, dnsmessage.TypeSRV, hostTTL, srvData(0, 0, s.Port, s.host()))
		unique(instance, dnsmessage.TypeTXT, otherTTL, text)
		add(absence(instance, hostTTL, []dnsmessage.Type{dnsmessage.TypeTXT, dnsmessage.TypeSRV}))
	}
	return list
}

// absence says which types a name has (section 6.1), so that who asks for
// another one need not wait in vain.
func absence(name string, ttl uint32, types []dnsmessage.Type) own {
	var bits [32]byte
	length := 0
	for _, t := range types { // all below 256
		bits[t/8] |= 0x80 >> (t % 8)
		length = max(length, int(t/8)+1)
	}
	data := appendName(nil, name)
	if length > 0 {
		data = append(append(data, 0, byte(length)), bits[:length]...)
	}
	return own{absent: true, record: record{Name: name, Type: typeNSEC, Flush: true, TTL: ttl, Data: data}}
}
