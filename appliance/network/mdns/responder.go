package mdns

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Times and counts of RFC 6762, sections 6 and 8.
const (
	probes        = 3
	probePause    = 250 * time.Millisecond
	deferPause    = time.Second // after losing against one who probes at the same time
	announcements = 2
	announcePause = time.Second
	recordPause   = time.Second // between two multicasts of a record
	defendPause   = 250 * time.Millisecond
	sharedDelay   = 20 * time.Millisecond // and as much again as sharedSpread
	sharedSpread  = 100 * time.Millisecond
	moreDelay     = 400 * time.Millisecond // when the asker has more to say
	moreSpread    = 100 * time.Millisecond
	legacyTTL     = 10 // seconds, for who does not hear goodbyes
)

// mostDeferrals bounds how often one who always probes with later records can
// make us wait; then the name is his.
const mostDeferrals = 5

// Answers by unicast in a second: who asks from a port of his own is a person's
// tool, and a source may be forged.
const unicastRate = 20

type phase int

const (
	probing phase = iota // asking whether somebody has the name
	announcing
	settled
	lost // somebody has it
)

// A Packet is to be sent to an address, or to the group if there is none.
type Packet struct {
	To   netip.AddrPort
	Data []byte
}

// Responder speaks for a Service on one socket: first it asks whether the names
// are free, then it tells of them, then it answers. It is not safe for
// concurrent use.
type Responder struct {
	service Service
	records []*own
	random  func(time.Duration) time.Duration

	phase     phase
	step      int
	at        time.Time // of the next step
	deferrals int

	unicast []Packet // to be sent at once
	spent   int      // answers by unicast since
	since   time.Time
}

// NewResponder makes one that begins by probing. random gives a time up to its
// argument.
func NewResponder(s Service, now time.Time, random func(time.Duration) time.Duration) (*Responder, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("answering mDNS: %w", err)
	}
	return &Responder{service: s, records: s.records(), random: random, at: now.Add(random(probePause))}, nil
}

// Service is what it speaks for.
func (r *Responder) Service() Service { return r.service }

// Lost says that somebody else has the name: choose another.
func (r *Responder) Lost() bool { return r.phase == lost }

// Settled says that the name is ours and told.
func (r *Responder) Settled() bool { return r.phase == announcing || r.phase == settled }

// Update tells of something else under the same name. Names that are ours stay
// so, and what is new is announced (section 8.4).
func (r *Responder) Update(s Service, now time.Time) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("answering mDNS: %w", err)
	}
	r.service, r.records = s, s.records()
	if r.phase == settled || r.phase == announcing {
		r.phase, r.step, r.at = announcing, 0, now
	}
	return nil
}

// Next is when Due has something to do; zero: when something arrives.
func (r *Responder) Next() time.Time {
	if len(r.unicast) > 0 {
		return time.Unix(0, 0)
	}
	next := r.at
	for _, o := range r.records {
		if !o.due.IsZero() && (next.IsZero() || o.due.Before(next)) {
			next = o.due
		}
	}
	return next
}

// Due is what has to be sent at the time now.
func (r *Responder) Due(now time.Time) []Packet {
	out := r.unicast
	r.unicast = nil
	if !r.at.IsZero() && !now.Before(r.at) {
		out = r.advance(out, now)
	}
	if !r.Settled() {
		return out
	}
	var answers []*own
	for _, o := range r.records {
		if !o.due.IsZero() && !now.Before(o.due) {
			answers = append(answers, o)
		}
	}
	if len(answers) == 0 {
		return out
	}
	return r.multicast(out, answers, r.additional(answers, now), now)
}

func (r *Responder) advance(out []Packet, now time.Time) []Packet {
	switch r.phase {
	case probing:
		if r.step == probes {
			r.phase, r.step = announcing, 0
			return r.advance(out, now)
		}
		r.step++
		r.at = now.Add(probePause)
		return r.add(out, Packet{}, r.probe)
	case announcing:
		r.step++
		r.at = now.Add(announcePause)
		if r.step == announcements {
			r.phase, r.at = settled, time.Time{}
		}
		return r.multicast(out, r.present(), nil, now)
	}
	r.at = time.Time{}
	return out
}

// present are all records but those that deny others.
func (r *Responder) present() []*own {
	return slices.DeleteFunc(slices.Clone(r.records), func(o *own) bool { return o.absent })
}

// add appends a packet, unless it cannot be written: then the wire says nothing,
// as after a loss. The tests write all kinds.
func (r *Responder) add(out []Packet, p Packet, write func() ([]byte, error)) []Packet {
	var err error
	if p.Data, err = write(); err != nil {
		return out
	}
	return append(out, p)
}

// probe asks for all types of our names, and says what we mean to say
// (section 8.2). Answers by unicast are not asked for: port 5353 of the box
// does not take them.
func (r *Responder) probe() ([]byte, error) {
	var c content
	for _, name := range r.service.unique() {
		q, err := ask(name, dnsmessage.TypeALL)
		if err != nil {
			return nil, err
		}
		c.questions = append(c.questions, q)
		for _, p := range r.proposed(name) {
			p.Flush = false
			c.authority = append(c.authority, p)
		}
	}
	return c.pack()
}

// proposed are our records of a name, in the order in which two who probe
// compare theirs: by type, then by content (section 8.2.1).
func (r *Responder) proposed(name string) []record {
	var list []record
	for _, o := range r.present() {
		if o.Name == name {
			list = append(list, o.record)
		}
	}
	slices.SortFunc(list, compare)
	return list
}

func compare(a, b record) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), bytes.Compare(a.Data, b.Data))
}

func plain(list []*own) []record {
	var out []record
	for _, o := range list {
		out = append(out, o.record)
	}
	return out
}

func (r *Responder) multicast(out []Packet, answers, additional []*own, now time.Time) []Packet {
	for _, o := range slices.Concat(answers, additional) {
		o.sent, o.due, o.asker = now, time.Time{}, netip.Addr{}
	}
	c := content{header: dnsmessage.Header{Response: true, Authoritative: true}, answers: plain(answers), additional: plain(additional)}
	return r.add(out, Packet{}, c.pack)
}

// additional are the records that who gets these answers will ask for next
// (RFC 6763 section 12), unless they were just told.
func (r *Responder) additional(answers []*own, now time.Time) []*own {
	wanted := make(map[string]bool)
	for _, o := range answers {
		switch {
		case o.Type == dnsmessage.TypePTR && o.Name != enumeration:
			wanted[r.service.Name+"."+o.Name], wanted[r.service.host()] = true, true
		case o.Type == dnsmessage.TypeSRV, o.Type == dnsmessage.TypeA, o.Type == dnsmessage.TypeAAAA:
			wanted[r.service.host()] = true
		}
	}
	return slices.DeleteFunc(r.present(), func(o *own) bool {
		return !wanted[o.Name] || slices.Contains(answers, o) || now.Sub(o.sent) < recordPause
	})
}

// Goodbye takes back what was told; nothing if nothing was.
func (r *Responder) Goodbye() []Packet {
	if !r.Settled() {
		return nil
	}
	c := content{header: dnsmessage.Header{Response: true, Authoritative: true}, answers: plain(r.present())}
	for i := range c.answers {
		c.answers[i].TTL = 0
	}
	return r.add(nil, Packet{}, c.pack)
}

// Receive takes a packet from somebody else on the link. One that makes no
// sense is passed over; err says why.
func (r *Responder) Receive(packet []byte, from netip.AddrPort, now time.Time) error {
	m, err := parse(packet)
	switch {
	case err != nil:
		return err
	case r.phase == lost:
	case m.Response && from.Port() != Port:
		return errNotOurs // section 6: an answer comes from the port of mDNS
	case m.Response:
		r.answered(m, now)
	case r.phase == probing:
		r.contend(m, now)
	case from.Port() != Port:
		r.reply(m, from, now)
	default:
		r.schedule(m, from.Addr(), now)
	}
	return nil
}

// answered looks for somebody else under our names.
func (r *Responder) answered(m message, now time.Time) {
	names := r.service.unique()
	for _, a := range m.Answers {
		if a.TTL == 0 || !slices.Contains(names, a.Name) || r.ours(a) {
			continue
		}
		if r.phase == probing {
			r.phase, r.at = lost, time.Time{}
			return
		}
		// He may not know of us: who has the name is found out by probing,
		// which he answers if it is his (section 9).
		if slices.ContainsFunc(r.records, func(o *own) bool { return o.Name == a.Name && o.Type == a.Type }) {
			r.phase, r.step, r.deferrals, r.at = probing, 0, 0, now.Add(r.random(probePause))
			for _, o := range r.records {
				o.due = time.Time{}
			}
			return
		}
	}
}

// ours says whether a record is one of this box, told on this link or another.
func (r *Responder) ours(a record) bool {
	if slices.ContainsFunc(r.records, func(o *own) bool { return o.same(a) }) {
		return true
	}
	if a.Name != r.service.host() {
		return false
	}
	if a.Type == typeNSEC {
		return true // of another link of ours, which may have other types; nobody has a name by an NSEC alone
	}
	ip, ok := netip.AddrFromSlice(a.Data)
	return ok && (a.Type == dnsmessage.TypeA || a.Type == dnsmessage.TypeAAAA) && slices.Contains(r.service.Elsewhere, ip)
}

// contend compares with somebody who probes for one of our names at the same
// time: the later records win, the other waits a second and asks again.
func (r *Responder) contend(m message, now time.Time) {
	for _, name := range r.service.unique() {
		var theirs []record
		for _, a := range m.Authority {
			if a.Name == name && !slices.ContainsFunc(theirs, a.same) {
				theirs = append(theirs, a)
			}
		}
		if len(theirs) == 0 || !slices.ContainsFunc(m.Questions, func(q question) bool { return q.Name == name }) {
			continue
		}
		slices.SortFunc(theirs, compare)
		if slices.CompareFunc(r.proposed(name), theirs, compare) >= 0 {
			continue
		}
		r.deferrals++
		r.step, r.at = 0, now.Add(deferPause)
		if r.deferrals > mostDeferrals {
			r.phase, r.at = lost, time.Time{}
		}
		return
	}
}

// wanted are our records that answer a question.
func (r *Responder) wanted(q question) []*own {
	var found []*own
	var denial *own
	for _, o := range r.records {
		switch {
		case o.Name != q.Name:
		case o.absent:
			denial = o
		case o.Type == q.Type || q.Type == dnsmessage.TypeALL:
			found = append(found, o)
		}
	}
	if len(found) == 0 && denial != nil {
		found = append(found, denial)
	}
	return found
}

// known says whether the asker has a record for long enough (section 7.1).
func known(list []record, o *own) bool {
	return slices.ContainsFunc(list, func(k record) bool { return k.same(o.record) && k.TTL >= o.TTL/2 })
}

// schedule sets when the answers to a question go to the group, also those
// that might go by unicast: everybody then has them, and no port of ours has
// to be open for what comes back. A record goes out at most once a second;
// who probes for a name of ours hears of it sooner.
func (r *Responder) schedule(m message, from netip.Addr, now time.Time) {
	for _, o := range r.records {
		// The rest of what the asker knows may come in packets of its own.
		if len(m.Questions) == 0 && !o.due.IsZero() && o.asker == from && known(m.Known, o) {
			o.due = time.Time{}
		}
	}
	for _, q := range m.Questions {
		for _, o := range r.wanted(q) {
			if known(m.Known, o) {
				continue
			}
			at, pause := now, recordPause
			switch {
			case slices.ContainsFunc(m.Authority, func(a record) bool { return a.Name == q.Name }):
				pause = defendPause
			case m.Truncated:
				at = now.Add(moreDelay + r.random(moreSpread))
			case o.shared:
				at = now.Add(sharedDelay + r.random(sharedSpread))
			}
			if again := o.sent.Add(pause); again.After(at) {
				at = again
			}
			switch {
			case o.due.IsZero():
				o.due, o.asker = at, from
			case o.asker != from:
				o.asker = netip.Addr{} // two wait for it
			}
			if at.Before(o.due) {
				o.due = at
			}
		}
	}
}

// reply answers a resolver that is none of mDNS: by unicast, at once, its
// question repeated, and no word that only mDNS knows (section 6.7).
func (r *Responder) reply(m message, to netip.AddrPort, now time.Time) {
	var answers []*own
	for _, q := range m.Questions {
		for _, o := range r.wanted(q) {
			if !slices.Contains(answers, o) {
				answers = append(answers, o)
			}
		}
	}
	if len(answers) == 0 || !r.mayReply(now) {
		return
	}
	c := content{header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, answers: plain(answers)}
	for _, q := range m.Asked[:min(len(m.Asked), len(r.records))] {
		q.Class &^= topBit
		c.questions = append(c.questions, q)
	}
	for _, o := range r.additional(answers, now.Add(recordPause)) { // told just now, but not to him
		c.additional = append(c.additional, o.record)
	}
	for _, list := range [][]record{c.answers, c.additional} {
		for i := range list {
			list[i].Flush, list[i].TTL = false, min(list[i].TTL, legacyTTL)
		}
	}
	r.unicast = r.add(r.unicast, Packet{To: to}, c.pack)
}

func (r *Responder) mayReply(now time.Time) bool {
	if now.Sub(r.since) >= time.Second {
		r.spent, r.since = 0, now
	}
	r.spent++
	return r.spent <= unicastRate
}
