package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"gatehouse/netfilter"
)

// wholeReadBack is up to how many ranges a set is read back element by element.
// The kernel walks a dump from the front anew for every 32 KiB, so that its
// time grows with the square of the size.
const wholeReadBack = 20_000

// probes of a set that is too large for that, besides two for each message.
const probes = 1000

const (
	getSet       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSET
	newSet       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSET
	setCount     = 20 // NFTA_SET_COUNT, since Linux 6.16
	dumpAttempts = 10
)

// readBack compares the kernel's sets with what was asked: small ones whole;
// large ones by the first and last range of every message, by others evenly
// spread, and by the kernel's count where it tells one.
func readBack(sets []netfilter.Set) error {
	w, err := dial()
	if err != nil {
		return err
	}
	defer w.close()
	for _, s := range sets {
		if len(s.Ranges) <= wholeReadBack {
			err = w.compare(s)
		} else if err = w.compareCount(s); err == nil {
			err = w.compareSome(s)
		}
		if err != nil {
			return fmt.Errorf("the set %s read back is not what was sent: %w", s.SetName, err)
		}
	}
	return nil
}

// A tally is how many elements there are and a sum over them that does not
// depend on their order.
type tally struct {
	count int
	sum   uint64
}

func (t *tally) add(seed maphash.Seed, key []byte, intervalEnd bool) {
	var b [17]byte
	n := copy(b[:], key)
	if intervalEnd {
		b[n] = 1
	}
	t.count++
	t.sum += maphash.Bytes(seed, b[:n+1])
}

// compare reads all elements.
func (w *wire) compare(s netfilter.Set) error {
	seed := maphash.MakeSeed()
	var want tally
	for _, r := range s.Ranges {
		want.add(seed, r.First.AsSlice(), false)
		if behind := r.Last.Next(); behind.IsValid() {
			want.add(seed, behind.AsSlice(), true)
		}
	}
	for range dumpAttempts {
		have, whole, err := w.dump(s.SetName, seed)
		if err != nil {
			return err
		}
		if !whole { // somebody changed the table meanwhile
			continue
		}
		if have != want {
			return fmt.Errorf("%d elements, want %d, or others than those sent", have.count, want.count)
		}
		return nil
	}
	return fmt.Errorf("the table changed during each of %d readings", dumpAttempts)
}

func (w *wire) dump(name netfilter.SetName, seed maphash.Seed) (have tally, whole bool, err error) {
	if err := w.send(w.ask(getElements, unix.NLM_F_DUMP, name, nil)); err != nil {
		return have, false, err
	}
	whole = true
	err = w.messages(func(m message) (bool, error) {
		if m.flags&unix.NLM_F_DUMP_INTR != 0 {
			whole = false
		}
		switch m.kind {
		case newElements:
			elements(m, func(key []byte, intervalEnd bool) { have.add(seed, key, intervalEnd) })
			return true, nil
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return false, m.failure()
		}
		return true, nil
	})
	return have, whole, err
}

// ask makes a question about a set.
func (w *wire) ask(kind, flags uint16, name netfilter.SetName, key []byte) []byte {
	// NFTA_SET_TABLE and NFTA_SET_NAME have the same numbers as those of a list of elements.
	b := w.header(nil, kind, unix.NLM_F_REQUEST|flags, inetFamily, 0)
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, []byte(netfilter.Table+"\x00"))
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_SET, []byte(name.String()+"\x00"))
	if key != nil {
		value := attribute(nil, unix.NFTA_DATA_VALUE, key)
		element := attribute(nil, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, attribute(nil, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, value))
		b = attribute(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, element)
	}
	return end(b, 0)
}

// elements calls f for those of one message.
func elements(m message, f func(key []byte, intervalEnd bool)) {
	if len(m.data) < 4 {
		return
	}
	attributes(m.data[4:], func(kind uint16, list []byte) bool {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return true
		}
		attributes(list, func(_ uint16, element []byte) bool {
			var key []byte
			intervalEnd := false
			attributes(element, func(kind uint16, value []byte) bool {
				switch kind {
				case unix.NFTA_SET_ELEM_KEY:
					attributes(value, func(_ uint16, v []byte) bool { key = v; return false })
				case unix.NFTA_SET_ELEM_FLAGS:
					intervalEnd = len(value) == 4 && binary.BigEndian.Uint32(value)&unix.NFT_SET_ELEM_INTERVAL_END != 0
				}
				return true
			})
			f(key, intervalEnd)
			return true
		})
		return false
	})
}

// compareCount compares the kernel's own count, where it tells one.
func (w *wire) compareCount(s netfilter.Set) error {
	if err := w.send(w.ask(getSet, 0, s.SetName, nil)); err != nil {
		return err
	}
	return w.messages(func(m message) (bool, error) {
		switch m.kind {
		case unix.NLMSG_ERROR:
			return false, m.failure()
		case newSet:
			var err error
			attributes(m.data[min(4, len(m.data)):], func(kind uint16, value []byte) bool {
				if kind == setCount && len(value) == 4 {
					if n := binary.BigEndian.Uint32(value); uint64(n) != uint64(len(s.Ranges)) {
						err = fmt.Errorf("%d ranges, want %d", n, len(s.Ranges))
					}
				}
				return true
			})
			return false, err
		}
		return true, nil
	})
}

func (w *wire) compareSome(s netfilter.Set) error {
	n := len(s.Ranges)
	for i := 0; i < n; i += rangesPerMessage {
		if err := errors.Join(w.probe(s, i), w.probe(s, min(i+rangesPerMessage, n)-1)); err != nil {
			return err
		}
	}
	for i := range probes {
		if err := w.probe(s, int(uint64(i)*uint64(n)/probes)); err != nil {
			return err
		}
	}
	return nil
}

// probe asks the kernel for the last address of a range, which it finds in the
// element that begins it, and for the one behind, which it must not find.
func (w *wire) probe(s netfilter.Set, i int) error {
	r := s.Ranges[i]
	first, err := w.lookup(s.SetName, r.Last)
	if err != nil {
		return fmt.Errorf("%s of the range from %s: %w", r.Last, r.First, err)
	}
	if first != r.First {
		return fmt.Errorf("%s is found in a range from %s, want %s", r.Last, first, r.First)
	}
	behind := r.Last.Next()
	if !behind.IsValid() || i+1 < len(s.Ranges) && s.Ranges[i+1].First == behind {
		return nil
	}
	if _, err := w.lookup(s.SetName, behind); !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s, behind the range from %s, is found too (%w)", behind, r.First, err)
	}
	return nil
}

// lookup returns the first address of the range that the kernel finds.
func (w *wire) lookup(name netfilter.SetName, a netip.Addr) (first netip.Addr, err error) {
	if err := w.send(w.ask(getElements, 0, name, a.AsSlice())); err != nil {
		return first, err
	}
	err = w.messages(func(m message) (bool, error) {
		switch m.kind {
		case unix.NLMSG_ERROR:
			return false, m.failure()
		case newElements:
			elements(m, func(key []byte, _ bool) { first, _ = netip.AddrFromSlice(key) })
			return false, nil
		}
		return true, nil
	})
	return first, err
}
