// Package work is what the agent does for one session: it checks what the grant allows, reaches the target, serves terminals, commands, connections and the box's own console, records what has to be recorded, and ends when it is time.
//
// It knows streams (package wire) and not what carries them. The technician's
// end is the one that may try anything: every right, time and address is judged
// here, whatever the hub or the page have let through.
package work

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/agent/maintenance"
	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/agent/screen"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Box is what the maintenance console shows and tries.
type Box = maintenance.Box

// Limits of one session.
const (
	maxStreams = 128 // at once
	maxRefused = 100 // requests that were refused, or sign-ins that failed: then it ends
	maxScreens = 32  // terminals, those included that wait for who lost them
	maxFailed  = 10  // sign-ins at the target
	openTime   = 10 * time.Second
	auditTime  = 15 * time.Second
	graceTime  = 500 * time.Millisecond // to say why, before streams are closed
)

// times are how long is waited for what.
type times struct {
	reach.Times
	resume time.Duration // who lost a terminal comes back
}

func usual() times { return times{reach.Usual(), 2 * time.Minute} }

// Config is one session, and what it is given of the world.
type Config struct {
	Grant    session.Grant
	Material attend.Material
	// Dial connects to a target; an address that may not be reached it is never given.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolve asks the site's resolvers; nil: those of the system.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Own is this machine's addresses, which are no target; nil: not judged.
	Own  func() []netip.Addr
	Tell func(attend.FromSite) error
	// Audit writes the box's own log. What it cannot write does not happen.
	Audit func(context.Context, control.Event) error
	Spool string // folder of recordings under way
	Leave uint64 // bytes of its disk that recordings leave for everything else
	Box   Box
	// Files serves a stream of files over SFTP, its Reply included; what of
	// them the grant allows it judges for each request.
	Files func(context.Context, *ssh.Client, wire.Stream, wire.Open) error
	// Direct serves a stream on which the ends look for another way; nil: there is none.
	Direct func(context.Context, wire.Stream, wire.Open) error
	Idle   time.Duration // without input; 0: never ends for it
	Now    func() time.Time
	Log    *slog.Logger

	times times // zero: the usual ones
}

// Session is one session at the agent.
type Session struct {
	cfg   Config
	ctx   context.Context
	stop  context.CancelCauseFunc
	link  *reach.Link
	work  sync.WaitGroup // streams and screens
	gone  chan struct{}  // nothing is open any more
	done  chan struct{}
	begin sync.Once
	began error

	mu       sync.Mutex
	over     bool
	reason   string
	input    time.Time
	streams  map[wire.Stream]struct{}
	screens  map[string]*screen.Screen
	open     map[wire.Do]int
	audited  map[wire.Do]bool
	refused  int
	failed   int
	recorder *spool.Recorder
	busy     bool // the one recorded screen is in use
}

// New makes a session. It serves until End, the grant's end, or Idle.
func New(c Config) (*Session, error) {
	if c.Dial == nil || c.Tell == nil || c.Audit == nil || c.Log == nil || c.Now == nil {
		return nil, errors.New("a session at the agent lacks what it works with")
	}
	if c.Grant.Recording != session.RecordingOff && c.Spool == "" {
		return nil, errors.New("a session that may be recorded has no folder for its recording")
	}
	if c.Grant.Target.Kind == session.Box && (c.Box.Status == nil || c.Box.Log == nil || c.Box.Resolve == nil || c.Box.Connect == nil) {
		return nil, errors.New("a session with the box itself has no box to show")
	}
	if c.times == (times{}) {
		c.times = usual()
	}
	now := c.Now()
	if now.After(c.Grant.Until) {
		return nil, fmt.Errorf("the session's grant ended at %s", c.Grant.Until.Format(time.RFC3339))
	}
	s := &Session{
		cfg: c, gone: make(chan struct{}), done: make(chan struct{}), input: now, streams: map[wire.Stream]struct{}{}, screens: map[string]*screen.Screen{},
		open: map[wire.Do]int{}, audited: map[wire.Do]bool{},
	}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	s.link = reach.New(reach.Config{
		Target: c.Grant.Target, Material: c.Material, Dial: c.Dial, Resolve: c.Resolve, Own: c.Own, Times: c.times.Times,
		Accepted: s.accepted, Failed: s.signInFailed,
	})
	s.work.Add(1)
	go s.watch()
	go func() {
		<-s.ctx.Done()
		s.finish()
	}()
	return s, nil
}

// watch ends the session at its time.
func (s *Session) watch() {
	defer s.work.Done()
	for {
		now := s.cfg.Now()
		at, why := s.cfg.Grant.Until, "the time of the session is over"
		if s.cfg.Idle > 0 {
			if idle := s.LastInput().Add(s.cfg.Idle); idle.Before(at) {
				at, why = idle, fmt.Sprintf("there was no input for %s", s.cfg.Idle)
			}
		}
		if !at.After(now) {
			s.End(why)
			return
		}
		// Clocks are set now and then: look again before long.
		t := time.NewTimer(min(at.Sub(now), 10*time.Second))
		select {
		case <-s.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// LastInput is when the technician last did something.
func (s *Session) LastInput() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.input
}

func (s *Session) touch() {
	now := s.cfg.Now()
	s.mu.Lock()
	if now.After(s.input) {
		s.input = now
	}
	s.mu.Unlock()
}

// End ends the session: what is open says why and is cut at once.
func (s *Session) End(reason string) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.reason = true, reason
	s.mu.Unlock()
	s.stop(errors.New(reason))
}

// Reason is why the session ended, once it has.
func (s *Session) Reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// Over is closed when the session has ended and all its streams are cut, a
// second after End at most; what carries them is of no use then.
func (s *Session) Over() <-chan struct{} { return s.gone }

// Done is closed when nothing of the session is there any more: for the rest of
// a recording the hub may take half a minute.
func (s *Session) Done() <-chan struct{} { return s.done }

// finish tidies up after End.
func (s *Session) finish() {
	s.mu.Lock()
	reason, began := s.reason, s.began == nil
	screens := make([]*screen.Screen, 0, len(s.screens))
	for _, sc := range s.screens {
		screens = append(screens, sc)
	}
	s.mu.Unlock()
	for _, sc := range screens {
		sc.Finish(wire.Ended{Status: -1, Reason: reason})
	}
	cut := time.AfterFunc(graceTime, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for st := range s.streams {
			st.Close()
		}
	})
	s.link.Close()
	s.work.Wait()
	cut.Stop()
	close(s.gone)
	if began {
		s.note(control.Event{Action: "end session", Outcome: "ok", Detail: map[string]string{"reason": reason}})
	}
	s.tell(attend.Event{What: attend.Ended, Text: reason})
	s.mu.Lock()
	r := s.recorder
	s.mu.Unlock()
	if r != nil {
		r.End()
		<-r.Done()
	}
	close(s.done)
}

// Kept is the hub's word about this session's recording.
func (s *Session) Kept(k attend.Kept) {
	s.mu.Lock()
	r := s.recorder
	s.mu.Unlock()
	if r != nil && k.Session == s.cfg.Grant.ID {
		r.Kept(k)
	}
}

// LineBack says that the line to the hub is there again after it was cut. What
// was on it of a recording may be lost, and is told anew.
func (s *Session) LineBack() {
	s.mu.Lock()
	r := s.recorder
	s.mu.Unlock()
	if r != nil {
		r.Again()
	}
}

// tell tells the hub. The line may be cut; it is told what counts in Hello then.
func (s *Session) tell(e attend.Event) {
	e.Session = s.cfg.Grant.ID
	if err := s.cfg.Tell(attend.FromSite{Event: &e}); err != nil {
		s.cfg.Log.Warn("the hub was not told of a session", "session", e.Session, "what", e.What, "err", err)
	}
}

// audit writes to the box's log what is about to happen; on an error it must not.
func (s *Session) audit(ctx context.Context, e control.Event) error {
	g := s.cfg.Grant
	e.Actor, e.From = g.Technician, s.cfg.Material.Source // the monitor writes the role in the place of the actor
	if e.Object == "" {
		e.Object = g.Target.Name
	}
	detail := map[string]string{"session": g.ID.String(), "technician": g.Technician}
	if s.cfg.Material.Source != "" {
		detail["address"] = s.cfg.Material.Source
	}
	for k, v := range e.Detail {
		detail[k] = wire.Printable(v, 512)
	}
	e.Detail = detail
	ctx, cancel := context.WithTimeout(ctx, auditTime)
	defer cancel()
	if err := s.cfg.Audit(ctx, e); err != nil {
		s.cfg.Log.Error("the box's log cannot be written", "session", g.ID, "action", e.Action, "err", err)
		return wire.Refuse(wire.Failed, "the log of the box cannot be written, so nothing is done that belongs into it: %v", err)
	}
	return nil
}

// note writes what has happened anyway.
func (s *Session) note(e control.Event) {
	// Not under the session's context: it has ended when its end is written.
	_ = s.audit(context.Background(), e) // logged there
}

// join is the start of the session, once: with the first stream the technician
// is there. It is in the log before anything else happens.
func (s *Session) join() error {
	s.begin.Do(func() {
		t := s.cfg.Grant.Target
		err := s.audit(s.ctx, control.Event{Action: "start session", Outcome: "ok", Detail: map[string]string{
			"target": reach.Describe(t), "functions": s.cfg.Grant.Functions.String(), "recording": string(s.cfg.Grant.Recording),
			"until": s.cfg.Grant.Until.UTC().Format(time.RFC3339),
		}})
		s.mu.Lock()
		s.began = err
		s.mu.Unlock()
		if err == nil {
			s.tell(attend.Event{What: attend.Joined})
		}
	})
	s.mu.Lock()
	err := s.began
	s.mu.Unlock()
	if err != nil {
		s.End("the log of the box cannot be written")
	}
	return err
}

// accepted has a key that was taken for the target's in the log and at the hub.
func (s *Session) accepted(ctx context.Context, k ssh.PublicKey) error {
	err := s.audit(ctx, control.Event{Action: "take key of target", Outcome: "ok", Detail: map[string]string{"algorithm": k.Type(), "fingerprint": ssh.FingerprintSHA256(k)}})
	if err != nil {
		return err
	}
	if err := s.cfg.Tell(attend.FromSite{HostKey: &attend.HostKey{Session: s.cfg.Grant.ID, Key: k.Marshal()}}); err != nil {
		// It counts in this session; in the next it is asked for anew.
		s.cfg.Log.Warn("the hub was not told of a target's key", "session", s.cfg.Grant.ID, "err", err)
	}
	return nil
}

// misuse counts what a technician's end was refused. An end that goes on after
// so many is no person.
func (s *Session) misuse() {
	s.mu.Lock()
	s.refused++
	over := s.refused >= maxRefused
	s.mu.Unlock()
	if over {
		s.End(fmt.Sprintf("%d requests were refused", maxRefused))
	}
}

// signInFailed counts and logs one.
func (s *Session) signInFailed(user string, err error) {
	s.mu.Lock()
	s.failed++
	over := s.failed >= maxFailed
	s.mu.Unlock()
	s.note(control.Event{Action: "sign in at target", Outcome: "failed", Detail: map[string]string{"user": user, "error": err.Error()}})
	if over {
		s.End(fmt.Sprintf("%d sign-ins at the target failed", maxFailed))
	}
}
