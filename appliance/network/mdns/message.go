// Package mdns answers and asks multicast DNS questions of one link, without the link: packets and the time are handed in.
//
// A Responder (RFC 6762) speaks for one name and its services (RFC 6763) on
// one socket; a Finder collects the boxes that answered. Whatever arrives is
// hostile until shown otherwise: what is kept is bounded by what we say
// ourselves, and by fixed numbers for the Finder.
package mdns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// Port is that of mDNS; a question from another port comes from a resolver
// that is none of mDNS and is answered by unicast (RFC 6762 section 6.7).
const Port = 5353

// The groups of the link.
var (
	Group4 = netip.AddrPortFrom(netip.MustParseAddr("224.0.0.251"), Port)
	Group6 = netip.AddrPortFrom(netip.MustParseAddr("ff02::fb"), Port)
)

// MaxPacket is the longest packet, with headers of IP and UDP (RFC 6762 section 17).
const MaxPacket = 9000

// The top bit of the class: of a question "answer by unicast, please", of a
// record "forget others of this name and type" (sections 5.4 and 10.2).
const (
	topBit   = 0x8000
	classIN  = dnsmessage.ClassINET
	typeNSEC = dnsmessage.Type(47)
)

// record is one resource record. Names are in lower case, in Data they are
// whole: so records compare by their bytes.
type record struct {
	Name  string
	Type  dnsmessage.Type
	Flush bool
	TTL   uint32
	Data  []byte
}

func (r record) same(o record) bool {
	return r.Name == o.Name && r.Type == o.Type && bytes.Equal(r.Data, o.Data)
}

type question struct {
	Name string
	Type dnsmessage.Type
}

// message is what is of use in a packet. Questions and records of other
// classes than IN are left out, and so are names with a dot inside a label,
// which are other people's services.
type message struct {
	ID        uint16
	Response  bool
	Truncated bool
	Questions []question
	Asked     []dnsmessage.Question // the same, as they came
	Answers   []record              // and additional ones, which count as much
	Known     []record              // what the asker has already
	Authority []record              // what a prober means to say
}

var errNotOurs = errors.New("not a question or answer of multicast DNS")

// parse reads a packet whole, or refuses it.
func parse(packet []byte) (message, error) {
	var m message
	var p dnsmessage.Parser
	h, err := p.Start(packet)
	if err != nil {
		return m, fmt.Errorf("reading a packet of mDNS: %w", err)
	}
	if h.OpCode != 0 || h.RCode != dnsmessage.RCodeSuccess || len(packet) > MaxPacket {
		return m, errNotOurs
	}
	m.ID, m.Response, m.Truncated = h.ID, h.Response, h.Truncated
	if err := m.questions(&p); err != nil {
		return m, fmt.Errorf("reading the questions of a packet of mDNS: %w", err)
	}
	answers, err := section(p.AnswerHeader, p.SkipAnswer, &p)
	if err != nil {
		return m, err
	}
	if m.Authority, err = section(p.AuthorityHeader, p.SkipAuthority, &p); err != nil {
		return m, err
	}
	additional, err := section(p.AdditionalHeader, p.SkipAdditional, &p)
	if err != nil {
		return m, err
	}
	if m.Response {
		m.Answers = append(answers, additional...)
	} else {
		m.Known = answers
	}
	return m, nil
}

func (m *message) questions(p *dnsmessage.Parser) error {
	for {
		q, err := p.Question()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil {
			if err := p.SkipQuestion(); err != nil {
				return err
			}
			continue
		}
		if c := q.Class &^ topBit; c != classIN && c != dnsmessage.ClassANY {
			continue
		}
		m.Questions = append(m.Questions, question{lower(q.Name.String()), q.Type})
		m.Asked = append(m.Asked, q)
	}
}

// section reads the records up to the section's end. A record that cannot be
// used is passed over, one that cannot be passed over ends it all.
func section(header func() (dnsmessage.ResourceHeader, error), skip func() error, p *dnsmessage.Parser) ([]record, error) {
	var list []record
	for {
		h, err := header()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return list, nil
		}
		ok := err == nil && h.Class&^topBit == classIN
		if ok {
			r := record{Name: lower(h.Name.String()), Type: h.Type, Flush: h.Class&topBit != 0, TTL: h.TTL}
			if r.Data, ok = data(p, h.Type); ok {
				list = append(list, r)
				continue
			}
		}
		if err := skip(); err != nil {
			return nil, fmt.Errorf("reading the records of a packet of mDNS: %w", err)
		}
	}
}

// data is a record's content with whole names. Where a name may be compressed
// in a type that we do not know, it stays as it came.
func data(p *dnsmessage.Parser, t dnsmessage.Type) ([]byte, bool) {
	switch t {
	case dnsmessage.TypePTR:
		r, err := p.PTRResource()
		return appendName(nil, lower(r.PTR.String())), err == nil
	case dnsmessage.TypeSRV:
		r, err := p.SRVResource()
		return srvData(r.Priority, r.Weight, r.Port, lower(r.Target.String())), err == nil
	case dnsmessage.TypeA:
		r, err := p.AResource()
		return r.A[:], err == nil
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		return r.AAAA[:], err == nil
	}
	r, err := p.UnknownResource()
	return r.Data, err == nil
}

func srvData(priority, weight, port uint16, target string) []byte {
	return appendName([]byte{byte(priority >> 8), byte(priority), byte(weight >> 8), byte(weight), byte(port >> 8), byte(port)}, target)
}

// appendName writes a name of dotted labels, ending with a dot, in wire form.
// A label that is none makes it the root: it comes from a name that was parsed,
// or from one that was checked.
func appendName(b []byte, name string) []byte {
	start := len(b)
	for label := range bytes.SplitSeq([]byte(name), []byte{'.'}) {
		if len(label) == 0 {
			break
		}
		if len(label) > 63 {
			return append(b[:start], 0)
		}
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// nameAt reads a whole name, as appendName writes it.
func nameAt(b []byte) (string, bool) {
	var name []byte
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 {
			return string(name), true
		}
		if n > 63 || n >= len(b) {
			return "", false
		}
		name = append(append(name, b[1:1+n]...), '.')
		b = b[1+n:]
	}
	return "", false
}

// lower is for ASCII alone (RFC 6762 section 16).
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// content is a packet to be written.
type content struct {
	header                         dnsmessage.Header
	questions                      []dnsmessage.Question
	answers, authority, additional []record
}

// pack writes it. Owner names are compressed, names inside of records are not.
func (c content) pack() ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, c.header)
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	for _, q := range c.questions {
		if err := b.Question(q); err != nil {
			return nil, fmt.Errorf("writing a question of mDNS: %w", err)
		}
	}
	for _, s := range []struct {
		start   func() error
		records []record
	}{{b.StartAnswers, c.answers}, {b.StartAuthorities, c.authority}, {b.StartAdditionals, c.additional}} {
		if err := s.start(); err != nil {
			return nil, err
		}
		for _, r := range s.records {
			if err := r.write(&b); err != nil {
				return nil, fmt.Errorf("writing a record of mDNS: %w", err)
			}
		}
	}
	return b.Finish()
}

func (r record) write(b *dnsmessage.Builder) error {
	name, err := dnsmessage.NewName(r.Name)
	if err != nil {
		return err
	}
	class := classIN
	if r.Flush {
		class |= topBit
	}
	return b.UnknownResource(dnsmessage.ResourceHeader{Name: name, Type: r.Type, Class: class, TTL: r.TTL},
		dnsmessage.UnknownResource{Type: r.Type, Data: r.Data})
}

func ask(name string, t dnsmessage.Type) (dnsmessage.Question, error) {
	n, err := dnsmessage.NewName(name)
	return dnsmessage.Question{Name: n, Type: t, Class: classIN}, err
}
