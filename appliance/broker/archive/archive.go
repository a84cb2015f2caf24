// Package archive keeps recordings as they come from their sites, encrypted, and opens them with the organisation's key.
//
// What is beyond its bounds is refused, not rotated away: a recording that was
// forced must not vanish because another came.
package archive

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
)

// Limits.
const (
	MaxRecording = 1 << 30  // bytes of one
	LeaveFree    = 64 << 20 // bytes of the disk for everything else
	suffix       = ".rec"
)

// Archive is a folder of recordings. Its methods may run at the same time, of
// one recording one at a time.
type Archive struct {
	folder string
	free   func() (uint64, error) // bytes on the disk
	key    []byte                 // private
	sync   func(*os.File) error   // (*os.File).Sync

	mu     sync.Mutex
	known  map[session.ID]Info  // of those that did not grow since
	synced map[session.ID]int64 // how much of each is on the disk for certain
}

// Info is what a list shows of a recording.
type Info struct {
	Size    int64
	Seconds float64
	Whole   bool
	Problem string // why it cannot be read, or not to its end
}

// Open makes the folder.
func Open(folder string, key []byte, free func() (uint64, error)) (*Archive, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of recordings: %w", err)
	}
	return &Archive{folder: folder, free: free, key: key, sync: (*os.File).Sync, known: make(map[session.ID]Info), synced: make(map[session.ID]int64)}, nil
}

func (a *Archive) file(id session.ID) string { return filepath.Join(a.folder, id.String()+suffix) }

// Append keeps a part of a recording at its place, and says how much there is
// now: a part that was here before, or that comes too early, changes nothing. The
// site removes its copy of what is here, so all of that is on the disk.
func (a *Archive) Append(id session.ID, at int64, part []byte) (size int64, err error) {
	f, err := os.OpenFile(a.file(id), os.O_RDWR, 0o600)
	switch {
	case err == nil:
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		size = st.Size()
		if err := a.settle(f, id, size); err != nil {
			return 0, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("opening the recording: %w", err)
	}
	end := at + int64(len(part))
	switch {
	case at < 0 || at > size || end <= size:
		return size, nil // the site sends again from here
	case end > MaxRecording:
		return size, fmt.Errorf("a recording has at most %d MiB", MaxRecording>>20)
	}
	free, err := a.free()
	if err != nil {
		return size, err
	}
	if free < LeaveFree+uint64(len(part)) {
		return size, errors.New("the hub's disk is full: remove recordings")
	}
	if f == nil {
		if f, err = os.OpenFile(a.file(id), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return 0, fmt.Errorf("beginning the recording: %w", err)
		}
		defer f.Close()
	}
	if _, err = f.WriteAt(part, at); err == nil {
		err = a.sync(f)
	}
	if err != nil {
		// It would be taken for kept when it is told again.
		return size, errors.Join(fmt.Errorf("writing the recording: %w", err), f.Truncate(size))
	}
	a.settled(id, end)
	return end, nil
}

// settle has the disk keep what is in a file: a console may have been killed
// between writing it and that.
func (a *Archive) settle(f *os.File, id session.ID, size int64) error {
	a.mu.Lock()
	synced := a.synced[id]
	a.mu.Unlock()
	if synced >= size {
		return nil
	}
	if err := a.sync(f); err != nil {
		// The kernel says so once: the next time it would take it for written.
		return errors.Join(fmt.Errorf("writing the recording: %w", err), f.Truncate(synced))
	}
	a.settled(id, size)
	return nil
}

func (a *Archive) settled(id session.ID, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.synced[id] = size
}

// IDs are the sessions of which there is one.
func (a *Archive) IDs() ([]session.ID, error) {
	files, err := os.ReadDir(a.folder)
	if err != nil {
		return nil, fmt.Errorf("listing recordings: %w", err)
	}
	var ids []session.ID
	for _, f := range files {
		var id session.ID
		if name, ok := strings.CutSuffix(f.Name(), suffix); ok && id.UnmarshalText([]byte(name)) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Has says whether there is one of a session.
func (a *Archive) Has(id session.ID) bool {
	_, err := os.Stat(a.file(id))
	return err == nil
}

// Look reads what a list shows.
func (a *Archive) Look(id session.ID) Info {
	st, err := os.Stat(a.file(id))
	if err != nil {
		return Info{Problem: "it cannot be read: " + err.Error()}
	}
	a.mu.Lock()
	i, known := a.known[id]
	a.mu.Unlock()
	if known && i.Size == st.Size() {
		return i
	}
	i = Info{Size: st.Size()}
	rd, closer, err := a.open(id)
	if err == nil {
		i.Seconds, i.Whole = rd.Length().Seconds(), rd.Whole
		err = closer.Close()
	}
	if err != nil {
		i.Problem = err.Error()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[id] = i
	return i
}

var errNone = asker.None("There is no recording of this session.")

func (a *Archive) open(id session.ID) (*recording.Reader, io.Closer, error) {
	f, err := os.Open(a.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errNone
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening a recording: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	rd, err := recording.Open(f, st.Size(), a.key)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening a recording: %w", err), f.Close())
	}
	return rd, f, nil
}

// Export writes a recording as asciicast v2; begun is called before the first
// byte, once it is certain that there is one that opens. One that is damaged, or
// cannot be read further, is written as far as it is right, and ends with a mark
// that says so: who stores the answer would take it for whole.
func (a *Archive) Export(id session.ID, w io.Writer, begun func() error) error {
	rd, closer, err := a.open(id)
	if err != nil {
		return err
	}
	defer closer.Close()
	if err := begun(); err != nil {
		return err
	}
	err = rd.Export(w)
	if err == nil {
		return nil
	}
	why := "From here on the recording cannot be read."
	if errors.Is(err, recording.ErrTampered) {
		why = "From here on the recording was changed after it was written, and is not shown."
	}
	if _, werr := fmt.Fprintf(w, "[%f, \"m\", %q]\n", rd.Length().Seconds(), why); werr != nil {
		return errors.Join(err, werr)
	}
	return nil
}

// Remove removes one.
func (a *Archive) Remove(id session.ID) error {
	err := os.Remove(a.file(id))
	a.mu.Lock()
	delete(a.known, id)
	delete(a.synced, id)
	a.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return errNone
	}
	if err != nil {
		return fmt.Errorf("removing a recording: %w", err)
	}
	return nil
}
