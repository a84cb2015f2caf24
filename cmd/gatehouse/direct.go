package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"gatehouse/appliance/direct"
	sessions "gatehouse/appliance/session"
	"gatehouse/appliance/technician"
)

// directly has a session look for a way without the gateway. The agent may be
// where the gateway is, behind the same NAT: where the gateway was reached is
// remembered. A technician has no lists: what is offered comes from the agent
// alone, whose key is pinned.
func directly(cfg technician.Config) technician.Config {
	var gateway atomic.Pointer[netip.Addr]
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			if at, ok := c.RemoteAddr().(*net.TCPAddr); ok {
				a := at.AddrPort().Addr().Unmap()
				gateway.Store(&a)
			}
		}
		return c, err
	}
	cfg.Direct = func(ctx context.Context, s *technician.Session) {
		var seen netip.Addr
		if a := gateway.Load(); a != nil {
			seen = *a
		}
		log := slog.New(slog.DiscardHandler) // standard error is a terminal; OnWay says which way it goes
		search, err := direct.New(direct.Config{
			Side: sessions.TechnicianSide, Grant: s.Grant, Certificate: s.Own(), Addresses: direct.LinkAddresses, Seen: seen,
			Admitted: func(netip.Addr) bool { return true }, Attach: s.Attach, Log: log,
		})
		if err != nil {
			return
		}
		if st, err := s.Stream(ctx); err == nil {
			// It ends with the session, or when the agent does not want to: then
			// the gateway stays the way.
			_ = search.Run(ctx, st)
		}
	}
	return cfg
}
