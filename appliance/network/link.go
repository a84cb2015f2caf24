package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
)

// applier sets what was learnt; control.OpNetworkApply in the role.
type applier func(context.Context, control.NetworkApply) error

// worker does what one link with a carrier needs, until its context ends.
type worker struct {
	link  *net.Interface
	name  string // of the box
	apply applier
	told  func(string, learnt) // shares resolvers and time servers with the clock
	log   *slog.Logger

	mu      sync.Mutex
	known   learnt
	last    control.NetworkApply
	failing bool          // what is known could not be set
	failed  chan struct{} // gets one, at most, when that begins
}

func newWorker(link *net.Interface, name string, apply applier, told func(string, learnt), log *slog.Logger) *worker {
	return &worker{link: link, name: name, apply: apply, told: told, log: log, failed: make(chan struct{}, 1)}
}

// run works on IPv4 and IPv6 at the same time; a failure of one leaves the other.
func (w *worker) run(ctx context.Context) error {
	return task.Run(ctx,
		task.Func("dhcp4", w.run4),
		task.Func("dhcp6", w.run6),
		task.Func("again", w.again))
}

// What could not be set is tried again soon, and then less often: the next
// renewal may be half a day away, and until then the box has no address.
const (
	againAfter  = time.Second
	againAtMost = time.Minute
)

// again sets what is known once more, until it is set.
func (w *worker) again(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.failed:
		}
		for pause := againAfter; w.isFailing(); pause = min(2*pause, againAtMost) {
			if err := sleepUntil(ctx, time.Now().Add(pause)); err != nil {
				return err
			}
			w.learn(ctx, false, func(*learnt) {})
		}
	}
}

func (w *worker) isFailing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing
}

// learn changes what is known and has it set when that makes a difference.
// renewed says that the time is new and must be told even if nothing else is.
func (w *worker) learn(ctx context.Context, renewed bool, change func(*learnt)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.known)
	defer func() { w.told(w.link.Name, w.known) }() // servers are of use once the address is set
	r := w.known.request(w.link.Name, time.Now())
	if !renewed && sameRequest(r, w.last) {
		return
	}
	if err := w.apply(ctx, r); err != nil {
		if ctx.Err() == nil && !w.failing { // once: the tries that follow are no news
			w.log.Error("network settings were not applied; they are tried again in a moment, and then less often", "link", w.link.Name, "err", err)
		}
		w.last, w.failing = control.NetworkApply{}, true // so that the next time tells all again
		select {
		case w.failed <- struct{}{}:
		default:
		}
		return
	}
	if w.failing {
		w.log.Info("network settings were applied after all", "link", w.link.Name)
	}
	w.last, w.failing = r, false
}

// jitter is up to d, so that boxes that got power at the same moment do not ask
// at the same moments.
func jitter(d time.Duration) time.Duration {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return time.Duration(float64(d) * float64(binary.NativeEndian.Uint32(b[:])) / (1 << 32))
}

// run4 holds an IPv4 lease.
func (w *worker) run4(ctx context.Context) error {
	d := &dhcp4{link: w.link, name: w.name}
	m := &machine{jitter: jitter}
	alone := time.Now().Add(linkLocalAfter)
	for {
		todo, at := m.next(time.Now())
		if todo == discover && !w.hasLinkLocal() && !time.Now().Before(alone) {
			w.fallBack(ctx)
			alone = time.Now().Add(linkLocalAfter)
			continue
		}
		if err := sleepUntil(ctx, at); err != nil {
			return err
		}
		switch todo {
		case discover:
			l, err := d.discover(ctx)
			w.outcome4(ctx, m, l, err)
		case renew, rebind:
			l, err := d.extend(ctx, *m.held, todo == rebind)
			w.outcome4(ctx, m, l, err)
		case drop:
			w.log.Warn("the DHCP lease ended without renewal", "link", w.link.Name, "lease", m.held.String())
			m.ended(time.Now())
			alone = time.Now()
			w.learn(ctx, true, func(k *learnt) { k.v4 = nil })
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (w *worker) outcome4(ctx context.Context, m *machine, l lease, err error) {
	now := time.Now()
	switch {
	case err == nil:
		m.granted(l, now)
		w.log.Info("DHCP lease", "link", w.link.Name, "lease", l.String())
		w.learn(ctx, true, func(k *learnt) {
			k.v4, k.end4, k.linkLocal = &l, m.end(), netip.Prefix{}
		})
	case errors.Is(err, errRefused) && m.held != nil:
		w.log.Warn("the DHCP server took the address back", "link", w.link.Name, "lease", m.held.String())
		m.ended(now)
		w.learn(ctx, true, func(k *learnt) { k.v4 = nil })
	default:
		m.unanswered(now)
		if ctx.Err() == nil {
			w.log.Debug("no DHCP lease", "link", w.link.Name, "err", err)
		}
	}
}

func (w *worker) hasLinkLocal() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known.linkLocal.IsValid()
}

func (w *worker) fallBack(ctx context.Context) {
	p, err := claimLinkLocal(ctx, w.link)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Warn("no address by DHCP and none of its own", "link", w.link.Name, "err", err)
		}
		return
	}
	w.log.Info("no DHCP server answered; the link-local address is used", "link", w.link.Name, "address", p)
	w.learn(ctx, true, func(k *learnt) { k.linkLocal = p })
}

// routerPoll is how often the flags of router advertisements are looked at; the
// kernel keeps them, and a router that changes them is rare.
const routerPoll = 10 * time.Second

// run6 waits until a router asks for DHCPv6 and then holds what it gives.
func (w *worker) run6(ctx context.Context) error {
	d := &dhcp6{link: w.link, name: w.name}
	m := &machine{jitter: jitter}
	for asked, again := 0, time.Now(); ; {
		w.expire(ctx)
		if asked < mostSolicitations && !time.Now().Before(again) && !w.advised() && linkLocal6(w.link).IsValid() {
			// The kernel asked when the link came up, maybe before anybody
			// listened to what it does not keep.
			if err := solicit(w.link, linkLocal6(w.link)); err != nil {
				w.log.Debug("asking for routers", "link", w.link.Name, "err", err)
			}
			asked, again = asked+1, time.Now().Add(solicitEvery)
		}
		flags, err := routerFlags(w.link.Index)
		if err != nil {
			w.log.Debug("flags of router advertisements", "link", w.link.Name, "err", err)
		}
		if flags.managed && m.held != nil && !m.held.Address.IsValid() {
			m.held = nil // only options were asked for so far
		}
		now := time.Now()
		todo, at := rest, now.Add(routerPoll)
		if asked < mostSolicitations {
			at = now.Add(solicitEvery / 4)
		}
		if d.source = linkLocal6(w.link); (flags.managed || flags.other || m.held != nil) && d.source.IsValid() {
			if t, when := m.next(now); !when.After(at) {
				todo, at = t, when
			}
		}
		if err := sleepUntil(ctx, at); err != nil {
			return err
		}
		w.step6(ctx, d, m, todo, flags.managed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (w *worker) step6(ctx context.Context, d *dhcp6, m *machine, todo deed, address bool) {
	var l lease
	var err error
	switch {
	case todo == rest:
		return
	case todo == drop:
		m.ended(time.Now())
		w.learn(ctx, true, func(k *learnt) { k.v6 = nil })
		return
	case !address:
		l, err = d.inform(ctx)
	case todo == discover:
		l, err = d.discover(ctx)
	default:
		l, err = d.extend(ctx, todo == rebind)
	}
	switch now := time.Now(); {
	case err == nil:
		m.granted(l, now)
		w.log.Info("DHCPv6", "link", w.link.Name, "lease", l.String())
		w.learn(ctx, true, func(k *learnt) { k.v6, k.end6 = &l, m.end() })
	case errors.Is(err, errRefused) && m.held != nil:
		m.ended(now)
		w.learn(ctx, true, func(k *learnt) { k.v6 = nil })
	default:
		m.unanswered(now)
		if ctx.Err() == nil {
			w.log.Debug("no DHCPv6 answer", "link", w.link.Name, "err", err)
		}
	}
}

// sleepUntil waits; a time that has passed does not.
func sleepUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("waiting: %w", ctx.Err())
	case <-timer.C:
		return nil
	}
}
