package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"gatehouse/appliance/direct"
	grants "gatehouse/appliance/session"
	"gatehouse/appliance/technician"
)

// seekDirect looks for a way to the agent without the gateway for as long as a
// session lasts. This end has no lists: the agent's judge.
func seekDirect(near string) func(context.Context, *technician.Session) {
	seen := netip.Addr{}
	if at, err := netip.ParseAddrPort(near); err == nil {
		seen = at.Addr().Unmap()
	}
	return func(ctx context.Context, s *technician.Session) {
		for ctx.Err() == nil {
			st, err := s.Stream(ctx)
			if err != nil {
				return
			}
			// What it cannot find costs nothing: the session goes by the gateway.
			_ = direct.Seek(ctx, direct.Config{
				Side: grants.TechnicianSide, Grant: s.Grant, Certificate: s.Own(), Addresses: interfaceAddresses, Seen: seen,
				Admitted: func(netip.Addr) bool { return true }, Attach: s.Attach, Log: slog.New(slog.DiscardHandler),
			}, st)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
			}
		}
	}
}

func interfaceAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own
}
