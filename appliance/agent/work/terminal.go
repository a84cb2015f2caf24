package work

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/agent/maintenance"
	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/agent/screen"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/session/wire"
)

// terminal opens one at the target, or comes back to one.
func (s *Session) terminal(ctx context.Context, st wire.Stream, o wire.Open) error {
	if o.Term == "" {
		o.Term = "xterm-256color"
	}
	if len(o.Term) > 64 || strings.Trim(o.Term, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+._") != "" {
		return s.refuse(st, o, wire.Refuse(wire.Invalid, "%.20q is not the name of a kind of terminal", o.Term))
	}
	return s.screen(ctx, st, o, func(ctx context.Context, sc *screen.Screen) wire.Ended { return s.shell(ctx, sc, o.Term) })
}

// screen serves a stream at a new screen on which program runs, or at the one
// that it resumes.
func (s *Session) screen(ctx context.Context, st wire.Stream, o wire.Open, program func(context.Context, *screen.Screen) wire.Ended) error {
	if o.Resume != "" {
		s.mu.Lock()
		sc := s.screens[o.Resume]
		s.mu.Unlock()
		if sc == nil {
			return s.refuse(st, o, wire.Refuse(wire.NotFound, "this terminal has ended: who loses it has %s to come back", s.cfg.times.resume))
		}
		if o.Width != 0 || o.Height != 0 {
			sc.Resize(o.Width, o.Height)
		}
		return sc.Serve(st, o.Seen)
	}
	if o.Width == 0 && o.Height == 0 {
		o.Width, o.Height = 80, 24
	}
	if o.Width < 1 || o.Height < 1 || o.Width > screen.MaxColumns || o.Height > screen.MaxColumns {
		return s.refuse(st, o, wire.Refuse(wire.Invalid, "a terminal of %d by %d characters", o.Width, o.Height))
	}
	recorder, recorded, err := s.record(o.Width, o.Height, string(o.Do))
	if err != nil {
		return s.refuse(st, o, err)
	}
	closed, err := s.opening(ctx, o.Do, nil)
	if err != nil {
		recorded()
		return s.refuse(st, o, err)
	}
	sc, err := s.newScreen(o, recorder)
	if err != nil {
		closed()
		recorded()
		return s.refuse(st, o, err)
	}
	go func() {
		defer s.work.Done()
		defer closed()
		defer recorded()
		pctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-sc.Done():
				cancel()
			case <-pctx.Done():
			}
		}()
		end := program(pctx, sc)
		if s.ctx.Err() != nil { // how the target took it is not why
			end = wire.Ended{Status: -1, Reason: s.Reason()}
		}
		sc.Finish(end)
		time.AfterFunc(s.cfg.times.resume, func() { s.forget(sc.Name()) })
	}()
	return sc.Serve(st, 0)
}

// newScreen makes one that the session knows, and counts the program that is to
// run on it.
func (s *Session) newScreen(o wire.Open, r *spool.Recorder) (*screen.Screen, error) {
	var sc *screen.Screen
	c := screen.Config{
		Width: o.Width, Height: o.Height, Touch: s.touch, Gone: func() { s.forget(sc.Name()) },
		Resume: s.cfg.times.resume, Confirm: s.cfg.times.Confirm,
	}
	if r != nil {
		c.Record = func(b []byte) error {
			if err := r.Output(b); err != nil && s.forced() {
				return err
			}
			return nil
		}
		c.Resized = func(width, height int) { _ = r.Resize(width, height) } // a failure ends or is told once, by the recorder
	}
	sc = screen.New(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, wire.Refuse(wire.Failed, "the session has ended: %s", s.reason)
	}
	if len(s.screens) >= maxScreens {
		return nil, wire.Refuse(wire.Failed, "this session has %d terminals, the most there can be", maxScreens)
	}
	s.screens[sc.Name()] = sc
	s.work.Add(1) // while the stream that is served has not let go of its own
	return sc, nil
}

// forget lets go of a screen: its end was seen, it was left, or nobody has come
// for its end in time.
func (s *Session) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.screens, name)
}

// shell is the target's, on a screen.
func (s *Session) shell(ctx context.Context, sc *screen.Screen, term string) wire.Ended {
	a := reach.Asker{Confirm: sc.Confirm, Prompt: sc.Prompt, Banner: func(text string) { _, _ = sc.Write([]byte(text)) }}
	ch, client, release, err := s.link.Session(ctx, a)
	if err != nil {
		return failed(err)
	}
	defer release()
	defer ch.Close()
	defer s.link.HangUp(ctx, ch, client)()
	stdin, err := ch.StdinPipe()
	if err != nil {
		return failed(err)
	}
	ch.Stdout, ch.Stderr = sc, sc
	width, height := sc.Sized(nil)
	err = s.link.Within(client, func() error {
		if err := ch.RequestPty(term, height, width, ssh.TerminalModes{ssh.ECHO: 1, ssh.TTY_OP_ISPEED: 38400, ssh.TTY_OP_OSPEED: 38400}); err != nil {
			return fmt.Errorf("the target gives no terminal: %w", err)
		}
		if err := ch.Shell(); err != nil {
			return fmt.Errorf("the target starts no shell: %w", err)
		}
		return nil
	})
	if err != nil {
		return failed(err)
	}
	change := func(width, height int) { _ = ch.WindowChange(height, width) } // a dead channel is noticed by its reader
	if w, h := sc.Sized(change); w != width || h != height {
		change(w, h)
	}
	go func() {
		for {
			b, err := sc.Keys(ctx)
			if err == nil {
				_, err = stdin.Write(b)
			}
			if err != nil {
				stdin.Close()
				return
			}
		}
	}()
	return exited(ch.Wait())
}

// exited says in words how a command ended.
func exited(err error) wire.Ended {
	var exit *ssh.ExitError
	var lost *ssh.ExitMissingError
	switch {
	case err == nil:
		return wire.Ended{}
	case errors.As(err, &exit) && exit.Signal() != "":
		return wire.Ended{Status: exit.ExitStatus(), Reason: "it was ended by the signal " + wire.Printable(exit.Signal(), 32)}
	case errors.As(err, &exit):
		return wire.Ended{Status: exit.ExitStatus()}
	case errors.As(err, &lost):
		return wire.Ended{Status: -1, Reason: "the connection to the target was lost", Code: wire.Unreachable}
	}
	return failed(err)
}

// failed is an error as an end.
func failed(err error) wire.Ended {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return wire.Ended{Status: -1, Reason: r.Text, Code: r.Code}
	}
	return wire.Ended{Status: -1, Reason: err.Error(), Code: wire.Failed}
}

// console is the box's own.
func (s *Session) console(ctx context.Context, st wire.Stream, o wire.Open) error {
	return s.screen(ctx, st, o, func(ctx context.Context, sc *screen.Screen) wire.Ended {
		if err := maintenance.Run(ctx, s.cfg.Box, sc.Keys, sc); err != nil {
			return failed(err)
		}
		return wire.Ended{}
	})
}
