package network

import (
	"math"
	"math/rand"
	"testing"
	"time"
)

func samples(offsets ...time.Duration) []sample {
	var s []sample
	for _, o := range offsets {
		s = append(s, sample{Offset: o})
	}
	return s
}

const (
	decade = 10 * 365 * 24 * time.Hour
	ms     = time.Millisecond
)

func TestNoMajorityNoTime(t *testing.T) {
	for name, s := range map[string][]sample{
		"none":                 nil,
		"one":                  samples(0),
		"two that agree":       samples(0, ms),
		"three that disagree":  samples(0, time.Second, 2*time.Second),
		"two of three":         samples(0, ms, decade),
		"three of six":         samples(0, ms, 2*ms, decade, decade+ms, decade+2*ms),
		"three of seven":       samples(0, ms, 2*ms, decade, -decade, 2*decade, -2*decade),
		"a slope":              samples(0, 400*ms, 800*ms, 1200*ms, 1600*ms, 2000*ms),
		"ends of the range":    samples(math.MinInt64, math.MaxInt64, math.MaxInt64),
		"ends, two and two":    samples(math.MinInt64, math.MinInt64, math.MaxInt64, math.MaxInt64),
		"just not near enough": samples(0, 501*ms, 1002*ms),
	} {
		if o, n, err := majority(s, fewest); err == nil {
			t.Errorf("%s: %v by %d", name, o, n)
		}
	}
}

func TestLiarsAreOutvoted(t *testing.T) {
	for _, honest := range []time.Duration{0, 3 * time.Hour, -decade / 2, 3 * decade} {
		for _, lie := range []time.Duration{decade, -decade, math.MaxInt64, math.MinInt64, time.Second} {
			s := samples(honest+lie, honest-20*ms, honest+lie, honest, honest+20*ms)
			if lie > decade || lie < -decade { // do not overflow while lying
				s[0].Offset, s[2].Offset = lie, lie
			}
			rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
			got, n, err := majority(s, fewest)
			if err != nil || n != 3 || (got-honest).Abs() > 20*ms {
				t.Errorf("honest %v, two lie by %v: %v by %d, %v", honest, lie, got, n, err)
			}
		}
	}
}

func TestMajorityTakesTheMiddle(t *testing.T) {
	got, n, err := majority(samples(100*ms, 90*ms, 110*ms, 105*ms, 400*ms), fewest)
	if err != nil || n != 5 || got != 105*ms {
		t.Errorf("%v by %d, %v", got, n, err)
	}
}
