package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gatehouse/image/efivar"
)

// fresh is the store of a machine that was never started.
func fresh(t *testing.T) *Store {
	t.Helper()
	raw, err := os.ReadFile(boards["amd64"].vars)
	if err != nil {
		t.Fatal(err)
	}
	s, err := readStore(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func named(name, text string) Variable {
	return Variable{Name: name, Vendor: efivar.Global, Attributes: 7, Data: []byte(text)}
}

func TestStoreRefuses(t *testing.T) {
	good := fresh(t)
	if err := good.Add(named("Boot0001", "one")); err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good.raw)
		f(b)
		return b
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, 1<<16), "another store": change(func(b []byte) { b[offsetOfStore]++ }),
		"cut off":               good.raw[:offsetOfStore+storeHeader+10],
		"a name without end":    change(func(b []byte) { binary.LittleEndian.PutUint32(b[good.log+36:], 0xffffffff) }),
		"content without end":   change(func(b []byte) { binary.LittleEndian.PutUint32(b[good.log+40:], 0x7fffffff) }),
		"an end before the log": change(func(b []byte) { binary.LittleEndian.PutUint32(b[offsetOfStore+16:], 1) }),
	} {
		if _, err := readStore(bad); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	if err := good.Add(named("Boot0002", strings.Repeat("x", good.room))); err == nil {
		t.Error("more was added than there is room for")
	}
	if _, err := good.Cut(good, 0, true); err == nil {
		t.Error("a write that was never made was torn")
	}
}

// What a store is emptied of is gone, and it takes what a fresh one takes. Zeros at
// the end of its file are written as a hole, and read back.
func TestBOX1_EmptyStoreIsAFreshOne(t *testing.T) {
	s, want := fresh(t), fresh(t)
	if err := s.Add(named("PK", "theirs"), named("db", strings.Repeat("their key", 100))); err != nil {
		t.Fatal(err)
	}
	s.empty()
	if !bytes.Equal(s.raw, want.raw) || s.end != want.end {
		t.Error("it is not as it was before its first variable")
	}
	if err := errors.Join(s.Add(named("PK", "mine")), want.Add(named("PK", "mine"))); err != nil || !bytes.Equal(s.raw, want.raw) {
		t.Errorf("it does not take variables as a fresh one does: %v", err)
	}
	state := t.TempDir()
	long := Store{raw: append(bytes.Clone(s.raw), make([]byte, 1<<20)...)}
	for range 2 { // over what was longer or shorter before
		if err := long.Save(state); err != nil {
			t.Fatal(err)
		}
		if got, err := OpenStore(state); err != nil || !bytes.Equal(got.raw, long.raw) {
			t.Fatalf("%d bytes were written, others were read: %v", len(long.raw), err)
		}
		long.raw = s.raw
	}
}

// A change is appended, and ends the one before it of the same name. A power cut
// leaves those before it, and of the one that was torn a header that firmware
// passes over.
func TestBOX5_StoreIsALog(t *testing.T) {
	s := fresh(t)
	if err := s.Add(named("Boot0001", "one"), named("BootOrder", "first")); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Valid(); err != nil || len(all) != 2 || !reflect.DeepEqual(all[0], named("Boot0001", "one")) {
		t.Errorf("there are %+v, %v", all, err)
	}
	earlier, err := readStore(s.raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(named("db", "key"), named("BootOrder", "second"), named("PK", "mine")); err != nil {
		t.Fatal(err)
	}
	if s, err = readStore(s.raw); err != nil {
		t.Fatal(err)
	}
	if names, err := s.Since(earlier); err != nil || !slices.Equal(names, []string{"db", "BootOrder", "PK"}) {
		t.Errorf("since then %q were written: %v", names, err)
	}
	live := func(s *Store) (out []string) {
		all, err := s.Valid()
		if err != nil {
			t.Error(err)
		}
		for _, v := range all {
			out = append(out, v.Name)
		}
		return out
	}
	for _, c := range []struct {
		n    int
		torn bool
		want string
	}{
		{0, false, "Boot0001 BootOrder"}, {0, true, "Boot0001 BootOrder"}, {1, false, "Boot0001 BootOrder db"}, {1, true, "Boot0001 BootOrder db"},
		{2, false, "Boot0001 db BootOrder"}, {2, true, "Boot0001 db BootOrder"}, {3, false, "Boot0001 db BootOrder PK"},
	} {
		cut, err := s.Cut(earlier, c.n, c.torn)
		if err != nil {
			t.Fatal(err)
		}
		if cut, err = readStore(cut.raw); err != nil {
			t.Fatalf("cut after %d, torn %v: %v", c.n, c.torn, err)
		}
		if got := strings.Join(live(cut), " "); got != c.want {
			t.Errorf("cut after %d, torn %v: %s are there, want %s", c.n, c.torn, got, c.want)
		}
	}
	whole, err := s.Cut(earlier, 3, false)
	if err != nil || !bytes.Equal(whole.raw, s.raw) {
		t.Errorf("cut after the last write the store is another: %v", err)
	}
}
