package bootentry

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// Menu is the firmware's boot menu as it stands.
type Menu struct {
	Entries map[uint16][]byte
	Order   []uint16
}

// Change is what is to be written: entries first, then the order, then what
// nothing names any more. A power cut between any two leaves a menu that the next
// start mends.
type Change struct {
	Write  map[uint16][]byte
	Order  []uint16 // nil: it stays
	Remove []uint16
	Next   *uint16  // the entry of the next start alone, whatever the order is; nil: none is named
	Ours   []uint16 // the numbers that the wanted entries have then
	Notes  []string // what was wrong, in words
}

// None says that the menu is as it has to be.
func (c Change) None() bool {
	return len(c.Write) == 0 && c.Order == nil && len(c.Remove) == 0 && c.Next == nil
}

// Mend says what makes the wanted entries stand together and in order. Ours are
// those with a description in names and a partition that is that of the wanted
// ones; everybody else's stay as they are, and keep their places: what their owner
// put before ours stays before ours.
func Mend(m Menu, want []Option, names []string) Change {
	c := Change{Write: make(map[uint16][]byte)}
	if len(want) == 0 {
		return c
	}
	have := make(map[string]uint16) // by description
	for _, n := range slices.Sorted(maps.Keys(m.Entries)) {
		o, err := Decode(m.Entries[n])
		if err != nil || o.Partition.ID != want[0].Partition.ID || !slices.Contains(names, o.Description) {
			continue
		}
		wanted := slices.ContainsFunc(want, func(w Option) bool { return w.Description == o.Description })
		if _, twice := have[o.Description]; twice || !wanted {
			c.Remove = append(c.Remove, n)
			continue
		}
		have[o.Description] = n
	}
	for _, w := range want {
		n, there := have[w.Description]
		b := w.Encode()
		switch {
		case !there:
			n = m.free(c.Write)
			c.Write[n] = b
			c.Notes = append(c.Notes, fmt.Sprintf("the firmware's boot menu had no entry %q", w.Description))
		case !bytes.Equal(m.Entries[n], b):
			c.Write[n] = b
			c.Notes = append(c.Notes, fmt.Sprintf("the entry %q of the firmware's boot menu was another", w.Description))
		}
		c.Ours = append(c.Ours, n)
	}
	gone := func(n uint16) bool { return slices.Contains(c.Ours, n) || slices.Contains(c.Remove, n) }
	at := max(0, slices.IndexFunc(m.Order, gone))
	order := slices.DeleteFunc(slices.Clone(m.Order), gone)
	if order = slices.Insert(order, min(at, len(order)), c.Ours...); !slices.Equal(order, m.Order) {
		c.Order = order
		if len(c.Write) == 0 {
			c.Notes = append(c.Notes, "the firmware's boot order was another")
		}
	}
	return c
}

// Begin says what makes an entry the first of its name, and the one of the next
// start even where the firmware prefers a medium that is still in the machine.
func Begin(m Menu, o Option) Change {
	c := Mend(m, []Option{o}, []string{o.Description})
	c.Next = &c.Ours[0]
	return c
}

// free is the lowest number that no entry has.
func (m Menu) free(also map[uint16][]byte) uint16 {
	for n := uint16(0); ; n++ {
		if _, used := m.Entries[n]; used || slices.Contains(m.Order, n) {
			continue
		}
		if _, used := also[n]; !used {
			return n
		}
	}
}
