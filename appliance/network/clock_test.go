package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// servers are time servers that answer with their offsets; one that is not
// named does not answer.
type servers map[string]time.Duration

func (s servers) query(_ context.Context, a netip.Addr) (time.Duration, error) {
	off, ok := s[a.String()]
	if !ok {
		return 0, errors.New("silence")
	}
	return off, nil
}

func nothingFound(context.Context, []netip.Addr, string) ([]netip.Addr, error) {
	return nil, errors.New("no such name")
}

func newClock(s servers, set setter) *clock {
	src := newSources()
	src.lookup = nothingFound
	return &clock{sources: src, query: s.query, set: set, log: slog.New(slog.DiscardHandler)}
}

func leased(resolvers, times []netip.Addr) learnt {
	return learnt{v4: &lease{Resolvers: resolvers, Times: times}}
}

func TestClockIsNotSetWithoutAMajority(t *testing.T) {
	never := func(_ context.Context, at time.Time, n int) error {
		t.Errorf("set to %v by %d servers", at, n)
		return nil
	}
	for name, s := range map[string]servers{
		"silence":           {},
		"two":               {"192.0.2.1": 0, "192.0.2.2": 0},
		"two and two":       {"192.0.2.1": 0, "192.0.2.2": 0, "192.0.2.3": decade, "192.0.2.4": decade},
		"all by themselves": {"192.0.2.1": 0, "192.0.2.2": decade, "192.0.2.3": -decade, "192.0.2.4": time.Hour},
	} {
		c := newClock(s, never)
		c.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")))
		if err := c.once(t.Context(), true); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := newClock(nil, never)
	c.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2")))
	if err := c.once(t.Context(), true); err == nil || !strings.Contains(err.Error(), "only 2 time servers") {
		t.Errorf("two servers known: %v", err)
	}
}

func TestClockAsksThePrivilegedProcess(t *testing.T) {
	var got time.Time
	refuse := error(nil)
	c := newClock(servers{"192.0.2.1": time.Hour, "192.0.2.2": time.Hour, "192.0.2.3": time.Hour, "192.0.2.4": decade}, func(_ context.Context, at time.Time, n int) error {
		if n != 3 {
			t.Errorf("%d servers, want 3", n)
		}
		got = at
		return refuse
	})
	c.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")))
	if err := c.once(t.Context(), true); err != nil || time.Until(got.Add(-time.Hour)).Abs() > time.Minute {
		t.Errorf("set to %v, %v", got, err)
	}
	refuse = errors.New("before the floor")
	if err := c.once(t.Context(), true); !errors.Is(err, refuse) {
		t.Errorf("a refusal came back as %v", err)
	}
}

func TestASmallDifferenceSetsNothing(t *testing.T) {
	n := 0
	c := newClock(servers{"192.0.2.1": ms, "192.0.2.2": ms, "192.0.2.3": ms}, func(context.Context, time.Time, int) error { n++; return nil })
	c.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")))
	for _, first := range []bool{true, false, false} { // the first says that the clock can be trusted
		if err := c.once(t.Context(), first); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("set %d times, want once", n)
	}
}

// TestClockBacksOff counts the questions of a day, in a bubble of time.
func TestClockBacksOff(t *testing.T) {
	for name, c := range map[string]struct {
		servers     servers
		least, most int
	}{
		"no answers": {servers{}, 60, 120},
		"agreement":  {servers{"192.0.2.1": 0, "192.0.2.2": 0, "192.0.2.3": 0}, 24, 40},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rounds := 0
				k := newClock(c.servers, func(context.Context, time.Time, int) error { return nil })
				k.query = func(ctx context.Context, a netip.Addr) (time.Duration, error) {
					if a.String() == "192.0.2.1" {
						rounds++
					}
					return c.servers.query(ctx, a)
				}
				k.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")))
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancel()
				if err := k.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("run: %v", err)
				}
				if rounds < c.least || rounds > c.most {
					t.Errorf("asked %d times in a day, want %d to %d", rounds, c.least, c.most)
				}
			})
		})
	}
}

func TestClockWaitsForALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := time.Time{}
		k := newClock(nil, func(context.Context, time.Time, int) error { return nil })
		k.query = func(context.Context, netip.Addr) (time.Duration, error) {
			mu.Lock()
			defer mu.Unlock()
			if asked.IsZero() {
				asked = time.Now()
			}
			return 0, nil
		}
		start := time.Now()
		time.AfterFunc(time.Hour, func() { k.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3"))) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		if err := k.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
		if asked.Sub(start) != time.Hour {
			t.Errorf("asked after %v, want when the link came", asked.Sub(start))
		}
	})
}

func TestSourcesAreBounded(t *testing.T) {
	s := newSources()
	s.lookup = func(_ context.Context, resolvers []netip.Addr, name string) ([]netip.Addr, error) {
		if !slices.Equal(resolvers, addrs("192.0.2.53")) {
			t.Errorf("asked %v", resolvers)
		}
		if name == pool[1] {
			return nil, errors.New("no such name")
		}
		var many []netip.Addr // an operator with a thousand addresses
		for i := range 250 {
			many = append(many, netip.AddrFrom4([4]byte{203, 0, byte(slices.Index(pool, name)), byte(i + 1)}))
		}
		return many, nil
	}
	s.told("eth0", leased(addrs("192.0.2.53"), addrs("192.0.2.1", "192.0.2.2")))
	got, _ := s.servers(t.Context())
	want := addrs("192.0.2.1", "192.0.2.2", "203.0.0.1", "203.0.0.2", "203.0.2.1", "203.0.2.2", "203.0.3.1", "203.0.3.2", "203.0.4.1", "203.0.4.2")
	if !slices.Equal(got, want) {
		t.Errorf("servers %v\nwant %v", got, want)
	}
	s.told("eth0", learnt{})
	if got, _ := s.servers(t.Context()); len(got) != 0 {
		t.Errorf("servers of a link that is gone: %v", got)
	}
}

// A clock that is right is told of each hour: after the owner reset the floor
// the box trusts its clock again without a start.
func TestBOX8_ARightClockIsToldOfEachHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		k := newClock(servers{"192.0.2.1": 0, "192.0.2.2": 0, "192.0.2.3": 0}, func(context.Context, time.Time, int) error { told++; return nil })
		k.sources.told("eth0", leased(nil, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")))
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		if err := k.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
		if told < 12 || told > 25 {
			t.Errorf("told %d times in a day, want about each hour", told)
		}
	})
}
