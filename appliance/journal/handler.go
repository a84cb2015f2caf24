package journal

import (
	"log/slog"

	"gatehouse/appliance/control"
)

// lines makes one journal line of each write.
type lines struct {
	journal *Journal
	role    control.Role
}

func (l lines) Write(p []byte) (int, error) {
	l.journal.Append(l.role, string(p))
	return len(p), nil
}

// Handler is how the privileged process itself logs: slog's text form without
// the time, which each line has anyway.
func (j *Journal) Handler(role control.Role, level slog.Leveler) slog.Handler {
	return slog.NewTextHandler(lines{j, role}, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
}
