package firmware

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/mod/sumdb/note"
)

// place is a slot: it takes no more than what it was made for, and may be changed
// by somebody between the writing and the start.
type place struct {
	content []byte
	swap    func([]byte)
}

func (p *place) Write(b []byte) (int, error) {
	if len(p.content)+len(b) > cap(p.content) {
		return 0, io.ErrShortWrite
	}
	p.content = append(p.content, b...)
	return len(b), nil
}

// take does with a bundle what a box of an architecture does: it judges the manifest,
// writes the system while it checks it, and reads it back from where it starts.
func take(t Trust, arch string, r io.Reader, to *place) error {
	b, content, err := ReadBundle(r)
	if err != nil {
		return err
	}
	m, err := t.Open(b)
	if err != nil {
		return err
	}
	s, err := m.System(arch)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, s.Content(content)); err != nil {
		return err
	}
	if to.swap != nil {
		to.swap(to.content)
	}
	_, err = io.Copy(io.Discard, s.Content(bytes.NewReader(to.content)))
	return err
}

// small is a house whose systems are short, so that every byte can be spoiled.
func small(t testing.TB) house {
	h := newHouse(t)
	h.content = bytes.Repeat([]byte("MZ system "), 80)
	h.release.Systems[0].Size, h.release.Systems[0].SHA256 = int64(len(h.content)), sha256.Sum256(h.content)
	return h
}

func bundle(t testing.TB, note, system []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteBundle(&b, note, bytes.NewReader(system)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// maxMemory is what judging any bundle may allocate in all, the manifest that it
// may be long included: a note is read, copied, split and parsed.
const maxMemory = 256 << 10

// A corpus of bad bundles, taken as a box takes them, from the first line of the
// file to the last byte in the slot. The names of attacks are those of The Update
// Framework (theupdateframework.io/docs/security). Two of its attacks are not on a
// bundle: of a mirror that has nothing new to say, and of one that is slow, a box
// shows the day of its release and gives up by the clock.
func TestBOX4_BadFilesAreNotTaken(t *testing.T) {
	h := small(t)
	stranger, mallory := newPerson(t, "ada"), newPerson(t, "mallory") // the name of one of ours, another key
	signed := h.sign(t, h.release, 0, 1)
	good := bundle(t, signed, h.content)
	text, err := h.release.Text()
	if err != nil {
		t.Fatal(err)
	}
	if err := take(h.trust, "amd64", bytes.NewReader(good), &place{content: make([]byte, 0, len(h.content))}); err != nil {
		t.Fatalf("the good one: %v", err)
	}

	tried := 0
	var most uint64
	reasons := make(map[string]int)
	refuseFor := func(name string, trust Trust, arch string, r io.Reader, swap func([]byte), want ...error) {
		t.Helper()
		tried++
		to := &place{make([]byte, 0, len(h.content)), swap}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := take(trust, arch, r, to)
		runtime.ReadMemStats(&after)
		used := after.TotalAlloc - before.TotalAlloc
		most = max(most, used)
		switch {
		case err == nil:
			t.Fatalf("%s: taken", name)
		case len(err.Error()) < 20 || len(err.Error()) > 600:
			t.Errorf("%s: the reason is %q", name, err)
		case used > maxMemory:
			t.Errorf("%s: %d bytes were allocated", name, used)
		}
		known := false
		for _, kind := range []error{ErrMalformed, ErrSignatures, ErrOther, ErrOlder, ErrTooNew, ErrContent, io.ErrNoProgress} {
			if errors.Is(err, kind) {
				known = true
				reasons[kind.Error()]++
			}
		}
		if !known {
			t.Errorf("%s: the reason is none of the package's: %v", name, err)
		}
		for _, w := range want {
			if !errors.Is(err, w) {
				t.Errorf("%s: %v, want %v", name, err, w)
			}
		}
	}
	refuse := func(name string, b []byte, want ...error) {
		t.Helper()
		refuseFor(name, h.trust, "amd64", bytes.NewReader(b), nil, want...)
	}
	resign := func(text string, who ...note.Signer) []byte {
		b, err := note.Sign(&note.Note{Text: text}, who...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ada, bob := h.people[0], h.people[1]
	change := func(name string, want error, f func(*Manifest)) {
		t.Helper()
		m := h.release
		m.Systems = append([]System(nil), m.Systems...)
		f(&m)
		refuse(name, bundle(t, h.sign(t, m, 0, 1), h.content), want)
	}

	// Arbitrary software: signed by nobody, by strangers, by one of ours many times.
	one := h.sign(t, h.release, 0)
	line := one[bytes.LastIndex(one[:len(one)-1], []byte("\n"))+1:]
	for name, n := range map[string][]byte{
		"no signature": []byte(text), "an empty one": []byte(text + "\n"), "an empty line for one": []byte(text + "\n\n"), "a line that is none": []byte(text + "\n— ada \n"),
		"a signature of nothing": []byte(text + "\n— ada AAAA\n"),
	} {
		refuse(name, bundle(t, n, h.content), ErrMalformed)
	}
	for name, n := range map[string][]byte{
		"by strangers": resign(text, stranger, mallory), "by one of ours and a stranger": resign(text, ada, mallory),
		"by one of ours and one of the same name": resign(text, bob, stranger), "by one twice": append(bytes.Clone(one), line...),
		"by one ninety times": append(bytes.Clone(one), bytes.Repeat(line, 89)...),
		// Vulnerability to key compromises: one key that leaked, and it alone.
		"by one of three": one,
	} {
		refuse(name, bundle(t, n, h.content), ErrSignatures)
	}
	own := h.release
	own.Keys = Keys{1, []string{mallory.public}}
	refuse("by the keys that it names itself", bundle(t, resign(must(own.Text()), mallory), h.content), ErrSignatures)
	rotated := h.trust
	rotated.Keys = Keys{1, []string{mallory.public}}
	refuseFor("by keys that were given up", rotated, "amd64", bytes.NewReader(good), nil, ErrSignatures)

	// Rollback and fast-forward.
	change("an older version", ErrOlder, func(m *Manifest) { m.Version, m.Minimum = Version{1, 3, 9}, Version{} })
	change("an older epoch", ErrOlder, func(m *Manifest) { m.Epoch, m.Systems[0].Starts = 2, h.approve(t, 2) })
	change("one that asks for another before it", ErrTooNew, func(m *Manifest) { m.Minimum = Version{1, 4, 1} })
	forward := h.trust
	forward.Newest = Version{1, 5, 1}
	refuseFor("what the box has had newer, though it runs older", forward, "amd64", bytes.NewReader(good), nil, ErrOlder)
	for _, v := range []string{"4294967296.0.0", "1.5", "1.5.0.0", "1.5.0-rc1", "01.5.0", "-1.5.0", "1.5.0 "} {
		refuse("version "+v, bundle(t, resign(strings.Replace(text, "version 1.5.0", "version "+v, 1), ada, bob), h.content), ErrMalformed)
	}

	// Wrong software: another product, another architecture, none for this one.
	change("another product", ErrOther, func(m *Manifest) { m.Product = "gatehouse-hub" })
	change("no system for this architecture", ErrOther, func(m *Manifest) {
		m.Systems = []System{{"arm64", int64(len(h.content)), sha256.Sum256(h.content), h.approve(t, 3)}}
	})
	refuseFor("on another architecture", h.trust, "riscv64", bytes.NewReader(good), nil, ErrOther)
	refuseFor("the system of another architecture", h.trust, "arm64", bytes.NewReader(good), nil, ErrContent)
	refuse("another architecture's system", bundle(t, signed, []byte("other")), ErrContent)

	// Mix and match, extraneous parts: two releases that are both good, in one file.
	older := h.release
	older.Version, older.Systems = Version{1, 4, 9}, []System{{"amd64", 9, sha256.Sum256([]byte("old times")), h.approve(t, 3)}}
	refuse("a manifest with the system of another release", bundle(t, signed, []byte("old times")), ErrContent)
	refuse("a manifest with two systems", bundle(t, signed, append(bytes.Clone(h.content), h.content...)), ErrContent)
	refuse("a bundle in a bundle", bundle(t, signed, good), ErrContent)
	refuse("two manifests", bundle(t, append(bytes.Clone(signed), signed...), h.content))
	refuse("a manifest for a manifest", bundle(t, signed, signed), ErrContent)
	refuse("something before it", append([]byte("\n"), good...), ErrMalformed)
	for n := range 64 {
		refuse(fmt.Sprintf("%d bytes too many", n+1), append(bytes.Clone(good), bytes.Repeat([]byte{0}, n+1)...), ErrContent)
	}

	// Endless data: a first line, a manifest, a system without an end.
	endless := func(start []byte) *counted { return &counted{r: io.MultiReader(bytes.NewReader(start), forever{})} }
	for name, c := range map[string]struct {
		start []byte
		most  int64 // bytes that are read at all, beyond the start
	}{
		"a line": {nil, 8 << 10}, "a manifest": {[]byte(bundleLine + "65536\n"), MaxManifest + 8<<10},
		"a manifest that says it is endless": {[]byte(bundleLine + "99999999999999\n"), 8 << 10},
		"a system":                           {good, 64 << 10}, "a system of zeros": {good[:len(good)-len(h.content)], 64 << 10},
	} {
		r := endless(c.start)
		refuseFor(name+" without an end", h.trust, "amd64", r, nil)
		if read := r.n - int64(len(c.start)); read > c.most {
			t.Errorf("%s without an end: %d bytes were read", name, read)
		}
	}
	refuseFor("nothing ever comes", h.trust, "amd64", stuck{}, nil, io.ErrNoProgress)

	// The first line: every other way to say how long the manifest is.
	for _, n := range []int{-1, 0, 1, len(signed) - 1, len(signed) + 1, MaxManifest, MaxManifest + 1, 1 << 31} {
		refuse(fmt.Sprintf("a size of %d", n), append(fmt.Appendf(nil, "%s%d\n", bundleLine, n), good[bytes.IndexByte(good, '\n')+1:]...), ErrMalformed)
	}
	for _, form := range []string{"0%d\n", "+%d\n", " %d\n", "%d \n", "%d\r\n", "%d", "0x%x\n", "%d.0\n", "\n%d\n", "%d\x00\n", "1e%d\n"} {
		refuse(fmt.Sprintf("a size as %q", form), append(fmt.Appendf(nil, bundleLine+form, len(signed)), good[bytes.IndexByte(good, '\n')+1:]...), ErrMalformed)
	}
	for _, first := range []string{"", "gatehouse update 2 ", "gatehouse update 1", "Gatehouse update 1 ", "gatehouse release 1 ", "MZ\x00\x00", "\x1f\x8b", strings.Repeat("gatehouse ", 1000)} {
		refuse(fmt.Sprintf("a first line of %.20q", first), append(fmt.Appendf(nil, "%s%d\n", first, len(signed)), good[bytes.IndexByte(good, '\n')+1:]...), ErrMalformed)
	}

	// Damage and truncation in every place, whole and in a slow stream.
	for n := range good {
		if testing.Short() && n%2 == 1 {
			continue // the race detector has enough of half of them
		}
		bit := n % 7
		bad := bytes.Clone(good)
		bad[n] ^= 1 << bit
		refuse(fmt.Sprintf("bit %d of byte %d", bit, n), bad)
		refuse(fmt.Sprintf("cut at %d", n), good[:n])
		if n%16 == 0 {
			refuseFor(fmt.Sprintf("cut at %d, byte by byte", n), h.trust, "amd64", iotest.OneByteReader(bytes.NewReader(good[:n])), nil)
			refuseFor(fmt.Sprintf("cut at %d, its end with the last byte", n), h.trust, "amd64", iotest.DataErrReader(bytes.NewReader(good[:n])), nil)
			refuse(fmt.Sprintf("zeros from %d on", n), append(bytes.Clone(good[:n]), make([]byte, len(good)-n)...))
			refuse(fmt.Sprintf("a byte less at %d", n), append(bytes.Clone(good[:n]), good[n+1:]...))
			refuse(fmt.Sprintf("a byte more at %d", n), append(append(bytes.Clone(good[:n]), 'x'), good[n:]...))
		}
	}

	// Swapped between the check and the use: in the file while it is read, and in
	// the slot behind the back of who wrote it.
	start := len(good) - len(h.content)
	for n := range h.content {
		if n%8 != 0 {
			continue
		}
		other := bytes.Repeat([]byte{0xcc}, len(h.content)-n)
		refuseFor(fmt.Sprintf("swapped from byte %d on", n), h.trust, "amd64", io.MultiReader(bytes.NewReader(good[:start+n]), bytes.NewReader(other)), nil, ErrContent)
		refuseFor(fmt.Sprintf("byte %d swapped in the slot", n), h.trust, "amd64", bytes.NewReader(good), func(b []byte) { b[n] ^= 1 }, ErrContent)
	}
	kept := bytes.Clone(signed)
	m, err := h.trust.Open(kept)
	if err != nil {
		t.Fatal(err)
	}
	clear(kept)
	if again, err := m.Text(); err != nil || again != text {
		t.Errorf("what was opened changes with the bytes that it was opened from: %v", err)
	}

	if tried < 2000 {
		t.Errorf("%d bad bundles, want 2000", tried)
	}
	t.Logf("%d bad bundles, at most %d bytes allocated for one; %v", tried, most, reasons)
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

// forever is data without an end.
type forever struct{}

func (forever) Read(b []byte) (int, error) { return len(b), nil }

// stuck is a stream that neither says anything nor ends.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// counted says how much was read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
