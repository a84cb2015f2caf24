package netfilter

import "testing"

// TestNET6_EveryCounterHasWords: what the kernel counts is told in words, and
// what it takes besides the two ports is called an exception.
func TestNET6_EveryCounterHasWords(t *testing.T) {
	for name, s := range goldenStates() {
		for _, c := range Rules(s).Chains {
			for _, r := range c.Rules {
				if r.Counter == "" {
					continue
				}
				m := MeaningOf(r.Counter)
				if _, known := meanings[r.Counter]; !known && r.Set == (SetName{}) {
					t.Errorf("%s: %q has no words", name, r.Counter)
				}
				switch {
				case r.Verdict == Drop && m.Class != Refused && m.Class != Dropped && r.Counter != DHCP:
					t.Errorf("%s: %q drops and is called %s", name, r, m.Class)
				case r.Verdict == Accept && (m.Class == Refused || m.Class == Dropped):
					t.Errorf("%s: %q accepts and is called %s", name, r, m.Class)
				case r.Verdict == Accept && m.Class == Passing && r.Counter != WebNew && r.Conn&Established == 0:
					t.Errorf("%s: %q is an exception and is not named as one", name, r)
				}
			}
		}
	}
	if m := MeaningOf("mystery_port"); m.Class != Exception || m.Words != "mystery port" {
		t.Errorf("an unknown counter: %+v", m)
	}
	for _, r := range []Reason{ReasonNoList, ReasonOffLink, ReasonStarting} {
		if r.Words() == string(r) {
			t.Errorf("%s has no words", r)
		}
	}
}
