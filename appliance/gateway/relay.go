package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/admission"
	"gatehouse/appliance/cert"
	"gatehouse/appliance/control"
	"gatehouse/appliance/relay"
	"gatehouse/netfilter/allowlist"
)

// Limits of what the gateway joins. A joined session costs two descriptors and
// a few KiB here; its bytes stay in the kernel.
const (
	maxEnds     = 2048 // that wait for their other end
	maxSessions = 2048
	maxQuiet    = 15 * time.Minute // carriers say something each few seconds: this is for what is forgotten
)

// meetingScopes are those that an end of a session needs one of: technicians
// come as they come to the console, agents as sites.
const meetingScopes = allowlist.Console | allowlist.Sites

// guests judges by the lists of now. The box itself needs none: nobody else can
// open a connection from its addresses.
func guests(lists *admission.Watch) func(netip.Addr) bool {
	own := sync.OnceValue(ownAddresses) // asked for whom no list admits alone
	return func(a netip.Addr) bool {
		return lists.Scopes(a)&meetingScopes != 0 || slices.Contains(own(), a.Unmap().WithZone(""))
	}
}

func ownAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then the box's agent is judged as others are
	}
	var own []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own
}

// openRelay makes the part that joins sessions, with the key by which ends pin
// this gateway, and says that key to the others.
func openRelay(ctx context.Context, env control.Environment, c *control.Client, web net.Addr, lists *admission.Watch, log *slog.Logger) (*relay.Relay, error) {
	sub, err := control.OpKey.Call(ctx, c, control.KeyRequest{Purpose: control.PurposeGatewayKey})
	if err != nil {
		return nil, err
	}
	own, err := cert.LoadOrCreate(env.State, sub.Key, "gateway")
	if err != nil {
		return nil, fmt.Errorf("opening the gateway's own key: %w", err)
	}
	who := &organisation{ask: func() (control.Meeting, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return control.OpMeeting.Call(ctx, c, control.None{})
	}, now: time.Now, log: log}
	r, err := relay.New(relay.Config{
		Certificate: own, Organisation: who.key, Log: log,
		Admitted:   func(a netip.Addr) bool { return guests(lists)(a) },
		Now:        time.Now, // as the console that makes the tickets: both follow when the clock is set
		MaxWaiting: maxEnds, MaxJoined: maxSessions, Idle: maxQuiet,
	})
	if err != nil {
		return nil, err
	}
	key := r.Key()
	_, err = control.OpMeetingSet.Call(ctx, c, control.Meeting{Gateway: key[:], Listens: web.String()})
	return r, err
}

// organisation remembers whose tickets count. The console makes the key before
// anybody can be granted anything, and never another one, so it is asked for
// until it is known.
type organisation struct {
	ask func() (control.Meeting, error)
	now func() time.Time
	log *slog.Logger

	mu     sync.Mutex
	known  ed25519.PublicKey
	looked time.Time
}

func (o *organisation) key() ed25519.PublicKey {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := o.now(); o.known == nil && (o.looked.IsZero() || now.Sub(o.looked) >= lookApart) {
		o.looked = now
		m, err := o.ask()
		if err != nil {
			o.log.Warn("who grants sessions cannot be asked", "err", err)
			return nil
		}
		if len(m.Organisation) == ed25519.PublicKeySize {
			o.known = m.Organisation
		}
	}
	return o.known
}

// meet serves one end of a session until it ends.
func (g *gateway) meet(ctx context.Context, c net.Conn, peeked []byte, known func()) error {
	t, ok := c.(*net.TCPConn)
	if !ok || g.relay == nil {
		return errors.New("there are no sessions here")
	}
	if !guests(g.lists)(address(c.RemoteAddr()).Addr()) {
		return errors.New("no list admits the source for sessions")
	}
	return g.relay.Handle(ctx, t, peeked, known)
}

// lastWords is what the ends of a session have to say to each other why it
// ends: the hub tells the agent the moment that it hears of new lists. The
// kernel drops what a source sends from that moment on.
const lastWords = 500 * time.Millisecond

// cut ends what sources hold that no list admits any more.
func (g *gateway) cut() {
	g.waiting.cut(func(a netip.Addr) bool { return g.lists.Scopes(a) != 0 })
	if g.relay == nil {
		return
	}
	time.AfterFunc(lastWords, func() {
		if n := g.relay.Cut(guests(g.lists)); n > 0 {
			g.log.Info("sessions of sources that no list admits any more were cut", "connections", n)
		}
	})
}
