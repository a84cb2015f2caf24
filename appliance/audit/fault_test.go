package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gatehouse/appliance/control"
)

// faults is how the disk fails at the moment.
type faults struct {
	write, sync, allocate error
	part                  int // bytes of a failing write that still arrive
}

// sick is a segment on such a disk.
type sick struct {
	file
	*faults
}

func (s sick) Write(b []byte) (int, error) {
	if s.write == nil {
		return s.file.Write(b)
	}
	n, err := s.file.Write(b[:min(s.part, len(b))])
	if err == nil {
		err = s.write
	}
	return n, err
}

func (s sick) Sync() error {
	if s.sync != nil {
		return s.sync
	}
	return s.file.Sync()
}

func (s sick) Allocate(n int64) error {
	if s.allocate != nil {
		return s.allocate
	}
	return s.file.Allocate(n)
}

func sickConfig(c Config) (Config, *faults) {
	s := &faults{}
	c.open = func(dir, name string, gid int) (file, error) {
		f, err := openSegment(dir, name, gid)
		return sick{f, s}, err
	}
	return c, s
}

func TestAUD1_AfterAFailedWriteNothingIsAccepted(t *testing.T) {
	for name, make := range map[string]func(*faults){
		"write":       func(s *faults) { s.write = syscall.EIO },
		"short write": func(s *faults) { s.write, s.part = syscall.EIO, 40 },
		"fsync":       func(s *faults) { s.sync = syscall.EIO },
		"allocate":    func(s *faults) { s.allocate = syscall.EIO },
	} {
		dir, key := t.TempDir(), newKey(t)
		c, s := sickConfig(testConfig(key))
		c.Reserve = 300 // so that Append allocates
		w := open(t, dir, c)
		appendEvents(t, w, 0, 3)
		head := w.Head()
		make(s)
		acknowledged := 0
		for range 20 {
			if _, err := w.Append(t.Context(), event(3)); err == nil {
				acknowledged++
			}
		}
		// The disk gets well: the writer does not.
		*s = faults{}
		for n := range 5 {
			if _, err := w.Append(t.Context(), event(n)); err == nil {
				acknowledged++
			}
		}
		if _, err := w.Checkpoint(t.Context()); err == nil || acknowledged != 0 || w.Head() != head {
			t.Errorf("%s: %d events acknowledged after the failure, head %+v, want %+v; checkpoint %v", name, acknowledged, w.Head(), head, err)
		}
		w.Close()
		w = open(t, dir, testConfig(key))
		appendEvents(t, w, 4, 5)
		r := whole(t, dir, Trust{})
		if name == "short write" && r.Recovered != 1 {
			t.Errorf("%s: report %+v, want the torn line noted", name, r)
		}
	}
}

func TestAUD1_FullDisk(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	c, s := sickConfig(testConfig(key))
	c.Reserve = 4000
	c.SegmentSize = 100 // due at each append
	w := open(t, dir, c)
	s.allocate = syscall.ENOSPC
	entry := func(action string) error {
		_, err := w.Append(t.Context(), control.Event{Actor: "a@example.org", Action: action})
		return err
	}
	for range 12 { // past the point where more must be reserved
		if err := entry("sign-in"); err != nil {
			t.Fatalf("signing in on a full disk: %v", err)
		}
	}
	if err := entry("change list"); !errors.Is(err, ErrFull) {
		t.Errorf("a change on a full disk = %v, want ErrFull", err)
	}
	if _, err := w.Append(t.Context(), control.Event{Actor: "unknown", Action: "sign-in", Outcome: "refused"}); !errors.Is(err, ErrFull) {
		t.Errorf("a stranger's guess on a full disk = %v, want ErrFull", err)
	}
	mustCheckpoint(t, w)
	for _, action := range []string{"read", "export", "erase", "switch off"} {
		if err := entry(action); err != nil {
			t.Errorf("%s on a full disk: %v", action, err)
		}
	}
	// The reserve is used up: refused without harm, and better again later.
	s.write, s.part = syscall.ENOSPC, 33
	if err := entry("sign-in"); !errors.Is(err, ErrFull) {
		t.Errorf("without a reserve: %v, want ErrFull", err)
	}
	*s = faults{}
	if err := entry("change list"); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if r := whole(t, dir, Trust{Key: &key.PublicKey}); r.Recovered != 0 {
		t.Errorf("report %+v", r)
	}
}

// A file system of 1 MiB that is really full: what was reserved is there.
// Recordings are what fills a disk, and who erases a box takes its configuration
// along: both are entries under names of their own.
func TestAUD1_RoomCanBeMadeOnAFullDisk(t *testing.T) {
	c, s := sickConfig(testConfig(newKey(t)))
	c.Reserve = 4000
	w := open(t, t.TempDir(), c)
	s.allocate = syscall.ENOSPC
	for range 12 { // past the point where more must be reserved
		if _, err := w.Append(t.Context(), control.Event{Actor: "a@example.org", Action: "sign-in"}); err != nil {
			t.Fatal(err)
		}
	}
	for action, ok := range map[string]bool{"remove recording": true, "export configuration": true, "import configuration": false} {
		if _, err := w.Append(t.Context(), control.Event{Actor: "a@example.org", Action: action}); (err == nil) != ok {
			t.Errorf("%s on a full disk: %v", action, err)
		}
	}
}

func TestAUD1_FullDiskForReal(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mounting a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	key := newKey(t)
	w, err := Open(filepath.Join(mount, "audit"), testConfig(key))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f, err := os.Create(filepath.Join(mount, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	accepted, refused := 0, error(nil)
	for range 1000 {
		if _, err := w.Append(t.Context(), event(0)); err != nil { // sign-in
			refused = err
			break
		}
		accepted++
	}
	if accepted < 400 || refused != nil && !errors.Is(refused, ErrFull) {
		t.Errorf("%d sign-ins written on a full disk, then %v; want at least 400", accepted, refused)
	}
	if _, err := w.Append(t.Context(), event(1)); !errors.Is(err, ErrFull) {
		t.Errorf("a change on a full disk = %v, want ErrFull", err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	appendEvents(t, w, 0, 5)
	whole(t, filepath.Join(mount, "audit"), Trust{})
}

func TestWithoutFallocate(t *testing.T) {
	c, s := sickConfig(testConfig(newKey(t)))
	s.allocate = syscall.EOPNOTSUPP
	dir := t.TempDir()
	w := open(t, dir, c)
	appendEvents(t, w, 0, 5)
	s.write = syscall.ENOSPC
	if _, err := w.Append(t.Context(), event(0)); !errors.Is(err, ErrFull) {
		t.Errorf("Append = %v, want ErrFull", err)
	}
	s.write = nil
	appendEvents(t, w, 5, 8)
	whole(t, dir, Trust{})
}

// Every prefix of what was written, as a power cut leaves it: acknowledged
// entries stay, the torn one goes and is noted, the log goes on whole.
func TestAUD1_PowerCutAtEveryByte(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	w := open(t, dir, testConfig(key))
	appendEvents(t, w, 0, 2)
	mustCheckpoint(t, w)
	w.Close()
	name := fmt.Sprintf(segmentName, 1)
	all, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	step := 17 // every byte in the soak, and those around each newline always
	if os.Getenv("GATEHOUSE_SOAK") != "" {
		step = 1
	} else if testing.Short() {
		step = 97
	}
	for cut := range len(all) + 1 {
		near := bytes.IndexByte(all[max(0, cut-2):min(len(all), cut+2)], '\n') >= 0
		if cut%step != 0 && !near {
			continue
		}
		for _, zeros := range []int{0, 64} {
			after := t.TempDir()
			torn := append(bytes.Clone(all[:cut]), make([]byte, zeros)...)
			if err := os.WriteFile(filepath.Join(after, name), torn, 0o640); err != nil {
				t.Fatal(err)
			}
			stand := uint64(bytes.Count(all[:cut], []byte("\n")))
			w, err := Open(after, testConfig(key))
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			clean := zeros == 0 && (cut == 0 || all[cut-1] == '\n')
			want := stand
			if stand == 0 {
				want++ // the header, anew
			}
			if !clean {
				want++ // the note
			}
			if got := w.Head().Sequence; got != want {
				t.Fatalf("cut at %d: goes on after %d, want %d", cut, got, want)
			}
			appendEvents(t, w, 7, 8)
			w.Close()
			r := whole(t, after, Trust{})
			if (r.Recovered == 1) == clean {
				t.Fatalf("cut at %d: %d notes of torn lines", cut, r.Recovered)
			}
			now, err := os.ReadFile(filepath.Join(after, name))
			if stand > 0 && (err != nil || !bytes.HasPrefix(now, all[:bytes.LastIndexByte(all[:cut], '\n')+1])) {
				t.Fatalf("cut at %d: an acknowledged entry was lost, %v", cut, err)
			}
		}
	}
}

func TestPowerCutBetweenSegments(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	c := testConfig(key)
	c.SegmentSize = 1500
	w := open(t, dir, c)
	appendEvents(t, w, 0, 12)
	head := w.Head()
	w.Close()
	next := filepath.Join(dir, fmt.Sprintf(segmentName, head.Sequence+1))
	for _, left := range []string{"", `{"seq":`, "\x00\x00\x00"} {
		if err := os.WriteFile(next, []byte(left), 0o640); err != nil {
			t.Fatal(err)
		}
		w, err := Open(dir, c)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Head().Sequence; got < head.Sequence || got > head.Sequence+1 {
			t.Errorf("%q: goes on after %d, want about %d", left, got, head.Sequence)
		}
		appendEvents(t, w, 0, 1)
		head = w.Head()
		w.Close()
		whole(t, dir, Trust{})
		next = filepath.Join(dir, fmt.Sprintf(segmentName, head.Sequence+1))
	}
}

// A line that no power cut explains: the box goes on, and Verify says where.
func TestAUD2_DamageIsKeptAndFound(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"first line":  func(b []byte) []byte { b[10] ^= 1; return b },
		"middle line": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"last line":   func(b []byte) []byte { b[len(b)-10] ^= 1; return b },
		"all lines":   func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("{"), []byte("[")) },
	} {
		for _, segmentSize := range []int64{1500, 1 << 20} {
			dir, key := t.TempDir(), newKey(t)
			c := testConfig(key)
			c.SegmentSize = segmentSize
			w := open(t, dir, c)
			appendEvents(t, w, 0, 11)
			head := w.Head()
			w.Close()
			names, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, names[len(names)-1])
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := damage(b)
			if err := os.WriteFile(path, bad, 0o640); err != nil {
				t.Fatal(err)
			}
			for n := range 2 { // and again after another start
				w, err = Open(dir, c)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				appendEvents(t, w, n, n+1)
				if w.Head().Sequence <= head.Sequence {
					t.Errorf("%s: number %d was given twice", name, w.Head().Sequence)
				}
				w.Close()
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
				t.Errorf("%s: the damaged segment was touched, %v", name, err)
			}
			r, err := VerifyDir(dir, Trust{})
			var broken *BrokenError
			if !errors.As(err, &broken) || !strings.Contains(r.Sentence, names[len(names)-1]) {
				t.Errorf("%s: %v, want the place named", name, err)
			}
			p, err := Reader{dir}.Read(Query{Text: "damage"})
			if err != nil || len(p.Entries) != 1 || p.Damaged == 0 {
				t.Errorf("%s: the reader shows %+v, %v", name, p, err)
			}
		}
	}
}
