package gateway

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/admission"
	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
	"gatehouse/netfilter"
)

// lookEvery is how soon the door follows a change of state or links.
const lookEvery = 3 * time.Second

// door stands in for the packet filter where the program may not filter in the
// kernel: until the box has an owner, and while lists that should judge are not
// in force, only its own networks get in. Everything it turns away has cost a
// handshake already, which is why every face says "not in the kernel".
type door struct {
	ask   func(context.Context) (control.Status, error)
	lists *admission.Watch

	mu   sync.Mutex
	open bool // judged elsewhere, or open to all
	own  []netip.Prefix
}

func (d *door) look(ctx context.Context) error {
	s, err := d.ask(ctx)
	if err != nil {
		return err
	}
	var addresses []netip.Prefix
	for _, l := range s.Links {
		addresses = append(addresses, l.Addresses...)
	}
	own := netfilter.OnLink(addresses)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open, d.own = s.Firewall.InKernel || s.State == control.StateReady && !s.Firewall.Closed, own
	return nil
}

func (d *door) watch() task.Task {
	return task.Func("door", func(ctx context.Context) error {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				if err := d.look(ctx); err != nil {
					return err
				}
			}
		}
	})
}

func (d *door) admits(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if d.lists != nil && d.lists.Scopes(a) == 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open || a.IsLoopback() || slices.ContainsFunc(d.own, func(p netip.Prefix) bool { return p.Contains(a) })
}

// guarded is a listener behind the door: whom it does not admit is closed unread.
type guarded struct {
	net.Listener
	door *door
}

func (g guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || g.door.admits(address(c.RemoteAddr()).Addr()) {
			return c, err
		}
		c.Close()
	}
}
