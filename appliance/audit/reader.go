package audit

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Query chooses entries. The zero Query chooses all.
type Query struct {
	Before time.Time // strictly
	After  time.Time // not before
	Below  uint64    // sequence below this one: the next page; 0: from the newest
	Actor  string    // exactly
	Action string    // exactly
	Text   string    // somewhere in the event, whatever the case
	Limit  int       // at most so many; 0: 100
}

// MaxLimit bounds Query.Limit.
const MaxLimit = 1000

// Page is what Read found.
type Page struct {
	Entries []Entry `json:"entries"` // newest first
	More    bool    `json:"more"`    // older ones match too
	Damaged int     `json:"damaged"` // lines passed over because they are not entries: verify the log
}

// A Reader reads the log in a folder while it is being written.
type Reader struct{ Dir string }

// Read returns entries, newest first. It reads one segment at a time and
// stops as soon as it has enough.
func (r Reader) Read(q Query) (Page, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = 100
	}
	limit = min(limit, MaxLimit)
	text := strings.ToLower(q.Text)
	names, err := segments(r.Dir)
	if err != nil {
		return Page{}, err
	}
	page := Page{Entries: []Entry{}}
	for _, name := range slices.Backward(names) {
		var first uint64
		if _, err := fmt.Sscanf(name, segmentName, &first); err == nil && q.Below != 0 && first >= q.Below {
			continue
		}
		b, err := os.ReadFile(filepath.Join(r.Dir, name))
		if err != nil {
			return Page{}, fmt.Errorf("reading the audit log: %w", err)
		}
		// What has no newline yet is being written.
		b = b[:bytes.LastIndexByte(b, '\n')+1]
		for len(b) > 0 {
			begin := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
			rec, err := parse(b[begin : len(b)-1])
			b = b[:begin]
			if err != nil {
				page.Damaged++
				continue
			}
			if e := rec.entry(); q.admits(&e, text) {
				if len(page.Entries) == limit {
					page.More = true
					return page, nil
				}
				page.Entries = append(page.Entries, e)
			}
		}
	}
	return page, nil
}

func (q *Query) admits(e *Entry, text string) bool {
	switch {
	case q.Below != 0 && e.Sequence >= q.Below,
		!q.Before.IsZero() && !e.Time.Before(q.Before),
		e.Time.Before(q.After),
		q.Actor != "" && q.Actor != e.Event.Actor,
		q.Action != "" && q.Action != e.Event.Action:
		return false
	case text == "":
		return true
	}
	fields := []string{e.Event.Actor, e.Event.Action, e.Event.Object, e.Event.From, e.Event.Outcome}
	for k, v := range e.Event.Detail {
		fields = append(fields, k, v)
	}
	return slices.ContainsFunc(fields, func(s string) bool { return strings.Contains(strings.ToLower(s), text) })
}

// WriteTo copies the whole log, segment after segment, in the form that
// Verify reads. A line that is just being written is left out.
func (r Reader) WriteTo(w io.Writer) (int64, error) {
	names, err := segments(r.Dir)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(r.Dir, name))
		if err != nil {
			return total, fmt.Errorf("reading the audit log: %w", err)
		}
		if name == names[len(names)-1] {
			b = b[:bytes.LastIndexByte(b, '\n')+1]
		}
		n, err := w.Write(b)
		total += int64(n)
		if err != nil {
			return total, fmt.Errorf("copying the audit log: %w", err)
		}
	}
	return total, nil
}
