package allowlists

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestNET2_TableIsTheText shows each line where it stands, its mistake beside
// it, and takes out the line that was named and no other.
func TestNET2_TableIsTheText(t *testing.T) {
	e := editor{Address: netip.MustParseAddr("192.0.2.7"), Text: "# head office\n192.0.2.0/24  # all of it\n\n10.0.0.0/33\n2001:db8::/32\n192.0.2.1-192.0.2.3"}
	e.Lines = map[int]string{5: "said by the filter"}
	got := e.Table()
	want := []row{
		{Line: 2, Range: "192.0.2.0/24", Note: "all of it", Mine: true},
		{Line: 4, Range: "10.0.0.0/33"}, {Line: 5, Range: "2001:db8::/32", Problem: "said by the filter"}, {Line: 6, Range: "192.0.2.1-192.0.2.3"},
	}
	if len(got.Rows) != len(want) {
		t.Fatalf("%+v", got)
	}
	want[1].Problem = got.Rows[1].Problem
	if want[1].Problem == "" || fmt.Sprint(got.Rows) != fmt.Sprint(want) {
		t.Errorf("rows %+v, want %+v", got.Rows, want)
	}
	long := editor{Text: strings.Repeat("192.0.2.1\n", 1000) + strings.Repeat("x\n", 1000)}
	if got := long.Table(); len(got.Rows) != 2*mostRows || got.More != 2000-2*mostRows || got.Rows[mostRows].Problem == "" {
		t.Errorf("%d rows, %d more", len(got.Rows), got.More)
	}
	for _, do := range []string{"", "drop-", "drop-0", "drop-7", "drop--1", "drop-x", "4", "apply", "drop-99999999999999999999"} {
		if text, ok := without(e.Text, do); ok || text != e.Text {
			t.Errorf("%q took something out", do)
		}
	}
	if text, ok := without(e.Text, "drop-4"); !ok || strings.Contains(text, "/33") || strings.Count(text, "\n") != 4 {
		t.Errorf("line 4: %q", text)
	}
}
