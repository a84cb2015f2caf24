package work

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Serve reads what a stream is for and serves it to its end. The error is for
// the log; the technician's end has been told what it is to know.
func (s *Session) Serve(ctx context.Context, st wire.Stream) error {
	if !s.enter(st) {
		return errors.Join(wire.WriteRefusal(st, wire.Refuse(wire.Failed, "the session has ended, or has %d streams open, the most there can be", maxStreams)), st.Close())
	}
	defer s.leave(st)
	defer context.AfterFunc(ctx, func() { st.Close() })()
	late := time.AfterFunc(openTime, func() { st.Close() })
	o, err := wire.ReadOpen(st)
	late.Stop()
	if err != nil {
		return err
	}
	s.touch()
	f, err := s.allowed(o)
	if err == nil {
		err = s.join()
	}
	if err != nil {
		return s.refuse(st, o, err)
	}
	return f(s.ctx, st, o)
}

func (s *Session) enter(st wire.Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || len(s.streams) >= maxStreams {
		return false
	}
	s.streams[st] = struct{}{}
	s.work.Add(1)
	return true
}

func (s *Session) leave(st wire.Stream) {
	st.Close()
	s.mu.Lock()
	delete(s.streams, st)
	s.mu.Unlock()
	s.work.Done()
}

// refuse answers, and logs what the grant does not allow.
func (s *Session) refuse(st wire.Stream, o wire.Open, err error) error {
	var r *wire.Refusal
	if errors.As(err, &r) && (r.Code == wire.Denied || r.Code == wire.Forced || r.Code == wire.Invalid) {
		s.misuse()
		s.note(control.Event{Action: "open function", Outcome: "refused", Detail: map[string]string{"function": string(o.Do), "reason": r.Text}})
	}
	if werr := wire.WriteRefusal(st, err); werr == nil {
		settle(st)
	}
	return err
}

// settle lets the other end read what was written last before the stream is closed.
func settle(st wire.Stream) {
	if st.CloseWrite() != nil {
		return
	}
	late := time.AfterFunc(2*time.Second, func() { st.Close() })
	defer late.Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(st, 1<<20))
}

// serve is one function.
type serve func(context.Context, wire.Stream, wire.Open) error

// needs is what each function needs of the grant: all of its rights, and a
// target of one of its kinds.
type needs struct {
	rights right.Functions
	any    bool // one of the rights is enough
	kinds  []session.Kind
	opaque bool // nobody can record it
	serve  func(*Session) serve
}

func table() map[wire.Do]needs {
	hosts := []session.Kind{session.SSH, session.RDP, session.VNC, session.HTTP, session.HTTPS, session.TCP}
	return map[wire.Do]needs{
		wire.Terminal: {rights: right.RemoteControl, kinds: []session.Kind{session.SSH}, serve: func(s *Session) serve { return s.terminal }},
		wire.Exec:     {rights: right.Scripts, kinds: []session.Kind{session.SSH}, serve: func(s *Session) serve { return s.exec }},
		wire.Forward:  {rights: right.RemoteControl, kinds: hosts, opaque: true, serve: func(s *Session) serve { return s.forward }},
		wire.Web:      {rights: right.OpenURLs, kinds: []session.Kind{session.HTTP, session.HTTPS}, opaque: true, serve: func(s *Session) serve { return s.forward }},
		wire.Console:  {rights: right.SystemInfo, kinds: []session.Kind{session.Box}, serve: func(s *Session) serve { return s.console }},
		wire.Files: {rights: right.FileManager | right.SendFiles | right.ReceiveFiles, any: true, kinds: []session.Kind{session.SSH},
			serve: func(s *Session) serve { return s.files }},
		wire.Direct: {kinds: append(hosts, session.Box), serve: func(s *Session) serve { return s.direct }},
	}
}

// allowed judges what is asked by the grant, and the grant by the clock.
func (s *Session) allowed(o wire.Open) (serve, error) {
	g := s.cfg.Grant
	n, ok := table()[o.Do]
	if !ok {
		return nil, wire.Refuse(wire.Invalid, "%s is no function of a session", wire.Printable(string(o.Do), 40))
	}
	if now := s.cfg.Now(); now.Before(g.From.Add(-time.Minute)) || now.After(g.Until) {
		return nil, wire.Refuse(wire.Denied, "the time of the session is over, or has not begun")
	}
	if has := g.Functions & n.rights; n.rights != 0 && (has == 0 || !n.any && has != n.rights) {
		return nil, wire.Refuse(wire.Denied, "this session may not open %s: it was not given the right %s", o.Do, n.rights)
	}
	if !slices.Contains(n.kinds, g.Target.Kind) {
		return nil, wire.Refuse(wire.Denied, "a target of kind %s has no %s", g.Target.Kind, o.Do)
	}
	if n.opaque && g.Recording == session.RecordingForced {
		return nil, wire.Refuse(wire.Forced, "sessions with %s are recorded always, and a %s is opaque to the agent: open a terminal instead", g.Target.Name, o.Do)
	}
	return n.serve(s), nil
}

// opening writes that a function is about to be opened, and tells the hub; the
// returned func is for its end. Connections come by the hundred where a page is
// looked at, so of these only the first is in the log.
func (s *Session) opening(ctx context.Context, do wire.Do, detail map[string]string) (closed func(), err error) {
	many := do == wire.Forward || do == wire.Web || do == wire.Files // each file has lines of its own
	s.mu.Lock()
	known := many && s.audited[do]
	s.mu.Unlock()
	if !known {
		d := map[string]string{"function": string(do)}
		for k, v := range detail {
			d[k] = v
		}
		if err := s.audit(ctx, control.Event{Action: "open function", Outcome: "ok", Detail: d}); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.audited[do] = true
	s.open[do]++
	first := s.open[do] == 1
	s.mu.Unlock()
	if first {
		s.tell(attend.Event{What: attend.Opened, Text: string(do)})
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			s.mu.Lock()
			s.open[do]--
			last := s.open[do] == 0
			s.mu.Unlock()
			if last {
				s.tell(attend.Event{What: attend.Closed, Text: string(do)})
			}
		})
	}, nil
}

// active counts what comes and goes as use of the session, where nobody types:
// a copy that runs for an hour is not idle.
type active struct {
	wire.Stream
	s *Session
}

func (a active) Read(b []byte) (int, error) {
	n, err := a.Stream.Read(b)
	if n > 0 {
		a.s.touch()
	}
	return n, err
}

func (a active) Write(b []byte) (int, error) {
	n, err := a.Stream.Write(b)
	if n > 0 {
		a.s.touch()
	}
	return n, err
}

// Reset breaks the stream, where it can be broken.
func (a active) Reset(reason string) error {
	reset(a.Stream, reason)
	return nil
}
