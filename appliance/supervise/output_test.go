package supervise

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// What strangers make a role say must neither wear out the flash nor push what
// a person looks for out of the log.
func TestASteadyFloodOfLinesIsThinned(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	read := 0
	kept, told := 0, 0
	s := &Supervisor{config: Config{
		Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { // 500 lines a second, for a minute
			read++
			return now.Add(time.Duration(read) * 2 * time.Millisecond)
		},
		Output: func(_ control.Role, line string) {
			if strings.Contains(line, "lines dropped") {
				told++
				return
			}
			kept++
		},
	}}
	last := s.lines(control.Console, io.LimitReader(strings.NewReader(strings.Repeat("a site was refused\n", 60*500)), 60*500*19))
	if most := linesPerBurst + 60*linesPerSecond; kept > most || kept < most-2*linesPerSecond {
		t.Errorf("%d lines of %d were kept, want about %d", kept, 60*500, most)
	}
	if told < 50 || told > 61 {
		t.Errorf("%d times it was said that lines were dropped", told)
	}
	if len(last) != reportLines {
		t.Errorf("%d lines for a crash report", len(last))
	}
}
