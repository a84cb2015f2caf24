package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Segments are named by the sequence of their first entry, so that their
// names sort in the order of the log.
const segmentName = "audit-%016d.jsonl"

func segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log's folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), "audit-") && strings.HasSuffix(e.Name(), ".jsonl") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// file is what the writer needs of a segment; *osFile is the one on disk.
type file interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	// Allocate reserves blocks up to size without changing the length of the file.
	Allocate(size int64) error
	Close() error
}

type osFile struct{ *os.File }

// Allocate uses fallocate(2). A file system that cannot gives
// errors.ErrUnsupported, a full one ENOSPC.
func (f osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if err != unix.EINTR {
			return err
		}
	}
}

// openSegment opens a segment for appending, making it if need be, and makes
// its name durable before anything is written to it.
func openSegment(dir, name string, gid int) (file, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening a segment of the audit log: %w", err)
	}
	err = f.Chmod(0o640)
	if err == nil && gid >= 0 {
		err = f.Chown(-1, gid)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("preparing %s: %w", path, err)
	}
	return osFile{f}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// tail is what a segment says to the writer that continues it.
type tail struct {
	last       *record // newest good entry; nil if the segment has none
	header     *header // newest header
	checkpoint uint64  // sequence of the newest checkpoint, 0 if none
	size       int64   // bytes up to the end of last
	torn       int64   // bytes after it that a power cut explains
	damaged    *damage // a line that no power cut explains
	lost       uint64  // lines from that one on
}

// readTail goes through a segment from its beginning. The link of its first
// line to the segment before is left to Verify.
//
// Every line was synced before the next was begun, so a power cut can only
// leave the last one unfinished: without its newline, or with blocks that
// were given to the file but never written, which read as zeros.
func readTail(path string) (tail, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return tail{}, fmt.Errorf("reading the end of the audit log: %w", err)
	}
	var t tail
	for line := 1; len(b) > 0; line++ {
		end := bytes.IndexByte(b, '\n')
		if end < 0 || end == len(b)-1 && bytes.IndexByte(b, 0) >= 0 {
			t.torn = int64(len(b))
			return t, nil
		}
		r, err := parse(b[:end])
		if err == nil && t.last != nil {
			err = follows(t.last, &r)
		}
		if err == nil && t.last == nil && r.Kind != KindHeader {
			err = errors.New("the file does not begin with a header")
		}
		if err != nil {
			t.damaged = &damage{Segment: filepath.Base(path), Line: line, What: err.Error()}
			t.lost = uint64(bytes.Count(b, []byte("\n")))
			return t, nil
		}
		switch r.Kind {
		case KindHeader:
			t.header = r.Header
		case KindCheckpoint:
			t.checkpoint = r.Sequence
		}
		t.last, t.size = &r, t.size+int64(end)+1
		b = b[end+1:]
	}
	return t, nil
}

// follows says whether b may come directly after a.
func follows(a, b *record) error {
	switch {
	case b.Sequence != a.Sequence+1:
		return fmt.Errorf("entry %d comes after entry %d", b.Sequence, a.Sequence)
	case b.Prev != *a.Hash:
		return fmt.Errorf("entry %d does not continue entry %d as it stands here", b.Sequence, a.Sequence)
	}
	return nil
}
