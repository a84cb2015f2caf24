package allowlist

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sort"
)

// The compiled form: what the gateway and the console judge sources by. Eight
// bytes an IPv4 range, 32 an IPv6 range, and a SHA-256 at the end, so that a
// file that was cut short is not taken for a shorter list.
//
//	"GHAL" version enabled lists; for each enabled list: scopes, length and
//	name, count of IPv4 ranges and these, count of IPv6 ranges and these; sum
const (
	magic   = "GHAL"
	version = 1
)

// Compiled is a policy as it is enforced: enabled lists only.
type Compiled struct {
	Enabled bool
	lists   []compiled
}

type compiled struct {
	name   string
	scopes Scope
	v4     []byte // of the encoding: first and last, big endian
	v6     []byte
}

// Encode writes the compiled form.
func Encode(p Policy) []byte {
	b := append([]byte(magic), version, 0)
	var lists []List
	if p.Enabled {
		b[5] = 1
		for _, l := range p.Lists {
			if l.Enabled {
				lists = append(lists, l)
			}
		}
	}
	b = append(b, byte(len(lists)))
	for _, l := range lists {
		b = append(b, byte(l.Scopes), byte(len(l.Name)))
		b = append(b, l.Name...)
		v4 := sort.Search(len(l.Ranges), func(i int) bool { return !l.Ranges[i].First.Is4() })
		for _, family := range [][]Range{l.Ranges[:v4], l.Ranges[v4:]} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(family)))
			for _, r := range family {
				b = append(b, r.First.AsSlice()...)
				b = append(b, r.Last.AsSlice()...)
			}
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

var errDamaged = errors.New("the compiled allowlists are damaged")

// Decode reads the compiled form; it keeps b.
func Decode(b []byte) (Compiled, error) {
	if len(b) < len(magic)+3+sha256.Size || !bytes.HasPrefix(b, []byte(magic)) {
		return Compiled{}, errDamaged
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return Compiled{}, fmt.Errorf("%w: the sum at the end differs", errDamaged)
	}
	if body[4] != version || body[5] > 1 {
		return Compiled{}, fmt.Errorf("%w: version %d", errDamaged, body[4])
	}
	c := Compiled{Enabled: body[5] == 1}
	n, rest := int(body[6]), body[7:]
	take := func(n int) []byte {
		if n < 0 || n > len(rest) {
			rest = nil
			return nil
		}
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	for range n {
		head := take(2)
		if head == nil || Scope(head[0])&^Everything != 0 {
			return Compiled{}, errDamaged
		}
		l := compiled{scopes: Scope(head[0]), name: string(take(int(head[1])))}
		for _, f := range []struct {
			to   *[]byte
			size int
		}{{&l.v4, 4}, {&l.v6, 16}} {
			count := take(4)
			if count == nil {
				return Compiled{}, errDamaged
			}
			k := int(binary.BigEndian.Uint32(count))
			if k > MaxRanges {
				return Compiled{}, errDamaged
			}
			if *f.to = take(2 * f.size * k); len(*f.to) != 2*f.size*k || !ordered(*f.to, f.size) {
				return Compiled{}, errDamaged
			}
		}
		if CheckName(l.name) != "" {
			return Compiled{}, errDamaged
		}
		c.lists = append(c.lists, l)
	}
	if len(rest) != 0 {
		return Compiled{}, errDamaged
	}
	return c, nil
}

// ordered says whether the ends go up, which the search relies on.
func ordered(b []byte, size int) bool {
	for i := 0; i+2*size <= len(b); i += 2 * size {
		if bytes.Compare(b[i:i+size], b[i+size:i+2*size]) > 0 || i > 0 && bytes.Compare(b[i-size:i], b[i:i+size]) >= 0 {
			return false
		}
	}
	return true
}

// Admits is the union of the scopes that a source has; Everything while the
// lists are off.
func (c Compiled) Admits(a netip.Addr) Scope {
	if !c.Enabled {
		return Everything
	}
	var s Scope
	for _, l := range c.lists {
		if s&l.scopes != l.scopes && l.contains(a) {
			s |= l.scopes
		}
	}
	return s
}

// Lists names the enabled lists that have the address, in order.
func (c Compiled) Lists(a netip.Addr) []string {
	var names []string
	for _, l := range c.lists {
		if l.contains(a) {
			names = append(names, l.name)
		}
	}
	return names
}

func (l compiled) contains(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() {
		return false
	}
	key, b := a.AsSlice(), l.v4
	if a.Is6() {
		b = l.v6
	}
	size := len(key)
	n := len(b) / (2 * size)
	i := sort.Search(n, func(i int) bool { return bytes.Compare(key, b[2*size*i+size:2*size*(i+1)]) <= 0 })
	return i < n && bytes.Compare(b[2*size*i:2*size*i+size], key) <= 0
}
