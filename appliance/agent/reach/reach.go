// Package reach is the way from a site to the target of a session: its name and addresses judged, connections to it, and SSH with pinned keys and a credential that is kept or typed.
package reach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

const (
	dialTime     = 10 * time.Second // for each address
	resolveTime  = 10 * time.Second
	maxAddresses = 8
)

// Config is a target, and what is needed of the world to reach it.
type Config struct {
	Target   session.Target
	Material attend.Material
	// Dial connects; an address that may not be reached it is never given.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolve asks the site's resolvers; nil: those of the system.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Own is this machine's addresses, which are no target; nil: not judged.
	Own func() []netip.Addr
	// Accepted writes down that the person has taken a key for the target's,
	// before it counts; on an error it does not.
	Accepted func(context.Context, ssh.PublicKey) error
	// Failed is told of a sign-in at the target that failed.
	Failed func(user string, err error)
	Times  Times
}

// Times are how long is waited for what.
type Times struct {
	Handshake time.Duration // each part of SSH's in which no person is waited for
	Answer    time.Duration // the target's, to a request on a connection that is up
	Alive     time.Duration // between two looks whether it is
	Confirm   time.Duration // a person's answer to the question for a key
}

// Usual is what people and networks need.
func Usual() Times {
	return Times{Handshake: 20 * time.Second, Answer: 20 * time.Second, Alive: 30 * time.Second, Confirm: 2 * time.Minute}
}

// Describe names a target for people and logs.
func Describe(t session.Target) string {
	if t.Kind == session.Box {
		return "the box itself"
	}
	return fmt.Sprintf("%s %s", t.Kind, net.JoinHostPort(t.Host, fmt.Sprint(t.Port)))
}

// Dial connects to the target, one address after the other.
func (l *Link) Dial(ctx context.Context) (net.Conn, error) {
	t := l.cfg.Target
	addresses, err := l.addresses(ctx, t)
	if err != nil {
		return nil, err
	}
	var why []string
	for _, a := range addresses {
		conn, err := l.dialOne(ctx, netip.AddrPortFrom(a, t.Port).String())
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		why = append(why, err.Error())
	}
	return nil, wire.Refuse(wire.Unreachable, "%s does not answer: %s", Describe(t), strings.Join(why, "; "))
}

func (l *Link) dialOne(ctx context.Context, address string) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := l.cfg.Dial(dctx, "tcp", address)
	if err != nil && dctx.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: no answer within %s", address, dialTime)
	}
	return conn, err
}

// addresses is what the target's name means here and now. A name that leads to
// the box itself, by error or on purpose, leads nowhere.
func (l *Link) addresses(ctx context.Context, t session.Target) ([]netip.Addr, error) {
	if t.Kind == session.Box || t.Port == 0 {
		return nil, wire.Refuse(wire.Invalid, "%s is not reached over the network", Describe(t))
	}
	found := []netip.Addr{}
	if a, err := netip.ParseAddr(t.Host); err == nil {
		found = append(found, a)
	} else {
		rctx, cancel := context.WithTimeout(ctx, resolveTime)
		defer cancel()
		all, err := l.cfg.Resolve(rctx, t.Host)
		if err != nil {
			return nil, wire.Refuse(wire.Unreachable, "the site does not know the name %s: %v", t.Host, err)
		}
		for _, a := range all {
			found = append(found, a.Unmap())
		}
	}
	var own []netip.Addr
	if l.cfg.Own != nil {
		own = l.cfg.Own()
	}
	good := slices.DeleteFunc(slices.Clone(found), func(a netip.Addr) bool {
		return !session.Reachable(a) || slices.Contains(own, a)
	})
	if len(good) == 0 {
		return nil, wire.Refuse(wire.Unreachable, "%s leads to no host in the site's network, but to %s",
			t.Host, strconv.Quote(fmt.Sprint(found[:min(len(found), maxAddresses)])))
	}
	return good[:min(len(good), maxAddresses)], nil
}
