package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/beevik/ntp"

	"gatehouse/appliance/control"
)

// pool are the names that are asked when resolvers are known: run by different
// people, so that a majority means something.
var pool = []string{"0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org", "3.pool.ntp.org", "time.cloudflare.com"}

// Bounds of asking: an answer within queryTime; at most mostSources servers;
// after agreement each hour at the latest, without it ever more seldom.
const (
	queryTime    = 3 * time.Second
	mostSources  = 12
	perName      = 2
	firstAgain   = time.Minute
	lastAgain    = time.Hour
	firstFailed  = 4 * time.Second
	lastFailed   = 15 * time.Minute
	worthSetting = 20 * time.Millisecond
)

// setter asks for a time on which so many servers agree; control.OpClockSet in the role.
type setter func(ctx context.Context, t time.Time, servers int) error

// clock finds the time by majority and has it set. It never sets it itself and
// knows no floor: the privileged process refuses what is before its own.
type clock struct {
	sources *sources
	set     setter
	query   func(ctx context.Context, server netip.Addr) (time.Duration, error)
	log     *slog.Logger
	told    time.Time // when it was last set
}

// run asks until the context ends. No answer is never an error: set-up and
// sign-in do not wait for the clock.
func (c *clock) run(ctx context.Context) error {
	again, failed, first := firstAgain, firstFailed, true
	for {
		if err := c.sources.wait(ctx); err != nil {
			return err
		}
		wait := failed
		err := c.once(ctx, first)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.log.Info("the time could not be had from the network", "err", err, "again", wait)
			failed = min(failed*2, lastFailed)
		default:
			wait, failed, first = again, firstFailed, false
			again = min(again*2, lastAgain)
		}
		changed := c.sources.changed()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed: // a new lease: its servers may do better
			if first {
				failed = firstFailed
			}
			if err := sleepUntil(ctx, time.Now().Add(time.Second)); err != nil {
				return err
			}
		case <-time.After(wait):
		}
	}
}

// once asks all servers at the same time and has the majority's time set.
func (c *clock) once(ctx context.Context, first bool) error {
	servers, least := c.sources.servers(ctx)
	if len(servers) < least {
		return fmt.Errorf("only %d time servers are known, want %d or more: a DHCP server can name them, or resolvers that know %s", len(servers), least, pool[0])
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime+time.Second)
	defer cancel()
	var mu sync.Mutex
	var samples []sample
	var errs []error
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			offset, err := c.query(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("%v: %w", s, err))
				return
			}
			samples = append(samples, sample{Server: s.String(), Offset: offset})
		})
	}
	wg.Wait()
	offset, n, err := majority(samples, least)
	if err != nil {
		return errors.Join(append([]error{err}, errs...)...)
	}
	// A clock that is right is told of all the same, once an hour: the owner may
	// have reset the floor meanwhile, and the privileged process waits to be told.
	if !first && offset.Abs() < worthSetting && time.Since(c.told) < lastAgain {
		return nil
	}
	now := time.Now().Add(offset)
	if err := c.set(ctx, now, n); err != nil {
		return fmt.Errorf("having the clock set to %s: %w", now.UTC().Format(time.RFC3339), err)
	}
	c.told = time.Now()
	c.log.Info("clock set", "servers", n, "offset", offset)
	return nil
}

// ask asks one server by SNTP (RFC 4330) and returns how far we are behind.
func ask(_ context.Context, server netip.Addr) (time.Duration, error) {
	r, err := ntp.QueryWithOptions(netip.AddrPortFrom(server, 123).String(), ntp.QueryOptions{Timeout: queryTime})
	if err != nil {
		return 0, err
	}
	if err := r.Validate(); err != nil {
		return 0, err
	}
	return r.ClockOffset, nil
}

// sources is what the links taught of resolvers and time servers.
type sources struct {
	lookup func(ctx context.Context, resolvers []netip.Addr, name string) ([]netip.Addr, error)

	mu    sync.Mutex
	links map[string]learnt
	wish  control.NetworkSettings // what a person decided
	news  chan struct{}           // closed at the next change
}

func newSources() *sources {
	return &sources{lookup: lookup, links: make(map[string]learnt), news: make(chan struct{})}
}

// told takes what is known of a link.
func (s *sources) told(link string, k learnt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, was := s.links[link]
	if k.empty() {
		delete(s.links, link)
	} else {
		s.links[link] = k
	}
	if was == k.empty() || !sameServers(old, k) {
		close(s.news)
		s.news = make(chan struct{})
	}
}

// wished takes what a person decided.
func (s *sources) wished(w control.NetworkSettings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := slices.Equal(s.wish.Resolvers, w.Resolvers) && slices.Equal(s.wish.Time, w.Time)
	s.wish = w
	if !same {
		close(s.news)
		s.news = make(chan struct{})
	}
}

func sameServers(a, b learnt) bool {
	ra, ta := a.servers()
	rb, tb := b.servers()
	return slices.Equal(ra, rb) && slices.Equal(ta, tb)
}

func (k learnt) servers() (resolvers, times []netip.Addr) {
	for _, l := range []*lease{k.v4, k.v6} {
		if l != nil {
			resolvers, times = append(resolvers, l.Resolvers...), append(times, l.Times...)
		}
	}
	return append(resolvers, values(k.ra.resolvers)...), times
}

func (s *sources) changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

// wait waits until some link has taught something, or a person named servers:
// a box with addresses set by hand learns nothing.
func (s *sources) wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		n, news := len(s.links)+len(s.wish.Resolvers)+len(s.wish.Time), s.news
		s.mu.Unlock()
		if n > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
	}
}

// servers lists time servers, and how many of them must agree: those that a
// person named and no others; else those that DHCP named, then those of the
// pool. A name gives few addresses, so that no one operator outvotes the others.
func (s *sources) servers(ctx context.Context) (servers []netip.Addr, least int) {
	s.mu.Lock()
	links := make([]learnt, 0, len(s.links))
	for _, k := range s.links {
		links = append(links, k)
	}
	wish, names, least := s.wish, pool, fewest
	s.mu.Unlock()
	var out []netip.Addr
	resolvers := slices.Clone(wish.Resolvers)
	add := func(addrs []netip.Addr) {
		for _, a := range addrs {
			if !slices.Contains(out, a) && len(out) < mostSources {
				out = append(out, a)
			}
		}
	}
	for _, k := range links {
		r, t := k.servers()
		resolvers = append(resolvers, r...)
		if len(wish.Time) == 0 {
			add(t)
		}
	}
	if len(wish.Time) > 0 {
		least, names = min(fewest, len(wish.Time)), nil
		for _, t := range wish.Time {
			if a, err := netip.ParseAddr(t); err == nil {
				add([]netip.Addr{a})
			} else {
				names = append(names, t)
			}
		}
	}
	if len(resolvers) == 0 {
		return out, least
	}
	ctx, cancel := context.WithTimeout(ctx, 2*queryTime)
	defer cancel()
	found := make([][]netip.Addr, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			if addrs, err := s.lookup(ctx, resolvers, name); err == nil {
				found[i] = addrs[:min(len(addrs), perName)]
			}
		})
	}
	wg.Wait()
	for _, addrs := range found {
		add(addrs)
	}
	return out, least
}

// lookup asks the leased resolvers in turn. It does not read resolv.conf: the
// role may not see the file, and it may be of an older lease.
func lookup(ctx context.Context, resolvers []netip.Addr, name string) ([]netip.Addr, error) {
	var errs []error
	for _, server := range resolvers {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, netip.AddrPortFrom(server, 53).String())
		}}
		addrs, err := r.LookupNetIP(ctx, "ip", name+".")
		if err == nil {
			for i := range addrs {
				addrs[i] = addrs[i].Unmap()
			}
			return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Is4() && !unicast4(a) || a.Is6() && !a.IsGlobalUnicast() }), nil
		}
		errs = append(errs, fmt.Errorf("resolver %v: %w", server, err))
	}
	return nil, errors.Join(errs...)
}
