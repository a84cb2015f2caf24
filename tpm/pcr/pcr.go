// Package pcr computes platform register digests and policies without a TPM.
package pcr

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Size is the length of a register of the SHA-256 bank, the only one used.
const Size = sha256.Size

// Count is how many registers the PC client profile has.
const Count = 24

// Selection is a set of registers, bit n standing for PCR n.
type Selection uint32

// Select makes a Selection.
func Select(indices ...int) Selection {
	var s Selection
	for _, i := range indices {
		s |= 1 << i
	}
	return s
}

// Indices lists the registers in ascending order, which is the order of the
// composite digest (TPM 2.0 Library, Part 1, "PCR selection").
func (s Selection) Indices() []int {
	var out []int
	for i := range 32 {
		if s&(1<<i) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// Has says whether register i is in the set.
func (s Selection) Has(i int) bool { return i >= 0 && i < 32 && s&(1<<i) != 0 }

// Bitmap is the selection as TPMS_PCR_SELECTION carries it: three bytes, PCR 0
// being the lowest bit of the first.
func (s Selection) Bitmap() []byte { return []byte{byte(s), byte(s >> 8), byte(s >> 16)} }

// Valid says whether the set is not empty and within the profile.
func (s Selection) Valid() bool { return s != 0 && s < 1<<Count }

func (s Selection) String() string {
	var w []string
	for _, i := range s.Indices() {
		w = append(w, fmt.Sprint(i))
	}
	return strings.Join(w, "+")
}

// Values maps a register to its content.
type Values map[int][Size]byte

// Selection is the set of registers that the values are of.
func (v Values) Selection() Selection {
	var s Selection
	for i := range v {
		s |= 1 << i
	}
	return s
}

const (
	algSHA256     = 0x000B
	commandPolicy = 0x0000017F // TPM_CC_PolicyPCR
)

// Policy is the digest of a policy that is PolicyPCR alone.
func Policy(v Values) [Size]byte { return Digest{}.PCR(v) }

// Change is a register whose content is not what it was.
type Change struct {
	Index    int
	Old, New [Size]byte
}

func (c Change) String() string {
	return fmt.Sprintf("PCR %d was %s and is %s", c.Index, hex.EncodeToString(c.Old[:]), hex.EncodeToString(c.New[:]))
}

// Changes lists the registers of old that differ in now, in ascending order.
// One that is missing in now counts as zero.
func Changes(old, now Values) []Change {
	var out []Change
	for _, i := range old.Selection().Indices() {
		if old[i] != now[i] {
			out = append(out, Change{i, old[i], now[i]})
		}
	}
	return out
}

// Measured refuses a register that nothing was ever measured into: all zero,
// or all ones, which is what a register that cannot be used on this locality
// reads as. Sealing to it would bind to nothing.
func (v Values) Measured(i int) error {
	x, ok := v[i]
	switch {
	case !ok:
		return fmt.Errorf("the TPM has no PCR %d in its SHA-256 bank", i)
	case x == [Size]byte{}:
		return fmt.Errorf("PCR %d of the SHA-256 bank is all zero: the firmware measures nothing into it", i)
	case x == [Size]byte(bytes.Repeat([]byte{0xFF}, Size)):
		return fmt.Errorf("PCR %d of the SHA-256 bank is all ones: it is not in use", i)
	}
	return nil
}

// Extend is what a register holds after digest was extended into it.
func Extend(old, digest [Size]byte) [Size]byte {
	return sha256.Sum256(append(old[:], digest[:]...))
}
