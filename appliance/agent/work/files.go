package work

import (
	"context"
	"log/slog"

	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session/wire"
)

// files hands a stream to what serves files, with the session's SSH.
func (s *Session) files(ctx context.Context, st wire.Stream, o wire.Open) error {
	if s.cfg.Files == nil {
		return s.refuse(st, o, wire.Refuse(wire.Failed, "this agent serves no files"))
	}
	closed, err := s.opening(ctx, wire.Files, nil)
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer closed()
	client, release, err := s.link.Lease(ctx, reach.Asker{})
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer release()
	return s.cfg.Files(ctx, client.Client, active{st, s}, o)
}

// direct hands a stream to what looks for another way between the ends.
func (s *Session) direct(ctx context.Context, st wire.Stream, o wire.Open) error {
	if s.cfg.Direct == nil || !s.cfg.Material.Direct {
		return s.refuse(st, o, wire.Refuse(wire.Denied, "this session goes by the gateway alone"))
	}
	return s.cfg.Direct(ctx, st, o)
}

// Leftovers hands to the hub the recordings that an agent before this one, or
// a session that did not get rid of its own, left in the folder. Run it, and
// give it the hub's word about recordings too.
func Leftovers(folder string, tell func(attend.FromSite) error, log *slog.Logger) *spool.Leftovers {
	return &spool.Leftovers{Folder: folder, Tell: tell, Log: log}
}
