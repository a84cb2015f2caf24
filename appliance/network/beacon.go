package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/network/mdns"
)

const (
	beaconPoll = 2 * time.Second // of what PID 1 wants, and of links and addresses

	// Fifteen conflicts in ten seconds are no accident: then each further try
	// waits (RFC 6762 section 8.1).
	mostConflicts  = 15
	conflictWithin = 10 * time.Second
	conflictPause  = 5 * time.Second
	mostNumber     = 999 // behind a name; whoever takes them all gets silence
)

// beacon has the box found on its links while PID 1 wants it. One name holds
// on all of them: where one is taken, all go on to the next.
type beacon struct {
	ask func(context.Context, control.Discovery) (control.DiscoveryState, error)
	log *slog.Logger

	number    int // behind the name; 0: none
	conflicts []time.Time
	voices    map[string]*speaking // by link and group
	wake      chan struct{}
}

// speaking is a voice at work, and how to end it.
type speaking struct {
	*voice
	end func()
}

func (b *beacon) run(ctx context.Context) error {
	b.voices, b.wake = make(map[string]*speaking), make(chan struct{}, 1)
	defer b.silence()
	tick := time.NewTicker(beaconPoll)
	defer tick.Stop()
	for {
		b.look(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-b.wake:
		}
	}
}

// silence takes everything back.
func (b *beacon) silence() {
	for key := range b.voices {
		b.end(key)
	}
}

func (b *beacon) end(key string) {
	b.voices[key].end()
	delete(b.voices, key)
}

// look does what became needed since the last time.
func (b *beacon) look(ctx context.Context) {
	b.contested(time.Now())
	want, err := b.ask(ctx, control.Discovery{Name: b.inUse()})
	if err != nil && ctx.Err() == nil {
		b.log.Warn("asking whether to answer mDNS; until there is an answer it is not", "err", err)
	}
	if err != nil || !want.On {
		b.silence()
		b.number, b.conflicts = 0, nil
		return
	}
	if b.resting(time.Now()) {
		return
	}
	seen, err := segments()
	if err != nil {
		b.log.Warn("looking for links to be found on; trying again", "err", err)
		return
	}
	b.reconcile(ctx, want, seen)
}

// contested goes on to the next name if somebody else has the present one.
func (b *beacon) contested(now time.Time) {
	taken := ""
	for _, v := range b.voices {
		if name, _, lost := v.state(); lost {
			taken = name
		}
	}
	if taken == "" {
		return
	}
	b.silence()
	b.next(now)
	b.log.Warn("another host on the network has the name of this box; going on to the next", "name", taken+".local")
}

// next chooses the next name, and counts.
func (b *beacon) next(now time.Time) {
	b.number = max(2, b.number+1)
	if b.number > mostNumber {
		b.number = 0
	}
	b.conflicts = append(b.conflicts, now)
	b.conflicts = b.conflicts[max(0, len(b.conflicts)-mostConflicts):]
}

// resting says whether the next try has to wait.
func (b *beacon) resting(now time.Time) bool {
	n := len(b.conflicts)
	return n == mostConflicts && b.conflicts[n-1].Sub(b.conflicts[0]) < conflictWithin+mostConflicts*conflictPause &&
		now.Sub(b.conflicts[n-1]) < conflictPause
}

// inUse is the name once all have it.
func (b *beacon) inUse() (name string) {
	for _, v := range b.voices {
		n, settled, _ := v.state()
		if !settled {
			return ""
		}
		name = n
	}
	return name
}

// reconcile begins, changes and ends voices until they fit the links.
func (b *beacon) reconcile(ctx context.Context, want control.DiscoveryState, seen []segment) {
	needed := make(map[string]bool)
	for _, s := range seen {
		service := b.service(want, s, seen)
		for _, group := range s.groups() {
			key := fmt.Sprintf("%s %d %v", s.name, s.index, group.Addr())
			needed[key] = true
			if err := b.have(ctx, key, s, group, service); err != nil {
				b.log.Warn("the box cannot be found by mDNS", "link", s.name, "err", err)
			}
		}
	}
	for _, key := range sortedNames(b.voices) {
		if !needed[key] {
			b.end(key)
		}
	}
}

// have makes sure that one voice tells the service.
func (b *beacon) have(ctx context.Context, key string, s segment, group netip.AddrPort, service mdns.Service) error {
	if v := b.voices[key]; v != nil {
		if name, _, _ := v.state(); name == service.Name {
			return v.tell(s, service)
		}
		b.end(key) // the box got another name
	}
	v, err := newVoice(s, group, service, b.call, b.log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { v.run(ctx) })
	b.voices[key] = &speaking{v, func() { cancel(); done.Wait() }}
	return nil
}

// call has look run soon.
func (b *beacon) call() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// service is what is told on one link of several.
func (b *beacon) service(want control.DiscoveryState, on segment, all []segment) mdns.Service {
	name := want.Name
	if b.number > 0 {
		name = fmt.Sprintf("%s-%d", want.Name, b.number)
	}
	s := mdns.Service{Name: name, Addresses: on.addresses(), Port: want.Port,
		Text: []string{"txtvers=1", "name=" + want.Name, "state=" + string(want.State), "version=" + want.Version}}
	for _, o := range all {
		if o.index != on.index {
			s.Elsewhere = append(s.Elsewhere, o.addresses()...)
		}
	}
	return s
}
