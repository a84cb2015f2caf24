package work

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

const (
	dialTime     = 10 * time.Second // for each address
	resolveTime  = 10 * time.Second
	maxAddresses = 8
)

// dial connects to the target, one address after the other.
func (s *Session) dial(ctx context.Context) (net.Conn, error) {
	t := s.cfg.Grant.Target
	addresses, err := s.addresses(ctx, t)
	if err != nil {
		return nil, err
	}
	var why []string
	for _, a := range addresses {
		conn, err := s.dialOne(ctx, netip.AddrPortFrom(a, t.Port).String())
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		why = append(why, err.Error())
	}
	return nil, wire.Refuse(wire.Unreachable, "%s does not answer: %s", describe(t), strings.Join(why, "; "))
}

func (s *Session) dialOne(ctx context.Context, address string) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := s.cfg.Dial(dctx, "tcp", address)
	if err != nil && dctx.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: no answer within %s", address, dialTime)
	}
	return conn, err
}

// addresses is what the target's name means here and now. A name that leads to
// the box itself, by error or on purpose, leads nowhere.
func (s *Session) addresses(ctx context.Context, t session.Target) ([]netip.Addr, error) {
	if t.Kind == session.Box || t.Port == 0 {
		return nil, wire.Refuse(wire.Invalid, "%s is not reached over the network", describe(t))
	}
	found := []netip.Addr{}
	if a, err := netip.ParseAddr(t.Host); err == nil {
		found = append(found, a)
	} else {
		rctx, cancel := context.WithTimeout(ctx, resolveTime)
		defer cancel()
		all, err := s.cfg.Resolve(rctx, t.Host)
		if err != nil {
			return nil, wire.Refuse(wire.Unreachable, "the site does not know the name %s: %v", t.Host, err)
		}
		for _, a := range all {
			found = append(found, a.Unmap())
		}
	}
	var own []netip.Addr
	if s.cfg.Own != nil {
		own = s.cfg.Own()
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

// closeWrite says on a connection that no more comes from here.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.New("this connection has no half")
}
