package right

import (
	"strings"
	"testing"
)

func TestACC3_FunctionsAreReadInOneForm(t *testing.T) {
	for _, text := range []string{
		"everything", "remote-control,", ",remote-control", "desktop-view,remote-control", "reboot,reboot",
		"Reboot", " reboot", "remote-control desktop-view", strings.Repeat("x", 1<<16),
	} {
		s := Functions(1)
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%.40q was read as %v", text, s)
		}
		if s != 0 {
			t.Errorf("%.40q was refused and left %v", text, s)
		}
	}
	if _, err := (endOfFunctions | Reboot).MarshalText(); err == nil {
		t.Error("a bit without meaning was written")
	}
	for s := Functions(0); s <= AllFunctions; s += 37 {
		b, err := s.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Functions
		if err := back.UnmarshalText(b); err != nil || back != s {
			t.Fatalf("%q read as %v, %v; want %v", b, back, err, s)
		}
	}
}

// ACC3 names fifteen, and the single prompt.
func TestACC3_EveryFunctionHasAName(t *testing.T) {
	names := AllFunctions.Names()
	if len(names) != 16 || len(FunctionNames()) != 16 {
		t.Fatalf("%d functions, want 15 and the single prompt: %v", len(names), names)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if n == "" || seen[n] {
			t.Errorf("a function has no name of its own: %q", n)
		}
		seen[n] = true
	}
}

func TestACC3_DenialBeatsEveryGrant(t *testing.T) {
	all := Rules{Granted: AllFunctions}
	noReboot := Rules{Denied: Reboot}
	view := Rules{Granted: DesktopView | Reboot}
	for _, c := range []struct {
		role   Role
		groups []Rules
		want   Functions
	}{
		{"", []Rules{all}, 0},
		{"root", []Rules{all}, 0},
		{Viewer, nil, 0},
		{Viewer, []Rules{all}, DesktopView | SystemInfo},
		{Viewer, []Rules{all, {Denied: DesktopView}}, SystemInfo},
		{Technician, nil, 0},
		{Technician, []Rules{view}, DesktopView | Reboot},
		{Technician, []Rules{view, noReboot}, DesktopView},
		{Technician, []Rules{noReboot, all}, AllFunctions &^ Reboot},
		{Administrator, nil, AllFunctions},
		{Administrator, []Rules{noReboot}, AllFunctions &^ Reboot},
		{Owner, []Rules{{}}, AllFunctions},
		{Owner, []Rules{{Granted: 1 << 31}}, AllFunctions},
	} {
		if got := Allowed(c.role, c.groups...); got != c.want {
			t.Errorf("Allowed(%s, %v) = %v, want %v", c.role, c.groups, got, c.want)
		}
	}
	if AllFunctions.Has(0) {
		t.Error("no function was had")
	}
	if (DesktopView | Reboot).Has(DesktopView | Clipboard) {
		t.Error("half of what was asked was enough")
	}
}
