package monitor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// What is kept of the past, in memory: about 60 KiB whatever comes. A restart
// of a role loses nothing of it, a restart of the program all.
const (
	observeEvery = 10 * time.Second
	dayMinutes   = 24 * 60
	quarters     = 24 * 4
	mostDrops    = 100
	mostLists    = 256 // names that had hits within a day
)

// past is the history of the filter's counters and the newest samples.
type past struct {
	mu       sync.Mutex
	last     map[string]uint64 // counters at the last look; nil before the first
	minute   int               // newest, from the start of the program
	admitted [dayMinutes]uint32
	refused  [dayMinutes]uint32
	lists    map[string]*hits
	drops    []control.Drop // newest first
	reasons  map[netfilter.Reason]uint64
	lost     uint64
	damaged  uint64
}

// hits of a list by quarters of an hour; the ring's place is the quarter's
// number from the start of the program.
type hits [quarters]uint32

func newPast() *past {
	return &past{lists: make(map[string]*hits), reasons: make(map[netfilter.Reason]uint64)}
}

// advance empties the minutes and quarters that passed without a look.
func (p *past) advance(minute int) {
	for n := max(p.minute+1, minute-dayMinutes+1); n <= minute; n++ {
		p.admitted[n%dayMinutes], p.refused[n%dayMinutes] = 0, 0
	}
	for q := max(p.minute/15+1, minute/15-quarters+1); q <= minute/15; q++ {
		for name, h := range p.lists {
			h[q%quarters] = 0
			if h.sum() == 0 {
				delete(p.lists, name)
			}
		}
	}
	p.minute = max(p.minute, minute)
}

func (h *hits) sum() (n uint64) {
	for _, q := range h {
		n += uint64(q)
	}
	return n
}

// count adds what the counters grew by since the last look. A counter that is
// smaller than it was began anew with its rules. The first look only notes
// where they stand: hosted, rules outlive the program.
func (p *past) count(counters []control.Counter, minute int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(minute)
	now := make(map[string]uint64, len(counters))
	for _, c := range counters {
		now[c.Name] = c.Packets
		if p.last == nil {
			continue
		}
		grown := c.Packets
		if before := p.last[c.Name]; before <= grown {
			grown -= before
		}
		switch netfilter.MeaningOf(c.Name).Class {
		case netfilter.Admitted:
			add(&p.admitted[minute%dayMinutes], grown)
			if list, ok := strings.CutPrefix(c.Name, netfilter.ListCounter("")); ok && grown > 0 {
				p.hit(list, minute/15, grown)
			}
		case netfilter.Refused:
			add(&p.refused[minute%dayMinutes], grown)
		}
	}
	p.last = now
}

func (p *past) hit(list string, quarter int, n uint64) {
	h := p.lists[list]
	if h == nil {
		if len(p.lists) >= mostLists {
			return
		}
		h = new(hits)
		p.lists[list] = h
	}
	add(&h[quarter%quarters], n)
}

// add stops at the largest number instead of beginning anew.
func add(to *uint32, n uint64) { *to = uint32(min(uint64(*to)+n, 1<<32-1)) }

// told takes a report of the gateway, which faces the network: what no sample
// can be is refused whole.
func (p *past) told(q control.Drops, now time.Time) error {
	if len(q.Drops) > control.MaxDrops {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("%d drops in one report: the limit is %d", len(q.Drops), control.MaxDrops)}
	}
	for _, d := range q.Drops {
		if wrong := implausible(d); wrong != "" {
			return &control.Error{Code: control.CodeInvalid, Text: "a report of drops: " + wrong}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost += q.Lost
	p.damaged += q.Damaged
	for _, d := range q.Drops {
		d.First, d.Last, d.Words = now, now, ""
		p.reasons[netfilter.Reason(d.Reason)] += d.Samples
		if i := slices.IndexFunc(p.drops, func(o control.Drop) bool { return same(o, d) }); i >= 0 {
			d.First = p.drops[i].First
			d.Samples += p.drops[i].Samples
			p.drops = slices.Delete(p.drops, i, i+1)
		}
		p.drops = slices.Insert(p.drops, 0, d)
	}
	p.drops = p.drops[:min(len(p.drops), mostDrops)]
	return nil
}

func same(a, b control.Drop) bool {
	return a.Source == b.Source && a.Port == b.Port && a.Proto == b.Proto && a.Reason == b.Reason && a.Link == b.Link
}

func implausible(d control.Drop) string {
	switch r := netfilter.Reason(d.Reason); {
	case !d.Source.IsValid() || d.Source.Zone() != "" || d.Source.Is4In6():
		return fmt.Sprintf("%s is no source", d.Source)
	case r.Words() == d.Reason:
		return fmt.Sprintf("%.20q is no reason", d.Reason)
	case d.Proto != "tcp" && d.Proto != "udp" && d.Proto != "other":
		return fmt.Sprintf("%.20q is no protocol", d.Proto)
	case len(d.Link) > 15 || strings.ContainsFunc(d.Link, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Sprintf("%.20q is no name of a link", d.Link)
	case d.Samples == 0 || d.Samples > 1<<20:
		return fmt.Sprintf("%d samples of one source", d.Samples)
	}
	return ""
}

// show fills in what the past knows.
func (p *past) show(e *control.Exposure, now, started time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := max(0, p.minute-dayMinutes+1)
	e.Since, e.Start = started, started.Add(time.Duration(first)*time.Minute)
	// The clock may have been set since: the newest minute is the one of now.
	if shift := now.Round(0).Sub(started.Round(0)) - now.Sub(started); shift.Abs() > time.Second {
		e.Since, e.Start = e.Since.Add(shift), e.Start.Add(shift)
	}
	e.Admitted, e.Refused = make([]uint32, 0, p.minute-first+1), make([]uint32, 0, p.minute-first+1)
	for n := first; n <= p.minute; n++ {
		a, r := p.admitted[n%dayMinutes], p.refused[n%dayMinutes]
		e.Admitted, e.Refused = append(e.Admitted, a), append(e.Refused, r)
		e.Day.Admitted += uint64(a)
		e.Day.Refused += uint64(r)
	}
	e.Drops = append([]control.Drop{}, p.drops...)
	for i := range e.Drops {
		e.Drops[i].Words = netfilter.Reason(e.Drops[i].Reason).Words()
	}
	for name, h := range p.lists {
		e.Lists = append(e.Lists, control.Hits{Name: name, Day: h.sum()})
	}
	slices.SortFunc(e.Lists, func(a, b control.Hits) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range []netfilter.Reason{netfilter.ReasonNoList, netfilter.ReasonOffLink, netfilter.ReasonStarting} {
		e.Reasons = append(e.Reasons, control.Reason{Reason: string(r), Words: r.Words(), Samples: p.reasons[r]})
	}
	e.Lost, e.Damaged = p.lost, p.damaged
}

// observe looks at the counters; minutes go by the clock that is never set.
func (m *Monitor) observe() ([]control.Counter, error) {
	if m.cfg.Filter == nil || m.cfg.Counters == nil {
		return nil, nil
	}
	m.observing.Lock() // two looks must not overtake each other
	defer m.observing.Unlock()
	counters, err := m.cfg.Counters()
	if err != nil {
		return nil, err
	}
	m.past.count(counters, int(m.cfg.Now().Sub(m.started)/time.Minute))
	return counters, nil
}

// Exposure is what the faces show of who knocks.
func (m *Monitor) Exposure() control.Exposure {
	e := control.Exposure{Sampling: m.cfg.Sampling}
	counters, err := m.observe()
	if err != nil {
		e.Problem = err.Error()
	}
	now := m.cfg.Now()
	m.mu.Lock()
	state, filtered, multicast := m.state, m.filtered, m.multicast()
	m.mu.Unlock()
	f := m.wall(state, filtered, multicast)
	e.InKernel, e.Sentence = f.InKernel, f.Sentence
	for _, c := range counters {
		meaning := netfilter.MeaningOf(c.Name)
		e.Counters = append(e.Counters, control.Meant{Counter: c, Class: string(meaning.Class), Words: meaning.Words})
		if c.Name == netfilter.WebNew {
			e.Opened = c.Packets
		}
	}
	m.past.show(&e, now, m.started)
	return e
}

func (m *Monitor) registerExposure(s *control.Server) {
	control.Handle(s, control.OpDrops, func(_ context.Context, _ control.Role, q control.Drops) (control.None, error) {
		return control.None{}, m.past.told(q, m.cfg.Now())
	})
	control.Handle(s, control.OpExposure, func(context.Context, control.Role, control.None) (control.Exposure, error) {
		return m.Exposure(), nil
	})
}
