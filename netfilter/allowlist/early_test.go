package allowlist

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNET8_EarlyStageIsAskedFor(t *testing.T) {
	many := make([]Range, XDPFrom)
	for i := range many {
		a := netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
		many[i] = Range{a, a}
	}
	list := func(enabled bool, n int) List { return List{Name: "office", Enabled: enabled, Ranges: many[:n]} }
	for _, c := range []struct {
		p    Policy
		want bool
	}{
		{Policy{Enabled: true, Lists: []List{list(true, XDPFrom)}}, true},
		{Policy{Enabled: true, XDP: XDPAuto, Lists: []List{list(true, XDPFrom/2), list(true, XDPFrom/2)}}, true},
		{Policy{Enabled: true, Lists: []List{list(true, XDPFrom-1)}}, false},
		{Policy{Enabled: true, Lists: []List{list(false, XDPFrom), list(true, 1)}}, false},
		{Policy{Enabled: true, XDP: XDPOff, Lists: []List{list(true, XDPFrom)}}, false},
		{Policy{Enabled: true, XDP: XDPOn, Lists: []List{list(true, 1)}}, true},
		{Policy{XDP: XDPOn, Lists: []List{list(true, XDPFrom)}}, false}, // the lists judge nobody
	} {
		if got := c.p.Early(); got != c.want {
			t.Errorf("xdp %q, on %t: %t, want %t", c.p.XDP, c.p.Enabled, got, c.want)
		}
	}
	_, err := ParseSettings([]byte("xdp = \"always\"\n"))
	if err == nil || !strings.Contains(err.Error(), "auto, on or off") {
		t.Errorf("xdp = always: %v", err)
	}
	s, err := ParseSettings([]byte("enabled = true\nxdp = \"on\"\n"))
	if err != nil || s.XDP != XDPOn {
		t.Errorf("xdp = on: %+v, %v", s, err)
	}
	if text, err := s.Format(); err != nil || !strings.Contains(string(text), "xdp = 'on'") {
		t.Errorf("written anew: %s, %v", text, err)
	}
}
