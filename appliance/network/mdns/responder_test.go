package mdns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const host = "gatehouse-7f3k.local."

// settledBox is a box that has told its name, on a clean cable.
func settledBox(t *testing.T) (*link, *end) {
	t.Helper()
	l := newLink(t)
	box := l.join(service("gatehouse-7f3k", "192.0.2.40"))
	l.run(5 * time.Second)
	if !box.Settled() {
		t.Fatal("alone on the link, the name is not taken")
	}
	l.sent = nil
	return l, box
}

func types(list []record) string {
	var out []string
	for _, r := range list {
		out = append(out, strings.TrimPrefix(r.Type.String(), "Type"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestBOX10_ProbesThenTells(t *testing.T) {
	l := newLink(t)
	box := l.join(service("gatehouse-7f3k", "192.0.2.40"))
	l.run(5 * time.Second)
	got := l.take(box.from)
	if len(got) != 5 {
		t.Fatalf("%d packets, want 3 probes and 2 announcements: %+v", len(got), got)
	}
	for i, at := range []time.Duration{250, 500, 750, 1000, 2000} {
		if got[i].at != at*time.Millisecond {
			t.Errorf("packet %d came after %v, want %d ms", i, got[i].at, at)
		}
		if got[i].Response != (i >= 3) {
			t.Errorf("packet %d: answer %v", i, got[i].Response)
		}
	}
	probe := got[0]
	if len(probe.Questions) != 3 || probe.Questions[0] != (question{host, dnsmessage.TypeALL}) || types(probe.Authority) != "A SRV SRV TXT TXT" {
		t.Errorf("probe asks %v and proposes %s", probe.Questions, types(probe.Authority))
	}
	for _, a := range probe.Asked {
		if a.Class&topBit != 0 {
			t.Errorf("the probe for %v asks for answers by unicast, which the box does not take", a.Name)
		}
	}
	if tells := types(got[3].Answers); tells != "A PTR PTR PTR PTR SRV SRV TXT TXT" {
		t.Errorf("announced: %s", tells)
	}
	for _, a := range got[3].Answers {
		if a.Flush == (a.Type == dnsmessage.TypePTR) {
			t.Errorf("%s %v: cache-flush bit %v", a.Name, a.Type, a.Flush)
		}
	}
}

// TestBOX10_SecondBoxLosesTheName: whoever was first keeps it, whether the
// second comes later or at the same moment.
func TestBOX10_SecondBoxLosesTheName(t *testing.T) {
	for _, after := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, 990 * time.Millisecond, 30 * time.Second} {
		l := newLink(t)
		one := l.join(service("gatehouse-7f3k", "192.0.2.40"))
		l.run(after)
		two := l.join(service("gatehouse-7f3k", "192.0.2.41"))
		l.run(10 * time.Second)
		if one.Lost() == two.Lost() || one.Settled() == two.Settled() {
			t.Errorf("second %v later: first lost %v, second lost %v; want one of them", after, one.Lost(), two.Lost())
		}
		if after > time.Second && one.Lost() {
			t.Errorf("second %v later: the first lost its name", after)
		}
	}
}

func TestNameInUseIsLostAtOnce(t *testing.T) {
	l := newLink(t)
	box := l.join(service("gatehouse-7f3k", "192.0.2.40"))
	l.run(300 * time.Millisecond)
	l.ask("192.0.2.9:5353", content{header: dnsmessage.Header{Response: true}, answers: []record{{Name: host, Type: dnsmessage.TypeAAAA, TTL: 120, Data: make([]byte, 16)}}})
	if !box.Lost() {
		t.Error("another type under our name, while probing, is no conflict")
	}
}

func TestConflictLaterMeansProbing(t *testing.T) {
	l, box := settledBox(t)
	foreign := content{header: dnsmessage.Header{Response: true}, answers: []record{{Name: host, Type: dnsmessage.TypeA, TTL: 120, Data: []byte{192, 0, 2, 99}}}}
	for _, harmless := range []content{
		{header: foreign.header, answers: []record{{Name: host, Type: dnsmessage.TypeA, TTL: 0, Data: []byte{192, 0, 2, 99}}}},
		{header: foreign.header, answers: []record{{Name: host, Type: dnsmessage.TypeA, TTL: 120, Data: []byte{192, 0, 2, 40}}}},
		{header: foreign.header, answers: []record{{Name: "other.local.", Type: dnsmessage.TypeA, TTL: 120, Data: []byte{192, 0, 2, 99}}}},
	} {
		l.ask("192.0.2.9:5353", harmless)
		if !box.Settled() {
			t.Fatalf("%v counts as a conflict", harmless.answers)
		}
	}
	b, err := foreign.pack()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Receive(b, netip.MustParseAddrPort("192.0.2.9:40000"), l.now); err == nil || !box.Settled() {
		t.Errorf("an answer from another port than 5353 was taken: %v", err)
	}
	l.ask("192.0.2.9:5353", foreign)
	if box.Settled() || box.Lost() {
		t.Fatal("a conflict is not looked into")
	}
	l.run(5 * time.Second)
	if !box.Settled() {
		t.Error("nobody defended the name, and it is still not ours")
	}
}

// TestOwnAddressesElsewhereAreNoConflict: a box with two links in one network
// hears itself.
func TestOwnAddressesElsewhereAreNoConflict(t *testing.T) {
	l := newLink(t)
	s := service("gatehouse-7f3k", "192.0.2.40")
	s.Elsewhere = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
	box := l.join(s)
	l.run(300 * time.Millisecond)
	l.ask("192.0.2.1:5353", content{header: dnsmessage.Header{Response: true}, answers: []record{{Name: host, Type: dnsmessage.TypeA, TTL: 120, Data: []byte{192, 0, 2, 77}}}})
	if box.Lost() {
		t.Error("the address of another link of ours took the name away")
	}
}

func TestProberWhoIsAlwaysLaterGetsTheName(t *testing.T) {
	l := newLink(t)
	box := l.join(service("gatehouse-7f3k", "192.0.2.40"))
	probe := q(t, host, dnsmessage.TypeALL)
	probe.authority = []record{{Name: host, Type: dnsmessage.TypeA, TTL: 120, Data: []byte{255, 0, 0, 1}}}
	for n := 0; !box.Lost(); n++ {
		if n > 20 {
			t.Fatal("one who probes for ever keeps the box waiting for ever")
		}
		l.run(500 * time.Millisecond)
		l.ask("192.0.2.9:5353", probe)
	}
	// One with earlier records gives way to us.
	l = newLink(t)
	box = l.join(service("gatehouse-7f3k", "192.0.2.40"))
	probe.authority[0].Data = []byte{0, 0, 0, 1}
	for range 20 {
		l.run(200 * time.Millisecond)
		l.ask("192.0.2.9:5353", probe)
	}
	if !box.Settled() {
		t.Error("one with earlier records took the name")
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name         string
		kind         dnsmessage.Type
		answers, add string
		delay        time.Duration
	}{
		{"Gatehouse-7F3K.local.", dnsmessage.TypeA, "A", "", 0},
		{host, dnsmessage.TypeAAAA, "47", "", 0}, // NSEC: there is none
		{host, dnsmessage.TypeALL, "A", "", 0},
		{TypeBox, dnsmessage.TypePTR, "PTR", "A SRV TXT", 120 * time.Millisecond},
		{"gatehouse-7f3k._https._tcp.local.", dnsmessage.TypeSRV, "SRV", "A", 0},
		{"gatehouse-7f3k._https._tcp.local.", dnsmessage.TypeTXT, "TXT", "", 0},
		{enumeration, dnsmessage.TypePTR, "PTR PTR", "", 120 * time.Millisecond},
		{"other.local.", dnsmessage.TypeA, "", "", 0},
		{"_http._tcp.local.", dnsmessage.TypePTR, "", "", 0},
		{"gatehouse-7f3k.", dnsmessage.TypeA, "", "", 0},
	} {
		l, box := settledBox(t)
		l.ask("192.0.2.9:5353", q(t, c.name, c.kind))
		began := l.now
		l.run(2 * time.Second)
		got := l.take(box.from)
		if c.answers == "" {
			if len(got) != 0 {
				t.Errorf("%s %v: answered %+v", c.name, c.kind, got)
			}
			continue
		}
		if len(got) != 1 || got[0].To.IsValid() || !got[0].Response {
			t.Fatalf("%s %v: %+v, want one answer to the group", c.name, c.kind, got)
		}
		m := got[0]
		if all := strings.Fields(c.answers + " " + c.add); types(m.Answers) != strings.Join(sorted(all), " ") {
			t.Errorf("%s %v: %s, want %s and %s", c.name, c.kind, types(m.Answers), c.answers, c.add)
		}
		if delay := m.at - began.Sub(beginning); delay != c.delay {
			t.Errorf("%s %v: after %v, want %v", c.name, c.kind, delay, c.delay)
		}
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

// TestOnceASecond: a record goes out at most once a second, whoever asks how
// often; what was asked for is told after the pause. Who probes is told sooner.
func TestOnceASecond(t *testing.T) {
	l, box := settledBox(t)
	for range 100 {
		l.ask("192.0.2.9:5353", q(t, host, dnsmessage.TypeA))
		l.run(20 * time.Millisecond)
	}
	l.run(2 * time.Second)
	got := l.take(box.from)
	if len(got) != 3 {
		t.Errorf("100 questions in 2 s gave %d answers, want 3", len(got))
	}
	for i := range got[1:] {
		if d := got[i+1].at - got[i].at; d < time.Second {
			t.Errorf("answered again after %v", d)
		}
	}
	probe := q(t, host, dnsmessage.TypeALL)
	probe.authority = []record{{Name: host, Type: dnsmessage.TypeA, TTL: 120, Data: []byte{192, 0, 2, 9}}}
	l.ask("192.0.2.9:5353", q(t, host, dnsmessage.TypeA))
	l.run(5 * time.Millisecond)
	l.ask("192.0.2.9:5353", probe)
	l.run(260 * time.Millisecond)
	if got := l.take(box.from); len(got) != 2 {
		t.Errorf("who probes got %d answers within 250 ms, want the second", len(got))
	}
}

func TestKnownAnswersAreNotRepeated(t *testing.T) {
	l, box := settledBox(t)
	mine := record{Name: TypeBox, Type: dnsmessage.TypePTR, TTL: otherTTL, Data: appendName(nil, "gatehouse-7f3k."+TypeBox)}
	c := q(t, TypeBox, dnsmessage.TypePTR)
	c.answers = []record{mine}
	l.ask("192.0.2.9:5353", c)
	l.run(2 * time.Second)
	if got := l.take(box.from); len(got) != 0 {
		t.Errorf("who knows the answer got it: %+v", got)
	}
	c.answers[0].TTL = otherTTL/2 - 1
	l.ask("192.0.2.9:5353", c)
	l.run(2 * time.Second)
	if got := l.take(box.from); len(got) != 1 {
		t.Errorf("who knows the answer for a short time only got %d", len(got))
	}
	// The rest of what is known comes in a packet of its own.
	for _, from := range []string{"192.0.2.9:5353", "192.0.2.8:5353"} {
		first := q(t, TypeBox, dnsmessage.TypePTR)
		first.header.Truncated = true
		l.ask("192.0.2.9:5353", first)
		l.run(100 * time.Millisecond)
		l.ask(from, content{answers: []record{mine}})
		l.run(2 * time.Second)
		if got, want := len(l.take(box.from)), map[string]int{"192.0.2.9:5353": 0, "192.0.2.8:5353": 1}[from]; got != want {
			t.Errorf("the rest from %s: %d answers, want %d", from, got, want)
		}
	}
}

func TestOneWhoIsNoMDNSIsAnsweredByUnicast(t *testing.T) {
	l, box := settledBox(t)
	c := q(t, TypeBox, dnsmessage.TypePTR)
	c.header.ID = 77
	l.ask("192.0.2.9:40000", c)
	l.run(50 * time.Millisecond)
	got := l.take(box.from)
	if len(got) != 1 || got[0].To != netip.MustParseAddrPort("192.0.2.9:40000") {
		t.Fatalf("%+v, want one answer to the asker", got)
	}
	m := got[0]
	if m.ID != 77 || len(m.Questions) != 1 || m.Questions[0].Name != TypeBox {
		t.Errorf("id %d, questions %v: not as asked", m.ID, m.Questions)
	}
	if types(m.Answers) != "A PTR SRV TXT" {
		t.Errorf("answers %s", types(m.Answers))
	}
	for _, a := range m.Answers {
		if a.Flush || a.TTL > legacyTTL {
			t.Errorf("%v: flush %v, TTL %d, which only mDNS understands", a.Type, a.Flush, a.TTL)
		}
	}
	for range 1000 {
		l.ask("192.0.2.9:40000", c)
	}
	l.run(500 * time.Millisecond)
	if n := len(l.take(box.from)); n > unicastRate {
		t.Errorf("1000 questions at once gave %d answers, want at most %d", n, unicastRate)
	}
}

func TestGoodbyeAndUpdate(t *testing.T) {
	l, box := settledBox(t)
	changed := service("gatehouse-7f3k", "192.0.2.50")
	changed.Text[1] = "state=ready"
	if err := box.Update(changed, l.now); err != nil {
		t.Fatal(err)
	}
	l.run(3 * time.Second)
	got := l.take(box.from)
	if len(got) != 2 || !box.Settled() {
		t.Fatalf("a new address gave %d packets, want 2 announcements and no probe", len(got))
	}
	if !slices.ContainsFunc(got[0].Answers, func(r record) bool {
		return r.Type == dnsmessage.TypeA && r.Flush && string(r.Data) == string([]byte{192, 0, 2, 50})
	}) {
		t.Errorf("the new address is not told: %+v", got[0].Answers)
	}
	bye := box.Goodbye()
	if len(bye) != 1 {
		t.Fatalf("%d goodbyes", len(bye))
	}
	m, err := parse(bye[0].Data)
	if err != nil || len(m.Answers) != 9 {
		t.Fatalf("%v: %d records", err, len(m.Answers))
	}
	for _, a := range m.Answers {
		if a.TTL != 0 {
			t.Errorf("%s %v lives on for %d s", a.Name, a.Type, a.TTL)
		}
	}
	fresh := newLink(t).join(service("gatehouse-7f3k", "192.0.2.40"))
	if fresh.Goodbye() != nil {
		t.Error("a name that was never told is taken back")
	}
}

func TestServiceRefusals(t *testing.T) {
	for _, name := range []string{"", "a.b", "-a", "a-", "A", "gäste", "a b", strings.Repeat("a", 64)} {
		if _, err := NewResponder(Service{Name: name}, beginning, most); err == nil {
			t.Errorf("%q is taken as a name", name)
		}
	}
	if _, err := NewResponder(Service{Name: "a", Text: []string{strings.Repeat("x", 256)}}, beginning, most); err == nil {
		t.Error("a string of 256 bytes is taken")
	}
}
