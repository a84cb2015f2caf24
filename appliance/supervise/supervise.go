package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// The states of a role, as control.RoleStatus names them.
const (
	stateRunning  = "running"
	stateWaiting  = "waiting"  // ended, to be started again
	stateFinished = "finished" // ended, not to be started again unless asked
	stateFrozen   = "frozen"   // killed because it gave no sign of life, to be started again
)

// The contract of exit codes. Any other, or a signal, means: start it again.
const (
	exitFinished  = 0
	exitNoRestart = 125
)

// Config is what a Supervisor works with.
type Config struct {
	Specs     []Spec
	Files     map[string]*os.File // by the names in Specs; every incarnation gets them
	Reaper    *Reaper             // running for as long as the Supervisor and longer
	Log       *slog.Logger
	Output    func(role control.Role, line string) // what the roles write, line by line
	CrashDir  string                               // crash reports go here; "" for none
	Heartbeat time.Duration                        // a role silent for that long is frozen; 0 means 20 s
	Now       func() time.Time                     // nil means time.Now
}

// timing is what tests make shorter.
type timing struct {
	backoffMin, backoffMax time.Duration
	healthy                time.Duration // after so long the back-off begins anew
	grace                  time.Duration // to the first sign of life
	term                   time.Duration // from SIGTERM to SIGKILL
}

// Supervisor keeps the roles running. Make one with New, then Run it.
type Supervisor struct {
	config Config
	timing timing
	roles  []*role // in the order of the table
}

// role is one row and its present incarnation.
type role struct {
	spec Spec
	wake chan struct{} // the wish or the time of Alive has changed

	mu       sync.Mutex
	wanted   bool
	restart  bool // end this incarnation and start another without a pause
	state    string
	child    *child // nil if none runs
	alive    time.Time
	since    time.Time
	restarts int
	lastEnd  string
}

// New checks the table against what there is. Nothing starts before Run.
func New(c Config) (*Supervisor, error) {
	if c.Heartbeat == 0 {
		c.Heartbeat = 20 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Supervisor{config: c, timing: timing{
		backoffMin: 500 * time.Millisecond,
		backoffMax: 30 * time.Second,
		healthy:    time.Minute,
		grace:      3 * c.Heartbeat, // a role opens its database before it has time for us
		term:       5 * time.Second,
	}}
	for _, spec := range c.Specs {
		for _, name := range spec.Files {
			if c.Files[name] == nil {
				return nil, fmt.Errorf("supervising %s: there is no file %q to hand over", spec.Role, name)
			}
		}
		for _, name := range spec.Caps {
			if _, ok := capabilities[name]; !ok {
				return nil, fmt.Errorf("supervising %s: there is no capability %q", spec.Role, name)
			}
		}
		s.roles = append(s.roles, &role{spec: spec, wake: make(chan struct{}, 1), wanted: true, state: stateWaiting, since: c.Now()})
	}
	return s, nil
}

func (s *Supervisor) String() string { return "supervisor" }

// Run keeps the roles running until ctx ends, then ends them: SIGTERM, five
// seconds, SIGKILL. It returns when none is left.
func (s *Supervisor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, r := range s.roles {
		wg.Go(func() { s.keep(ctx, r) })
	}
	wg.Wait()
	return ctx.Err()
}

// Identify says which role the process pid of that uid is. A role that is just
// being started is known before it can ask anything.
func (s *Supervisor) Identify(pid int, uid uint32) (control.Role, bool) {
	// The Reaper's lock: a fork that is under way is finished first, and a
	// pid that was reaped is not taken for its former owner.
	s.config.Reaper.mu.Lock()
	defer s.config.Reaper.mu.Unlock()
	for _, r := range s.roles {
		r.mu.Lock()
		ours := r.child != nil && r.child.pid == pid && r.spec.UID == uid && s.config.Reaper.children[pid] == r.child
		r.mu.Unlock()
		if ours {
			return r.spec.Role, true
		}
	}
	return "", false
}

// Alive takes note of a role's heartbeat.
func (s *Supervisor) Alive(name control.Role) {
	if r := s.find(name); r != nil {
		r.mu.Lock()
		r.alive = s.config.Now()
		r.mu.Unlock()
	}
}

// Status says how the roles are, in the order of the table.
func (s *Supervisor) Status() []control.RoleStatus {
	var out []control.RoleStatus
	for _, r := range s.roles {
		r.mu.Lock()
		st := control.RoleStatus{Name: r.spec.Role, State: r.state, Restarts: r.restarts, Since: r.since, LastEnd: r.lastEnd}
		if r.child != nil {
			st.PID = r.child.pid
		}
		r.mu.Unlock()
		out = append(out, st)
	}
	return out
}

// Start wishes a role to run, one that has finished too.
func (s *Supervisor) Start(name control.Role) error {
	return s.wish(name, func(r *role) { r.wanted = true })
}

// Stop wishes a role not to run. It is ended soon, and stays so until Start.
func (s *Supervisor) Stop(name control.Role) error {
	return s.wish(name, func(r *role) { r.wanted = false })
}

// Restart ends a role if it runs, and starts it at once.
func (s *Supervisor) Restart(name control.Role) error {
	return s.wish(name, func(r *role) { r.wanted, r.restart = true, true })
}

func (s *Supervisor) wish(name control.Role, change func(*role)) error {
	r := s.find(name)
	if r == nil {
		return fmt.Errorf("there is no role %q in this state of the box", name)
	}
	r.mu.Lock()
	change(r)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // one is pending; it will see this wish too
	}
	return nil
}

func (s *Supervisor) find(name control.Role) *role {
	for _, r := range s.roles {
		if r.spec.Role == name {
			return r
		}
	}
	return nil
}

// keep runs one incarnation after the other.
func (s *Supervisor) keep(ctx context.Context, r *role) {
	var failures int
	for ctx.Err() == nil {
		r.mu.Lock()
		run := r.wanted
		r.restart = false
		r.mu.Unlock()
		if !run {
			select {
			case <-ctx.Done():
			case <-r.wake:
			}
			continue
		}
		began := s.config.Now()
		end := s.incarnation(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if end.again && !end.asked {
			if s.config.Now().Sub(began) >= s.timing.healthy {
				failures = 0
			}
			failures++
			s.pause(ctx, r, backoff(s.timing, failures, jitter()))
		} else {
			failures = 0
		}
		if end.again {
			r.mu.Lock()
			r.restarts++
			r.mu.Unlock()
		}
	}
}

// pause waits, or until somebody wishes something.
func (s *Supervisor) pause(ctx context.Context, r *role, d time.Duration) {
	s.config.Log.Info("role starts again after a pause", "role", r.spec.Role, "pause", d.Round(time.Millisecond).String())
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-r.wake:
	}
}

// backoff doubles with each failure in a row; jitter, 0 to 255, adds up to a
// quarter, so that roles which fell together do not rise together.
func backoff(t timing, failures int, jitter byte) time.Duration {
	d := t.backoffMin
	for range failures - 1 {
		if d *= 2; d >= t.backoffMax {
			d = t.backoffMax
			break
		}
	}
	return d + d/4*time.Duration(jitter)/255
}

// ending is how an incarnation ended.
type ending struct {
	text  string // in words
	again bool   // start it again
	asked bool   // we ended it because somebody wished it
	crash bool   // worth a report
	state string // until it runs again
}

// judge reads the exit by the contract of exit codes.
func judge(status unix.WaitStatus, why string) ending {
	switch {
	case why == whyStop:
		return ending{text: "stopped", asked: true, state: stateFinished}
	case why == whyRestart:
		return ending{text: "restarted", again: true, asked: true, state: stateWaiting}
	case why == whyFrozen:
		return ending{text: "frozen: gave no sign of life and was killed", again: true, crash: true, state: stateFrozen}
	case status.Signaled():
		return ending{text: "killed by " + unix.SignalName(status.Signal()), again: true, crash: true, state: stateWaiting}
	case status.ExitStatus() == exitFinished:
		return ending{text: "finished", state: stateFinished}
	case status.ExitStatus() == exitNoRestart:
		return ending{text: "ended and asked not to be started again (exit 125)", crash: true, state: stateFinished}
	}
	return ending{text: fmt.Sprintf("ended with exit code %d", status.ExitStatus()), again: true, crash: true, state: stateWaiting}
}

// Why an incarnation is being ended by us.
const (
	whyStop    = "stop"
	whyRestart = "restart"
	whyFrozen  = "frozen"
)

// incarnation starts the role, watches it to its end, and keeps the record.
func (s *Supervisor) incarnation(ctx context.Context, r *role) ending {
	last, err := s.spawn(r)
	if err != nil {
		end := ending{text: err.Error(), again: true, state: stateWaiting}
		s.config.Log.Error("role could not be started", "role", r.spec.Role, "err", err)
		s.record(r, end)
		return end
	}
	r.mu.Lock()
	c := r.child
	r.mu.Unlock()
	why := s.watch(ctx, r, c)
	lines := last()
	end := judge(c.status, why)
	s.record(r, end)
	if ctx.Err() != nil {
		return end
	}
	level := slog.LevelInfo
	if end.crash {
		level = slog.LevelError
	}
	s.config.Log.Log(ctx, level, "role ended", "role", r.spec.Role, "pid", c.pid, "how", end.text)
	if end.crash && s.config.CrashDir != "" {
		if err := report(s.config.CrashDir, r.spec.Role, c.pid, s.config.Now(), end.text, lines); err != nil {
			s.config.Log.Error("crash report not written", "role", r.spec.Role, "err", err)
		}
	}
	return end
}

func (s *Supervisor) record(r *role, end ending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.child, r.state, r.lastEnd, r.since = nil, end.state, end.text, s.config.Now()
	if !end.again && !end.asked {
		r.wanted = false // until somebody wishes it
	}
}

// watch returns when c was reaped, and why we ended it if we did.
func (s *Supervisor) watch(ctx context.Context, r *role, c *child) (why string) {
	tick := time.NewTicker(max(s.config.Heartbeat/8, time.Millisecond))
	defer tick.Stop()
	var (
		done = ctx.Done()
		kill <-chan time.Time
	)
	end := func(reason string) {
		why = reason
		s.config.Reaper.signal(c, unix.SIGTERM)
		// One that is stopped would not see it.
		s.config.Reaper.signal(c, unix.SIGCONT)
		kill = time.After(s.timing.term)
	}
	for {
		select {
		case <-c.done:
			return why
		case <-kill:
			s.config.Reaper.signal(c, unix.SIGKILL)
		case <-done:
			done = nil
			end(whyStop)
		case <-r.wake:
		case <-tick.C:
		}
		if why != "" {
			continue
		}
		r.mu.Lock()
		stop, again, silent := !r.wanted, r.restart, s.config.Now().Sub(r.alive)
		r.mu.Unlock()
		switch {
		case stop:
			end(whyStop)
		case again:
			end(whyRestart)
		case silent >= s.config.Heartbeat:
			s.config.Log.Error("role is frozen, killing it", "role", r.spec.Role, "pid", c.pid, "heartbeat", s.config.Heartbeat.String())
			r.mu.Lock()
			r.state = stateFrozen
			r.mu.Unlock()
			why = whyFrozen
			s.config.Reaper.signal(c, unix.SIGKILL)
		}
	}
}
