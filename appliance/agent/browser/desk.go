package browser

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Desk answers the offers of the browsers of all sessions of one agent.
type Desk struct {
	Certificate tls.Certificate
	Gateway     func(context.Context, session.Gateway) (net.Conn, error) // connects to one
	Log         *slog.Logger

	mu  sync.Mutex
	all map[session.ID]*Session
}

// Answer answers an offer for a session, which lasts as long as ctx. Its streams
// are handed to serve, and onPath is told which way is used: "" for none.
func (d *Desk) Answer(ctx context.Context, g session.Grant, m attend.Material, sig attend.Signal, serve func(context.Context, wire.Stream) error, onPath func(string)) (string, error) {
	s, err := d.session(ctx, g, m, serve, onPath)
	if err != nil {
		return "", err
	}
	return s.Answer(ctx, sig)
}

// session finds the session that has had an offer before, or makes it.
func (d *Desk) session(ctx context.Context, g session.Grant, m attend.Material, serve func(context.Context, wire.Stream) error, onPath func(string)) (*Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.all[g.ID]; s != nil {
		return s, nil
	}
	cfg := Config{
		Grant: g, Certificate: d.Certificate, OnPath: onPath, Log: d.Log,
		Dial: func(ctx context.Context) (net.Conn, error) { return d.Gateway(ctx, g.Gateways[0]) },
		Serve: func(ctx context.Context, st wire.Stream) {
			if err := serve(ctx, st); err != nil {
				d.Log.Info("a stream of a session ended", "session", g.ID, "err", err)
			}
		},
	}
	if a, err := netip.ParseAddr(m.Source); err == nil && m.Direct {
		cfg.Source = a.Unmap().WithZone("")
	}
	s, err := New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if d.all == nil {
		d.all = make(map[session.ID]*Session)
	}
	d.all[g.ID] = s
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		delete(d.all, g.ID)
		d.mu.Unlock()
		s.Close()
	})
	return s, nil
}
