package network

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// sample is what one time server says: how far our clock is behind it.
type sample struct {
	Server string
	Offset time.Duration
}

// Servers agree when they are within this of each other; a home line delays
// one way more than the other, seldom by this much.
const agreement = 500 * time.Millisecond

// fewest is how many must agree: with two, one liar is as good as the other.
// Servers that a person named are asked alone, and may be fewer.
const fewest = 3

// majority returns the offset on which more than half of the servers that
// answered, and at least so many, agree, and how many they are. A liar is
// outvoted whatever it says; as many liars as honest ones give no time at all.
func majority(samples []sample, least int) (time.Duration, int, error) {
	s := slices.Clone(samples)
	slices.SortFunc(s, func(a, b sample) int { return cmp.Compare(a.Offset, b.Offset) })
	start, size := 0, 0
	for i := range s {
		j := i
		for j < len(s) && within(s[i].Offset, s[j].Offset) {
			j++
		}
		if j-i > size {
			start, size = i, j-i
		}
	}
	if size < least || size*2 <= len(s) {
		return 0, size, fmt.Errorf("of %d time servers that answered %d agree, want %d and more than half", len(s), size, least)
	}
	return s[start+size/2].Offset, size, nil
}

// within says whether b, not less than a, is close to it; a difference over
// the range of a Duration turns negative and is not close.
func within(a, b time.Duration) bool {
	d := b - a
	return d >= 0 && d <= agreement
}
