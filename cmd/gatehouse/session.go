package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
)

const (
	patience  = 2 * time.Minute // how long a session waits without any way
	aliveEach = 5 * time.Minute // how often the box hears that its person is at work
)

// reach is what a command needs that opens a session.
type reach struct {
	askAs
	record   bool
	hostKey  string
	usesIn   bool // standard input belongs to the target
	noDirect bool // through the gateway alone
}

func (r *reach) flags(p *pflag.FlagSet) {
	r.askAs.flags(p)
	p.BoolVar(&r.record, "record", false, "record the terminal, where that is allowed")
	p.BoolVar(&r.noDirect, "no-direct", false, "go through the gateway alone, and look for no way without it")
	p.StringVar(&r.hostKey, "host-key", "", "the target's `FINGERPRINT` (SHA256:…), for a target that is not pinned yet and nobody to ask")
}

// session opens one to a target, with no more rights than functions, and closes it after do.
func (r *reach) session(cmd *cobra.Command, target string, functions []string, do func(context.Context, *technician.Session) error) error {
	if r.usesIn && (r.who.password == "-" || r.who.code == "-") {
		return fail(exitUsage, "standard input belongs to the target here: give --password and --code as file:PATH, or run gatehouse login first")
	}
	b, err := r.open(cmd.Context())
	if err != nil {
		return err
	}
	way := &wayTeller{target: target, err: cmd.ErrOrStderr(), tell: isTerminal(cmd.ErrOrStderr())}
	crier := &crier{out: cmd.ErrOrStderr(), raw: isTerminal(cmd.ErrOrStderr()), now: time.Now}
	cfg := technician.Config{
		Hub: hub{b, crier.granted}, Dial: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, Near: b.address, Patience: patience, OnWay: way.on,
	}
	if !r.noDirect {
		cfg = directly(cfg)
	}
	if r.record {
		functions = append(functions[:len(functions):len(functions)], "record")
	}
	return b.as(cmd.Context(), r.who, cmd.InOrStdin(), func(ctx context.Context) error {
		s, err := begin(ctx, b, cfg, api.Ask{Target: target, Functions: functions, Record: r.record})
		if err != nil {
			return unreached(err)
		}
		stop, deaf := alive(ctx, b, s, aliveEach), crier.listen(ctx, b, s, noticeEach)
		err = do(ctx, s)
		stop()
		deaf()
		return errors.Join(err, s.Close("the technician's end was closed"))
	})
}

// begin asks for the target by the name that was typed, or as ssh spells it.
func begin(ctx context.Context, b *box, cfg technician.Config, q api.Ask) (*technician.Session, error) {
	q.Target = strings.TrimSuffix(q.Target, hostSuffix)
	s, err := technician.Begin(ctx, cfg, q)
	var r *refusal
	if !errors.As(err, &r) || r.status != http.StatusNotFound {
		return s, err
	}
	list, failed := b.targets(ctx)
	if failed != nil {
		return nil, failed
	}
	i := slices.IndexFunc(list, func(t api.Target) bool { return hostLabel(t.Name) == hostLabel(q.Target) })
	if i < 0 {
		return nil, err
	}
	q.Target = strconv.FormatInt(list[i].ID, 10)
	return technician.Begin(ctx, cfg, q)
}

// unreached gives what went wrong on the way its exit code.
func unreached(err error) error {
	var f *failure
	var r *refusal
	var e *carrier.Ended
	if errors.As(err, &f) || errors.As(err, &r) || errors.As(err, &e) || err == nil {
		return err // somebody answered, and has ended it
	}
	return fail(exitUnreachable, "%w", err)
}

// hub is the box as one that grants sessions.
type hub struct {
	b      *box
	notice func(*api.Notice) // that came with the grant, or none
}

func (h hub) Ask(ctx context.Context, q api.Ask) (g api.Granted, err error) {
	_, err = h.b.call(ctx, http.MethodPost, api.Sessions, q, &g)
	if err == nil {
		h.notice(g.Notice)
	}
	return g, err
}

func (h hub) Meet(ctx context.Context, q api.MeetAsk) (m api.Meeting, err error) {
	_, err = h.b.call(ctx, http.MethodPost, api.Meet, q, &m)
	var r *refusal
	if errors.As(err, &r) && (r.status == http.StatusNotFound || r.status == http.StatusUnauthorized) {
		err = fmt.Errorf("%w: %w", technician.ErrOver, err)
	}
	return m, err
}

// alive tells the box that its person is at work, whenever something was done
// or came (technician.Session.Activity):
// bytes of a session do not pass by the console, and it would sign the person
// out, after which a lost way could not be replaced.
func alive(ctx context.Context, b *box, s *technician.Session, each time.Duration) (stop func()) {
	seen := s.Activity()
	return during(ctx, s, each, func(ctx context.Context) {
		if now := s.Activity(); now != seen {
			seen = now
			var answer session
			_, _ = b.call(ctx, http.MethodGet, "/api/v1/session", nil, &answer) // if not now, then at the next tick
		}
	})
}

// during does something again and again until the session is over, or it is stopped.
func during(ctx context.Context, s *technician.Session, each time.Duration, do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(each)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.Done():
				return
			case <-tick.C:
			}
			do(ctx)
		}
	})
	return func() { cancel(); work.Wait() }
}

// wayTeller says when a session has lost its way, and when it is back.
type wayTeller struct {
	target string
	err    io.Writer
	tell   bool

	mu   sync.Mutex
	lost bool
}

func (w *wayTeller) on(best carrier.Kind, any bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.tell || w.lost != any {
		return
	}
	w.lost = !any
	if any {
		fmt.Fprintf(w.err, "\r\n[gatehouse: back at %s]\r\n", w.target)
	} else {
		fmt.Fprintf(w.err, "\r\n[gatehouse: the way to %s is lost; looking for another for %s]\r\n", w.target, patience)
	}
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// refusedThere gives what the agent refused its exit code.
func refusedThere(err error) error {
	var r *wire.Refusal
	if !errors.As(err, &r) {
		return err
	}
	return thereFailed(r.Code, r.Text)
}

func thereFailed(code wire.Code, text string) error {
	if text == "" {
		text = "it was ended at the box, which gives no reason"
	}
	exit, ok := map[wire.Code]exitCode{
		wire.Denied: exitDenied, wire.Credential: exitDenied, wire.Unreachable: exitUnreachable,
		wire.HostKey: exitVerification, wire.NotFound: exitNotFound, wire.Forced: exitConflict,
	}[code]
	if !ok {
		exit = exitFailure
	}
	return fail(exit, "%s", text)
}

// howItEnded makes the end of what ran at a target that of this program.
func howItEnded(end wire.Ended, err error) error {
	switch {
	case errors.Is(err, technician.ErrLeft):
		return nil
	case errors.Is(err, technician.ErrHostKey):
		return fail(exitVerification, "%w: nothing was done", err)
	case err != nil:
		return unreached(err)
	case end.Status < 0 || end.Reason != "":
		return thereFailed(end.Code, end.Reason)
	case end.Status == 0:
		return nil
	}
	return &ended{exitCode(min(end.Status, 255))}
}
