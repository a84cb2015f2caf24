package bootentry

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"
)

var esp = Partition{Number: 1, First: 2048, Sectors: 327680, ID: uuid.MustParse("01234567-89ab-cdef-0123-456789abcdef")}

var names = []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}

func option(name, file string) Option {
	return Option{Active: true, Description: name, Partition: esp, File: file}
}

var (
	loader = option("Gatehouse", `\EFI\BOOT\BOOTX64.EFI`)
	first  = option("Gatehouse A", `\EFI\Linux\gatehouse-a.efi`)
	second = option("Gatehouse B", `\EFI\Linux\gatehouse-b.efi`)
)

// What efibootmgr writes for a partition and a file, byte by byte.
func TestBOX4_EntryIsAsFirmwareKeepsIt(t *testing.T) {
	want := []byte{1, 0, 0, 0, 0x5e, 0, 'G', 0, 0, 0,
		4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0,
		0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 2, 2,
		4, 4, 48, 0}
	for _, c := range `\EFI\BOOT\BOOTX64.EFI` {
		want = append(want, byte(c), 0)
	}
	want = append(want, 0, 0, 0x7f, 0xff, 4, 0)
	got := option("G", `\EFI\BOOT\BOOTX64.EFI`).Encode()
	if !bytes.Equal(got, want) {
		t.Errorf("\n% x, want\n% x", got, want)
	}
}

func TestBOX4_EntriesOfOthersAreNotOurs(t *testing.T) {
	good := first.Encode()
	if o, err := Decode(good); err != nil || o != first {
		t.Fatalf("%+v, %v", o, err)
	}
	for n := range good {
		if o, err := Decode(good[:n]); !errors.Is(err, ErrForeign) {
			t.Errorf("cut at %d it is %+v", n, o)
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[n] ^= 1 << bit
			if o, err := Decode(bad); err == nil && !bytes.Equal(o.Encode(), bad) {
				t.Errorf("bit %d of byte %d: %+v", bit, n, o)
			}
		}
	}
	if o, err := Decode(append(bytes.Clone(good), "optional data"...)); !errors.Is(err, ErrForeign) {
		t.Errorf("with data for the program: %+v", o)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(first.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := Decode(b); err == nil && !bytes.Equal(o.Encode(), b) {
			t.Errorf("%+v of % x", o, b)
		}
	})
}

func TestBOX4_OrderAndNames(t *testing.T) {
	if _, err := Order([]byte{1}); err == nil {
		t.Error("half a number was read")
	}
	for _, o := range [][]uint16{nil, {0}, {7, 0xABCD, 1}} {
		if got, err := Order(EncodeOrder(o)); err != nil || !slices.Equal(got, o) {
			t.Errorf("%v: %v, %v", o, got, err)
		}
	}
	for name, want := range map[string]int{"Boot0000": 0, "Boot00AF": 0xAF, "BootFFFF": 0xFFFF, "Boot00af": -1, "BootOrder": -1, "BootCurrent": -1, "Boot001": -1, "Boot00001": -1, "0000": -1} {
		n, ok := Number(name)
		if ok != (want >= 0) || ok && int(n) != want {
			t.Errorf("%s: %d, %v", name, n, ok)
		}
		if ok && Name(n) != name {
			t.Errorf("%s is written %s", name, Name(n))
		}
	}
}

// do carries a change out.
func do(m Menu, c Change) Menu {
	out := Menu{Entries: make(map[uint16][]byte), Order: m.Order}
	for n, b := range m.Entries {
		out.Entries[n] = b
	}
	for n, b := range c.Write {
		out.Entries[n] = b
	}
	if c.Order != nil {
		out.Order = c.Order
	}
	for _, n := range c.Remove {
		delete(out.Entries, n)
	}
	return out
}

func TestBOX4_MenuIsMendedAndOthersStay(t *testing.T) {
	stick := []byte("somebody else's")
	elsewhere := first
	elsewhere.Partition.ID[0]++
	moved := first
	moved.Partition.First = 4096
	both := []Option{loader, first, second}
	for name, c := range map[string]struct {
		menu Menu
		want []Option
		// the description of each entry in order; "?" for others
		order []string
	}{
		"an empty menu":                    {Menu{}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}},
		"others come after":                {Menu{map[uint16][]byte{0: stick, 1: stick}, []uint16{1, 0}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B", "?", "?"}},
		"what the owner put first":         {Menu{map[uint16][]byte{0: stick, 1: loader.Encode(), 2: stick}, []uint16{0, 1, 2}}, both, []string{"?", "Gatehouse", "Gatehouse A", "Gatehouse B", "?"}},
		"exchanged":                        {Menu{map[uint16][]byte{3: first.Encode(), 4: loader.Encode(), 5: second.Encode()}, []uint16{3, 4, 5}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}},
		"twice":                            {Menu{map[uint16][]byte{3: loader.Encode(), 4: loader.Encode()}, []uint16{4, 3}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}},
		"one that is not wanted any more":  {Menu{map[uint16][]byte{0: loader.Encode(), 1: first.Encode(), 2: second.Encode()}, []uint16{0, 1, 2}}, both[:2], []string{"Gatehouse", "Gatehouse A"}},
		"of another disk":                  {Menu{map[uint16][]byte{0: elsewhere.Encode()}, []uint16{0}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B", "?"}},
		"moved":                            {Menu{map[uint16][]byte{0: loader.Encode(), 1: moved.Encode(), 2: second.Encode()}, []uint16{0, 1, 2}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}},
		"entries that the order left out":  {Menu{map[uint16][]byte{0: loader.Encode(), 1: first.Encode(), 2: second.Encode()}, []uint16{0}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B"}},
		"an order of entries that are not": {Menu{map[uint16][]byte{}, []uint16{0, 9}}, both, []string{"Gatehouse", "Gatehouse A", "Gatehouse B", "?", "?"}},
	} {
		change := Mend(c.menu, c.want, names)
		after := do(c.menu, change)
		var got []string
		for _, n := range after.Order {
			o, err := Decode(after.Entries[n])
			if err != nil || o.Partition.ID != esp.ID {
				got = append(got, "?")
				continue
			}
			if !slices.Contains(c.want, o) {
				t.Errorf("%s: %+v is left", name, o)
			}
			got = append(got, o.Description)
		}
		if !slices.Equal(got, c.order) {
			t.Errorf("%s: %q, want %q", name, got, c.order)
		}
		for n, b := range c.menu.Entries {
			if o, err := Decode(b); (err != nil || o.Partition.ID != esp.ID) && !bytes.Equal(after.Entries[n], b) {
				t.Errorf("%s: entry %d of somebody else's was changed", name, n)
			}
		}
		if again := Mend(after, c.want, names); !again.None() || change.None() {
			t.Errorf("%s: mended again: %+v", name, again)
		}
		// A power cut after the entries and before the order.
		half := do(c.menu, Change{Write: change.Write})
		if rest := do(half, Mend(half, c.want, names)); !slices.Equal(rest.Order, after.Order) || len(rest.Entries) != len(after.Entries) {
			t.Errorf("%s: after a power cut %+v, want %+v", name, rest, after)
		}
	}
	for name, m := range map[string]Menu{
		"a medium before it": {map[uint16][]byte{0: stick}, []uint16{0}},
		"it is there":        {map[uint16][]byte{0: stick, 7: loader.Encode()}, []uint16{7, 0}},
		"last in the order":  {map[uint16][]byte{0: stick, 7: loader.Encode()}, []uint16{0, 7}},
	} {
		c := Begin(m, loader)
		if c.None() || c.Next == nil || !bytes.Equal(do(m, c).Entries[*c.Next], loader.Encode()) {
			t.Errorf("%s: what starts next is %+v", name, c)
		}
	}
	if c := Mend(Menu{Order: []uint16{1}}, nil, names); !c.None() {
		t.Errorf("without entries of ours: %+v", c)
	}
}
