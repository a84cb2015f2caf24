// Package network is the role that learns addresses, resolvers and the time from the network, asks the privileged process to set them, and has the box found.
//
// It runs as a user of its own with CAP_NET_RAW alone, needs no inherited file
// and listens on no port of an address: DHCP and DHCPv6 go through packet
// sockets, which see frames before the packet filter does; sockets of mDNS are
// bound to its groups, and the filter says when they hear anything. Addresses by
// router advertisement are the kernel's work.
package network

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
)

// Run is the body of the process. It waits for links, works on every one that
// has a carrier, and takes back what it set when the carrier goes. On a hosted
// system addresses and clock are the host's, and it only stays alive.
func Run(ctx context.Context, env control.Environment, c *control.Client, log *slog.Logger) error {
	if env.Hosted {
		return task.Run(ctx, c.Heartbeat())
	}
	status, err := control.OpStatus.Call(ctx, c, control.None{})
	if err != nil {
		return fmt.Errorf("learning the name of the box: %w", err)
	}
	s := newSources()
	wishes := newWishes(s.wished, func(ctx context.Context) (control.NetworkState, error) {
		return control.OpNetwork.Call(ctx, c, control.None{})
	})
	if err := wishes.look(ctx); err != nil {
		return fmt.Errorf("learning what is set by hand: %w", err)
	}
	m := &manager{
		name:   status.Name,
		log:    log,
		told:   s.told,
		wishes: wishes,
		apply: func(ctx context.Context, r control.NetworkApply) error {
			_, err := control.OpNetworkApply.Call(ctx, c, r)
			return err
		},
		running: make(map[string]port),
		stop:    make(map[string]func()),
		workers: make(map[int]*worker),
	}
	k := &clock{sources: s, query: ask, log: log, set: func(ctx context.Context, t time.Time, servers int) error {
		_, err := control.OpClockSet.Call(ctx, c, control.ClockSet{Time: t, Source: "ntp", Servers: servers, Actor: "system"})
		return err
	}}
	b := &beacon{log: log, ask: func(ctx context.Context, q control.Discovery) (control.DiscoveryState, error) {
		return control.OpDiscovery.Call(ctx, c, q)
	}}
	return task.Run(ctx, c.Heartbeat(), task.Func("links", m.run), task.Func("clock", k.run), task.Func("discovery", b.run),
		task.Func("settings", func(ctx context.Context) error { return wishes.follow(ctx, log) }),
		task.Func("advertisements", func(ctx context.Context) error { return listenAdvertised(ctx, m.advertised) }))
}

// manager has one worker for each link with a carrier.
type manager struct {
	name   string
	log    *slog.Logger
	told   func(string, learnt)
	apply  applier
	wishes *wishes

	mu      sync.Mutex
	workers map[int]*worker // by the number of the link

	running map[string]port
	stop    map[string]func() // ends the worker and waits for it
}

func (m *manager) run(ctx context.Context) error {
	defer func() {
		for _, stop := range m.stop {
			stop()
		}
	}()
	return watchLinks(ctx, m.wishes.changed, func(seen map[string]port) {
		for _, c := range plan(m.running, automatic(m.wishes.get(), m.wishes.marked(seen))) {
			if c.Start {
				m.start(ctx, c.Port)
				continue
			}
			m.end(ctx, c.Port)
		}
	})
}

func (m *manager) start(ctx context.Context, p port) {
	m.log.Info("working on a link", "link", p.Name)
	ctx, cancel := context.WithCancel(ctx)
	link := &net.Interface{Index: p.Index, Name: p.Name, HardwareAddr: net.HardwareAddr(p.MAC), MTU: 1500}
	w := newWorker(link, m.name, m.apply, m.told, m.log)
	var done sync.WaitGroup
	m.running[p.Name] = p
	m.mu.Lock()
	m.workers[p.Index] = w
	m.mu.Unlock()
	m.stop[p.Name] = func() { cancel(); done.Wait() }
	done.Go(func() {
		if err := w.run(ctx); err != nil {
			m.log.Error("working on a link", "link", p.Name, "err", err)
		}
	})
}

// end stops the worker and takes back what it had set: an address of a network
// that the box has left must not stay, or the next network's on-link rule would
// hold both.
func (m *manager) end(ctx context.Context, p port) {
	m.log.Info("leaving a link: its carrier is gone, or it is not automatic any more", "link", p.Name)
	m.mu.Lock()
	delete(m.workers, p.Index)
	m.mu.Unlock()
	m.stop[p.Name]()
	delete(m.stop, p.Name)
	delete(m.running, p.Name)
	m.told(p.Name, learnt{})
	if err := m.apply(ctx, learnt{}.request(p.Name, time.Now())); err != nil && ctx.Err() == nil {
		m.log.Error("taking back the settings of a link", "link", p.Name, "err", err)
	}
}
