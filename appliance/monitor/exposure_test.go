package monitor

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

func drop(source string) control.Drop {
	return control.Drop{Source: netip.MustParseAddr(source), Port: 443, Proto: "tcp", Reason: "no-list", Link: "eth0", Samples: 1}
}

func TestNET6_ImplausibleReportsAreRefused(t *testing.T) {
	p := newPast()
	for name, change := range map[string]func(*control.Drops){
		"no source":  func(q *control.Drops) { q.Drops[0].Source = netip.Addr{} },
		"zone":       func(q *control.Drops) { q.Drops[0].Source = netip.MustParseAddr("fe80::1%eth0") },
		"4 in 6":     func(q *control.Drops) { q.Drops[0].Source = netip.MustParseAddr("::ffff:192.0.2.1") },
		"reason":     func(q *control.Drops) { q.Drops[0].Reason = "<script>" },
		"protocol":   func(q *control.Drops) { q.Drops[0].Proto = "icmp" },
		"link":       func(q *control.Drops) { q.Drops[0].Link = "a link\n" },
		"long link":  func(q *control.Drops) { q.Drops[0].Link = strings.Repeat("x", 16) },
		"no samples": func(q *control.Drops) { q.Drops[0].Samples = 0 },
		"too many": func(q *control.Drops) {
			for range control.MaxDrops {
				q.Drops = append(q.Drops, drop("192.0.2.1"))
			}
		},
	} {
		q := control.Drops{Drops: []control.Drop{drop("192.0.2.1")}, Lost: 1}
		change(&q)
		if err := p.told(q, time.Now()); !isInvalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(p.drops) != 0 || p.lost != 0 {
		t.Errorf("something of it was kept: %+v", p.drops)
	}
}

func isInvalid(err error) bool { return control.IsCode(err, control.CodeInvalid) }

func TestNET6_DropsAreCoalescedAndBounded(t *testing.T) {
	p, now := newPast(), time.Now()
	for i := range 3 {
		if err := p.told(control.Drops{Drops: []control.Drop{drop("192.0.2.1"), drop("192.0.2.2")}}, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.drops) != 2 || p.drops[0].Source.String() != "192.0.2.2" || p.drops[0].Samples != 3 || !p.drops[0].First.Equal(now) || !p.drops[0].Last.Equal(now.Add(2*time.Second)) {
		t.Errorf("%+v", p.drops)
	}
	for i := range 5000 {
		if err := p.told(control.Drops{Drops: []control.Drop{drop(fmt.Sprintf("10.0.%d.%d", i>>8, i&255))}}, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.drops) != mostDrops || p.reasons[netfilter.ReasonNoList] != 5006 {
		t.Errorf("%d drops are kept of %d", len(p.drops), p.reasons[netfilter.ReasonNoList])
	}
}

func TestNET6_HistoryOfADay(t *testing.T) {
	p := newPast()
	at := func(minute int, office, refused, other uint64) {
		p.count([]control.Counter{{Name: "list_office", Packets: office}, {Name: netfilter.WebRefused, Packets: refused}, {Name: netfilter.OtherDropped, Packets: other}}, minute)
	}
	show := func() (e control.Exposure) {
		start := time.Now()
		p.show(&e, start, start)
		return e
	}
	at(0, 1000, 1000, 0) // from before the program: no traffic of now
	at(0, 1010, 1001, 5)
	at(2, 1015, 1001, 9)
	e := show()
	if fmt.Sprint(e.Admitted, e.Refused) != "[10 0 5] [1 0 0]" || e.Day.Admitted != 15 || e.Day.Refused != 1 {
		t.Errorf("%v %v %+v", e.Admitted, e.Refused, e.Day)
	}
	at(3, 4, 0, 0) // the rules are new: counters begin anew
	if e = show(); fmt.Sprint(e.Admitted) != "[10 0 5 4]" || len(e.Lists) != 1 || e.Lists[0].Day != 19 {
		t.Errorf("%v %+v", e.Admitted, e.Lists)
	}
	p.count(nil, 4) // all lists off: what they let in today stays
	if e = show(); len(e.Lists) != 1 || e.Lists[0].Day != 19 {
		t.Errorf("lists that are off: %+v", e.Lists)
	}
	at(dayMinutes+2, 6, 0, 0)
	if e = show(); len(e.Admitted) != dayMinutes || e.Admitted[0] != 4 || e.Day.Admitted != 10 {
		t.Errorf("a day later: %d minutes, first %d, %+v", len(e.Admitted), e.Admitted[0], e.Day)
	}
	at(10*dayMinutes, 6, 0, 0)
	if e = show(); e.Day.Admitted != 0 || len(e.Lists) != 0 {
		t.Errorf("ten days later: %+v %+v", e.Day, e.Lists)
	}
	p.advance(5) // time does not run backwards
	if p.minute != 10*dayMinutes {
		t.Error("it ran backwards")
	}
	p.count([]control.Counter{{Name: netfilter.WebRefused, Packets: 1 << 40}}, 10*dayMinutes)
	if e = show(); e.Refused[len(e.Refused)-1] != 1<<32-1 {
		t.Errorf("more than a minute holds: %d", e.Refused[len(e.Refused)-1])
	}
}

// TestNET6_WholeAnswerFits: all that can be kept, with the longest names, has
// room in one message and in what the tool reads.
func TestNET6_WholeAnswerFits(t *testing.T) {
	p := newPast()
	var first, second []control.Counter
	for i := range 64 {
		name := netfilter.ListCounter(fmt.Sprintf("%032d", i))
		first = append(first, control.Counter{Name: name})
		second = append(second, control.Counter{Name: name, Packets: 1 << 60, Bytes: 1 << 62})
	}
	p.count(first, 0)
	for m := range dayMinutes {
		p.count(first, m)
		p.count(second, m)
	}
	for i := range mostDrops {
		d := drop(fmt.Sprintf("2001:db8:ffff:ffff:ffff:ffff:ffff:%x", i+0x1000))
		d.Link, d.Samples = strings.Repeat("x", 15), 1<<20
		if err := p.told(control.Drops{Drops: []control.Drop{d}}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	e := control.Exposure{}
	for _, c := range second {
		m := netfilter.MeaningOf(c.Name)
		e.Counters = append(e.Counters, control.Meant{Counter: c, Class: string(m.Class), Words: m.Words})
	}
	p.show(&e, time.Now(), time.Now())
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 128<<10 {
		t.Errorf("%d bytes", len(b))
	}
	t.Logf("%d bytes", len(b))
}
