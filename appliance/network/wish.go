package network

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// askEvery is how often the privileged process is asked what a person set. A
// question costs it some microseconds; an answer that waits would hold one of
// the role's few places.
const askEvery = 2 * time.Second

// wishes are what a person decided about the network.
type wishes struct {
	ask  func(context.Context) (control.NetworkState, error)
	tell func(control.NetworkSettings) // at each change

	mu    sync.Mutex
	have  control.NetworkSettings
	taken map[string]int
	news  chan struct{} // closed at the next change
}

func newWishes(tell func(control.NetworkSettings), ask func(context.Context) (control.NetworkState, error)) *wishes {
	return &wishes{ask: ask, tell: tell, news: make(chan struct{})}
}

func (w *wishes) get() control.NetworkSettings {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.have
}

func (w *wishes) changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.news
}

// look asks once.
func (w *wishes) look(ctx context.Context) error {
	n, err := w.ask(ctx)
	if err != nil {
		return err
	}
	s := n.Settings
	w.mu.Lock()
	same := netconf.Equal(w.have, s)
	if !same || !maps.Equal(w.taken, n.Taken) {
		w.have, w.taken = s, n.Taken
		close(w.news)
		w.news = make(chan struct{})
	}
	w.mu.Unlock()
	if !same {
		w.tell(s)
	}
	return nil
}

// follow asks until the context ends.
func (w *wishes) follow(ctx context.Context, log *slog.Logger) error {
	for {
		if err := sleepUntil(ctx, time.Now().Add(askEvery)); err != nil {
			return err
		}
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			log.Warn("asking what is set by hand; the answer of before counts", "err", err)
		}
	}
}

// marked says with each link how often what was set there was taken away: one
// that counted on is worked on anew.
func (w *wishes) marked(seen map[string]port) map[string]port {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := maps.Clone(seen)
	for name, p := range out {
		p.Taken = w.taken[name]
		out[name] = p
	}
	return out
}

// automatic are those of the links that something is to be learnt for.
func automatic(s control.NetworkSettings, seen map[string]port) map[string]port {
	var own []control.Link
	for _, name := range sortedNames(seen) {
		if p := seen[name]; p.Card != "" {
			own = append(own, control.Link{Name: p.Name, MAC: p.Card})
		}
	}
	s = netconf.Named(s, own)
	out := maps.Clone(seen)
	maps.DeleteFunc(out, func(name string, _ port) bool { return netconf.Mode(s, name) != netconf.Automatic })
	return out
}
