package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/tpm/tpmtest"
)

func headerSize(raw []byte) int {
	return headerFixed + int(binary.BigEndian.Uint32(raw[headerFixed-4:])) + 64
}

// resum gives an edited header a checksum that fits, if it has a length.
func resum(raw []byte) {
	size := headerSize(raw)
	if size > maxHeader {
		return
	}
	sum := sha256.Sum256(raw[:size-32])
	copy(raw[size-32:], sum[:])
}

// outcome opens what a power cut left, making new keys if it left nothing.
func outcome(t *testing.T, c Config) (v *Vault, fresh bool) {
	t.Helper()
	v, err := Open(t.Context(), c)
	if errors.Is(err, ErrBlank) {
		v, err = Create(t.Context(), c)
		if err == nil {
			err = v.Commit(t.Context())
		}
		fresh = true
	}
	if err != nil {
		t.Fatalf("the start after a power cut: %v", err)
	}
	return v, fresh
}

// cutPoints are where the power goes: each byte would take long, so the edges
// of what is written and places between them.
func cutPoints(total int) []int {
	var out []int
	for at := 0; at <= total; at += 509 {
		out = append(out, at)
	}
	for block := 0; block <= total; block += blockSize {
		for _, d := range []int{-1, 0, 1, headerFixed, 700} {
			if at := block + d; at >= 0 && at <= total {
				out = append(out, at)
			}
		}
	}
	return out
}

func TestKEY1_PowerCutDuringCommitWithoutTPM(t *testing.T) {
	for name, c := range map[string]Config{"host-id": forms()["host-id"]} {
		whole := newDisk()
		c.Meta = whole
		mustCreate(t, c)
		for _, at := range cutPoints(whole.total) {
			d := newDisk()
			d.left = at
			c.Meta = d
			v, err := Create(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			err = v.Commit(t.Context())
			d.left = -1
			w, fresh := outcome(t, c)
			if err == nil && fresh {
				t.Errorf("%s: cut at %d: Commit succeeded and the key is gone", name, at)
			}
			if !fresh {
				same(t, v, w)
			}
			p, err := readPages(d)
			if err != nil || !p.current[0] || !p.current[1] {
				t.Errorf("%s: cut at %d: the copies were not mended", name, at)
			}
			v.Wipe()
			w.Wipe()
		}
	}
}

func TestKEY1_PowerCutDuringCommitWithTPM(t *testing.T) {
	whole := newDisk()
	mustCreate(t, box(tpmtest.Start(t), whole))
	points := cutPoints(whole.total)
	if os.Getenv("GATEHOUSE_SOAK") != "1" {
		var few []int
		for i := 0; i < len(points); i += 4 * step(4) {
			few = append(few, points[i])
		}
		points = few
	}
	for _, at := range points {
		s := tpmtest.Start(t)
		d := newDisk()
		d.left = at
		c := box(s, d)
		v, err := Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		err = v.Commit(t.Context())
		d.left = -1
		s.PowerCut(t)
		w, fresh := outcome(t, c)
		if err == nil && fresh {
			t.Errorf("cut at %d: Commit succeeded and the key is gone", at)
		}
		if !fresh {
			same(t, v, w)
		}
		if claimed, err := w.Claimed(t.Context()); claimed || err != nil {
			t.Errorf("cut at %d: Claimed = %v, %v", at, claimed, err)
		}
		w.Wipe()
		s.PowerCut(t)
		x := mustOpen(t, c)
		if x.h.flags&flagSettled == 0 {
			t.Errorf("cut at %d: the next start did not settle", at)
		}
	}
}

func TestKEY1_PowerCutDuringClaimWithoutTPM(t *testing.T) {
	c := forms()["host-id"]
	base := newDisk()
	c.Meta = base
	mustCreate(t, c)
	probe := base.clone()
	c.Meta = probe
	if err := mustOpen(t, c).SetClaimed(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, at := range cutPoints(probe.total) {
		d := base.clone()
		c.Meta = d
		v := mustOpen(t, c)
		d.left = at
		err := v.SetClaimed(t.Context())
		d.left = -1
		claimed, readErr := mustOpen(t, c).Claimed(t.Context())
		// A write that failed after its last byte that matters may have worked.
		if readErr != nil || (err == nil && !claimed) {
			t.Errorf("cut at %d: SetClaimed = %v, then Claimed = %v, %v", at, err, claimed, readErr)
		}
	}
}

func TestKEY1_PowerCutDuringErase(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	mustCreate(t, c)
	base := c.Meta.(*disk)
	for _, at := range []int{0, 1, 100, copySize - 1, copySize, copySize + 100, 2 * copySize, erasedEnd - 1} {
		d := base.clone()
		d.left = at
		c.Meta = d
		if err := Erase(t.Context(), c); err == nil {
			t.Fatalf("cut at %d: Erase succeeded", at)
		}
		d.left = -1
		s.PowerCut(t)
		if v, err := Open(t.Context(), c); err == nil {
			v.Wipe() // not erased yet: whole
		} else if errors.Is(err, ErrBlank) {
			t.Errorf("cut at %d: the box would begin anew under its latch", at)
		}
	}
	if err := Erase(t.Context(), c); err != nil {
		t.Errorf("erasing again: %v", err)
	}
	if _, err := Open(t.Context(), c); !errors.Is(err, ErrBlank) {
		t.Errorf("Open = %v, want ErrBlank", err)
	}
}

func TestDamageOfOneCopyIsMended(t *testing.T) {
	c := forms()["host-id"]
	base := newDisk()
	c.Meta = base
	v := mustCreate(t, c)
	for i := range copies {
		d := base.clone()
		clear(d.data[i*copySize : i*copySize+600])
		c.Meta = d
		same(t, v, mustOpen(t, c))
		if !bytes.Equal(d.data[:headerEnd], base.data[:headerEnd]) {
			t.Errorf("copy %d was not mended", i)
		}
	}
	d := base.clone()
	d.data[50] ^= 1
	d.data[copySize+50] ^= 1
	c.Meta = d
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "header")
	_, err = Create(t.Context(), c)
	wantLocked(t, err, "header")
}

// After a change whose second write failed, the next change goes to the copy
// that is behind: a power cut in it must leave the one that is good.
func TestKEY1_ChangeAfterAHalfFailedChange(t *testing.T) {
	for _, first := range []int{0, blockSize, blockSize + 100, 2*blockSize - 1} {
		for _, second := range []int{0, 1, 200, blockSize - 1} {
			c := forms()["host-id"]
			d := newDisk()
			c.Meta = d
			v := mustCreate(t, c)
			d.left = first
			err := v.save()
			d.left = second
			_ = v.save()
			d.left = -1
			w := mustOpen(t, c)
			same(t, v, w)
			if first > blockSize && (err != nil || w.h.generation < 2) {
				t.Errorf("cuts at %d, %d: %v, generation %d", first, second, err, w.h.generation)
			}
		}
	}
}

func TestHeaderOfANewerVersionIsNeverOverwritten(t *testing.T) {
	c := forms()["host-id"]
	d := newDisk()
	c.Meta = d
	mustCreate(t, c)
	d.data[len(headerMagic)+1] = headerVersion + 1
	resum(d.data)
	clear(d.data[copySize:])
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "header")
	_, err = Create(t.Context(), c)
	wantLocked(t, err, "header")
}

func TestClaimVerifier(t *testing.T) {
	d := newDisk()
	if _, _, ok, err := ReadClaimVerifier(d); ok || err != nil {
		t.Errorf("blank: %v, %v", ok, err)
	}
	salt, key := [16]byte{1, 2}, [32]byte{3, 4}
	if err := WriteClaimVerifier(d, salt, key); err != nil {
		t.Fatal(err)
	}
	s, k, ok, err := ReadClaimVerifier(d)
	if !ok || err != nil || s != salt || k != key {
		t.Errorf("read back %v %v %v, %v", s, k, ok, err)
	}
	d.data[verifierAt+20] ^= 1
	if _, _, ok, err := ReadClaimVerifier(d); ok || err == nil {
		t.Error("a damaged verifier was taken")
	}
	if err := ClearClaimVerifier(d); err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := ReadClaimVerifier(d); ok || err != nil {
		t.Errorf("cleared: %v, %v", ok, err)
	}
	if !isBlank(d.data) {
		t.Error("something is left")
	}
	d.left = 10
	if WriteClaimVerifier(d, salt, key) == nil || ClearClaimVerifier(d) == nil {
		t.Error("a write that failed is no error")
	}
}

func TestOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := forms()["host-id"]
	c.Meta = f
	v := mustCreate(t, c)
	f.Close()
	info, err := os.Stat(path)
	if err != nil || info.Size() != MetaSize || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if f, err = OpenFile(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.Meta = f
	same(t, v, mustOpen(t, c))
	if _, err := OpenFile(filepath.Join(path, "below a file")); err == nil {
		t.Error("opened a file below a file")
	}
}

func FuzzParseHeader(f *testing.F) {
	for _, c := range forms() {
		d := newDisk()
		c.Meta = d
		v, err := Create(f.Context(), c)
		if err != nil {
			f.Fatal(err)
		}
		if err := v.Commit(f.Context()); err != nil {
			f.Fatal(err)
		}
		f.Add(d.data[headerFixed:headerSize(d.data)-64], uint16(headerBefore))
		v.Wipe()
	}
	d := newDisk()
	mustCreate(f, box(tpmtest.Start(f), d))
	f.Add(d.data[headerFixed:headerSize(d.data)-64], uint16(headerVersion))
	key := bytes.Repeat([]byte{1}, 32)
	f.Fuzz(func(t *testing.T, body []byte, version uint16) {
		var h header
		if version != headerVersion {
			version = headerBefore
		}
		if h.parse(body, version) != nil {
			return
		}
		if !bytes.Equal(h.body(), body) || h.version() != version {
			t.Fatal("what the parser takes is not what the program writes")
		}
		s, err := parseHeader(h.marshal(key))
		if err != nil || s.verify(key) != nil {
			t.Fatalf("a header that was written cannot be read: %v", err)
		}
	})
}

func FuzzParsePages(f *testing.F) {
	f.Add([]byte(headerMagic), []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d := newDisk()
		copy(d.data[:copySize], a)
		copy(d.data[copySize:headerEnd], b)
		p, err := readPages(d)
		if err != nil {
			t.Fatal(err)
		}
		if p.newest != nil && p.unwritten() {
			t.Fatal("written and unwritten")
		}
	})
}

// What is not whole zeroes or whole ones was written by somebody, and a box is
// not begun anew over it.
func TestOnlyUntouchedFlashIsBlank(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"zeroes":            {make([]byte, 64), true},
		"ones":              {bytes.Repeat([]byte{0xFF}, 64), true},
		"no text at all":    {bytes.Repeat([]byte{0xAA}, 64), false},
		"zeroes, then ones": {append(make([]byte, 32), bytes.Repeat([]byte{0xFF}, 32)...), false},
		"one byte":          {append(make([]byte, 63), 1), false},
	} {
		if got := isBlank(c.b); got != c.want {
			t.Errorf("%s: blank %v, want %v", name, got, c.want)
		}
	}
}
