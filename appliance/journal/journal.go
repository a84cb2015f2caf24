// Package journal keeps the newest log lines in memory and, once there is a place for them, on disk, both within bounds.
//
// On disk a journal is at most two segments, old and new. A segment is lines
// of JSON, one a log line. When the new one is full it takes the place of the
// old one by rename. After a power cut the last line may be torn; it is left
// out when read, and the next one begins on a line of its own.
package journal

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/control"
)

const (
	textLimit    = 8 << 10 // bytes of one line; the rest is cut off
	overhead     = 64      // bytes a line costs besides its text
	defaultLimit = 100     // lines that a query without a limit gets
	answerLimit  = 512 << 10
	newName      = "journal.jsonl"
	oldName      = "journal.old.jsonl"
)

// Journal holds the lines. It is safe for use by several goroutines.
type Journal struct {
	now func() time.Time

	mu      sync.Mutex
	ring    int // bytes that a role may hold in memory
	roles   map[control.Role]*ring
	seq     uint64
	dir     string
	file    *os.File
	size    int64
	segment int64
}

// ring is the newest lines of one role.
type ring struct {
	lines []entry
	bytes int
}

type entry struct {
	seq    uint64
	stored bool // it is on disk too
	line   control.LogLine
}

// New makes a Journal that keeps up to perRole bytes in memory for each role,
// so that one which floods pushes out nobody else's lines.
func New(perRole int, now func() time.Time) *Journal {
	return &Journal{now: now, ring: perRole, roles: make(map[control.Role]*ring)}
}

// Append adds a line. What is not printable is escaped: a line is one line,
// and nothing in it can move a cursor or pose as another.
func (j *Journal) Append(role control.Role, text string) {
	line := control.LogLine{Time: j.now().UTC(), Role: role, Text: clean(text)}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.remember(line, j.write(line))
}

func (j *Journal) remember(line control.LogLine, stored bool) {
	r := j.roles[line.Role]
	if r == nil {
		r = new(ring)
		j.roles[line.Role] = r
	}
	j.seq++
	r.lines = append(r.lines, entry{j.seq, stored, line})
	r.bytes += len(line.Text) + overhead
	drop := 0
	for r.bytes > j.ring && drop < len(r.lines)-1 {
		r.bytes -= len(r.lines[drop].line.Text) + overhead
		drop++
	}
	// Forgotten lines are moved over only when they are as many as those
	// kept, so that a line costs the same however long the ring is.
	clear(r.lines[:drop])
	r.lines = r.lines[drop:]
}

// Attach begins to write to dir, up to limit bytes in all, and brings back
// what is there from before. Lines that came before Attach are written too. A
// folder that cannot be written is an error, and the journal goes on in memory.
func (j *Journal) Attach(dir string, limit int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("attaching the journal: %w", err)
	}
	before, err := load(dir, limit)
	if err != nil {
		return fmt.Errorf("attaching the journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		return fmt.Errorf("attaching the journal to %s: it is attached to %s", dir, j.dir)
	}
	j.dir, j.segment = dir, limit/2
	if err := j.open(); err != nil {
		return fmt.Errorf("attaching the journal: %w", err)
	}
	memory := j.all()
	j.roles = make(map[control.Role]*ring)
	for _, line := range before {
		j.remember(line, true)
	}
	for _, e := range memory {
		if !e.stored { // else it is among those from before
			j.remember(e.line, j.write(e.line))
		}
	}
	return nil
}

// open opens the new segment at its end, on a line of its own.
func (j *Journal) open() error {
	path := filepath.Join(j.dir, newName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size > 0 {
		var last [1]byte
		if _, err = f.ReadAt(last[:], size-1); err == nil && last[0] != '\n' {
			var n int
			n, err = f.WriteString("\n")
			size += int64(n)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("opening %s: %w", path, err), f.Close())
	}
	j.file, j.size = f, size
	return nil
}

// write adds a line to the disk and says whether it is there. A disk that refuses (full, gone) ends the
// writing until the next Attach, and says so once, in memory.
func (j *Journal) write(line control.LogLine) bool {
	if j.file == nil {
		return false
	}
	b, err := json.Marshal(line)
	if err == nil && j.size+int64(len(b))+1 > j.segment {
		err = j.rotate()
	}
	if err == nil {
		var n int
		n, err = j.file.Write(append(b, '\n'))
		j.size += int64(n)
	}
	if err == nil {
		return true
	}
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
		j.file = nil
	}
	why := fmt.Sprintf("writing the journal to %s: %v; the log goes on in memory", j.dir, err)
	j.remember(control.LogLine{Time: j.now().UTC(), Role: control.Init, Text: clean(why)}, false)
	return false
}

// rotate makes the new segment the old one. A power cut before the rename
// leaves a full new one, after it none: both are what open expects.
func (j *Journal) rotate() error {
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(j.dir, newName), filepath.Join(j.dir, oldName)); err != nil {
		return err
	}
	return j.open()
}

// Sync brings what was written to the disk itself: before a restart, and from
// time to time.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("syncing the journal: %w", err)
	}
	return nil
}

func (j *Journal) String() string { return "journal" }

// Run syncs every half minute until ctx ends, and then once more: that much
// log a power cut may take, and no flash wears out for a line.
func (j *Journal) Run(ctx context.Context) error {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), j.Sync())
		case <-tick.C:
			if err := j.Sync(); err != nil {
				j.Append(control.Init, err.Error())
			}
		}
	}
}

// Close ends the writing to disk, so that the volume can be unmounted; the
// journal goes on in memory.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	if err != nil {
		return fmt.Errorf("closing the journal: %w", err)
	}
	return nil
}

// Read gives the newest lines, oldest first, of one role or of all.
func (j *Journal) Read(q control.LogQuery) control.LogLines {
	limit := q.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var lines []control.LogLine
	for _, e := range j.all() {
		if q.Role == "" || e.line.Role == q.Role {
			lines = append(lines, e.line)
		}
	}
	lines = lines[max(0, len(lines)-limit):]
	// The answer has to fit in a message of the control socket, escaped.
	size := 0
	for i := len(lines) - 1; i >= 0; i-- {
		if size += 2*len(lines[i].Text) + overhead + overhead; size > answerLimit {
			lines = lines[i+1:]
			break
		}
	}
	return control.LogLines{Lines: lines}
}

// all is every line in memory in the order it came.
func (j *Journal) all() []entry {
	var es []entry
	for _, r := range j.roles {
		es = append(es, r.lines...)
	}
	slices.SortFunc(es, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
	return es
}

// load reads the segments in dir, the newest limit bytes of each. Lines that
// do not parse are left out: torn by a power cut, or not ours.
func load(dir string, limit int64) ([]control.LogLine, error) {
	var lines []control.LogLine
	for _, name := range []string{oldName, newName} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		in := bufio.NewReaderSize(io.LimitReader(f, limit), 8*textLimit)
		var long bool // the rest of a line that is over any of ours
		for err == nil {
			var b []byte
			b, err = in.ReadSlice('\n')
			if l, ok := parse(b); ok && err == nil && !long {
				lines = append(lines, l)
			}
			if long = errors.Is(err, bufio.ErrBufferFull); long {
				err = nil
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	return lines, nil
}

func parse(b []byte) (l control.LogLine, ok bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode(&l) != nil || l.Role == "" {
		return l, false
	}
	l.Text = clean(l.Text)
	return l, true
}

// clean makes one printable line of text. Text that is clean stays as it is,
// so that it may pass through here again after a restart.
func clean(text string) string {
	text = cut(strings.TrimRight(text, "\r\n"))
	plain := true
	for _, r := range text {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			plain = false
			break
		}
	}
	if plain {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == '\t':
			b.WriteString("  ")
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
	}
	return cut(b.String())
}

func cut(text string) string {
	if len(text) <= textLimit {
		return text
	}
	n := textLimit - len("…")
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}
