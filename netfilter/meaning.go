package netfilter

import "strings"

// Class says what the packets of a counter have in common.
type Class string

// The classes.
const (
	Admitted  Class = "admitted"  // to the web ports, from a source that is let in
	Refused   Class = "refused"   // to the web ports, dropped
	Exception Class = "exception" // taken besides the two ports, because no network works without
	Dropped   Class = "dropped"   // to anything else, dropped
	Passing   Class = "passing"   // of what was let in before, or sent
)

// Meaning is what a counter tells people.
type Meaning struct {
	Class Class
	Words string
}

var meanings = map[string]Meaning{
	WebOnLink:      {Admitted, "to the web ports, from the box's own networks"},
	WebOpen:        {Admitted, "to the web ports, while no list judges"},
	WebRefused:     {Refused, "to the web ports, from a source that is not let in"},
	WebLate:        {Refused, "to the web ports, the same, found after redirection or reassembly"},
	WebUDP:         {Refused, "UDP to the web ports"},
	WebNew:         {Passing, "connections opened to the web ports"},
	EchoAnswered:   {Exception, "pings, 20 a second"},
	EchoOver:       {Dropped, "pings over 20 a second"},
	Neighbour:      {Exception, "neighbour discovery and router advertisements of IPv6, from this link alone (hop limit 255)"},
	ICMPErrors:     {Exception, "ICMP errors: unreachable, packet too big, time exceeded"},
	Groups:         {Exception, "membership of multicast groups on this link (IGMP, MLD)"},
	DHCP:           {Exception, "DHCP replies, read by a packet socket"},
	MDNS:           {Exception, "mDNS on its multicast groups, from this link alone"},
	MDNSDropped:    {Dropped, "to the port of mDNS otherwise: unicast, from elsewhere, too many, or switched off"},
	InvalidPackets: {Dropped, "packets that belong to no connection"},
	Continued:      {Passing, "packets of connections that were let in, and answers to the box's own"},
	OtherDropped:   {Dropped, "everything else that came in"},
	ForwardDropped: {Dropped, "sent through the box"},
	Sent:           {Passing, "sent by the box"},
}

// MeaningOf tells what a counter of the table counts. One that has no words
// here is shown by its name, as an exception: what is not known to be harmless
// must not be left out.
func MeaningOf(counter string) Meaning {
	if list, ok := strings.CutPrefix(counter, ListCounter("")); ok {
		return Meaning{Admitted, "to the web ports, from a source in the list " + list}
	}
	if m, ok := meanings[counter]; ok {
		return m
	}
	return Meaning{Exception, strings.ReplaceAll(counter, "_", " ")}
}

// Words says why a packet was dropped.
func (r Reason) Words() string {
	switch r {
	case ReasonNoList:
		return "in no list that is on"
	case ReasonOffLink:
		return "not of the box's own networks"
	case ReasonStarting:
		return "nobody is let in yet"
	}
	return string(r)
}
