package allowlists

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gatehouse/netfilter/allowlist"
)

// mostRows is how many lines the table shows; those with a mistake come in any case.
const mostRows = 100

// row is one line of the text as the table shows it.
type row struct {
	Line    int
	Range   string
	Note    string
	Mine    bool   // has the reader's address
	Problem string // what is wrong with it
}

// Table is the same text line by line.
type table struct {
	Rows []row
	More int // lines that are not shown
}

// Table is called by the page.
func (e editor) Table() (t table) {
	for i, line := range strings.Split(e.Text, "\n") {
		text, note, _ := strings.Cut(line, "#")
		r := row{Line: i + 1, Range: strings.TrimSpace(text), Note: strings.TrimSpace(note), Problem: e.Lines[i+1]}
		if r.Range == "" && r.Problem == "" {
			continue
		}
		parsed, err := allowlist.ParseRange(r.Range)
		switch {
		case err != nil && r.Problem == "":
			r.Problem = err.Error()
		case err == nil:
			r.Mine = has(parsed, e.Address)
		}
		if len(t.Rows) >= mostRows && r.Problem == "" || len(t.Rows) >= 2*mostRows {
			t.More++
			continue
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

func has(r allowlist.Range, a netip.Addr) bool {
	return a.IsValid() && a.Is4() == r.First.Is4() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// without is the text without the line that a button of the table names.
func without(text, do string) (string, bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(do, "drop-"))
	lines := strings.Split(text, "\n")
	if !strings.HasPrefix(do, "drop-") || err != nil || n < 1 || n > len(lines) {
		return text, false
	}
	return strings.Join(slices.Delete(lines, n-1, n), "\n"), true
}
