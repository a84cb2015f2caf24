package work

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/agent/screen"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/session/wire"
)

// exec runs one command at the target. It ends with its stream: nobody comes
// back to a command.
func (s *Session) exec(ctx context.Context, st wire.Stream, o wire.Open) error {
	if o.Command == "" || strings.ContainsRune(o.Command, 0) {
		return s.refuse(st, o, wire.Refuse(wire.Invalid, "there is no command to run"))
	}
	recorder, recorded, err := s.record(80, 24, "exec: "+wire.Printable(o.Command, 500))
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer recorded()
	closed, err := s.opening(ctx, wire.Exec, map[string]string{"command": o.Command})
	if err != nil {
		return s.refuse(st, o, err)
	}
	defer closed()
	if err := wire.WriteReply(st, wire.Reply{Recorded: recorder != nil}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &command{s: s, st: active{st, s}, recorder: recorder, input: make(chan []byte, 1), answers: make(chan bool, 1)}
	go func() { cancel(c.read(ctx)) }()
	end := c.run(ctx, o.Command)
	if s.ctx.Err() != nil {
		end = wire.Ended{Status: -1, Reason: s.Reason()}
	}
	b, err := json.Marshal(end)
	if err == nil {
		err = c.frame(wire.Exit, b)
	}
	if err == nil {
		screen.Settle(st)
		<-ctx.Done() // the technician's end has read it, or had the time to
	}
	return err
}

// command is one that runs.
type command struct {
	s        *Session
	st       active
	recorder *spool.Recorder
	input    chan []byte // nil: no more comes
	answers  chan bool

	mu sync.Mutex // one frame at a time
}

func (c *command) frame(k wire.Kind, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.WriteFrame(c.st, k, b)
}

// read takes what the technician's end sends, until its stream ends.
func (c *command) read(ctx context.Context) error {
	buf := make([]byte, wire.MaxFrame)
	ended := false
	for {
		kind, content, err := wire.ReadFrame(c.st, buf)
		if errors.Is(err, io.EOF) {
			return errors.New("the technician's end has left")
		}
		if err != nil {
			return err
		}
		var in []byte
		switch kind {
		case wire.Input:
			in = bytes.Clone(content)
			if ended || len(in) == 0 {
				continue
			}
		case wire.EOF:
			if ended {
				continue
			}
			ended = true
		case wire.Size:
			continue
		case wire.Confirm:
			if len(content) == 1 {
				select {
				case c.answers <- content[0] == 1:
				default:
				}
			}
			continue
		default:
			return fmt.Errorf("a frame of kind %q at a command", byte(kind))
		}
		select {
		case c.input <- in:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *command) run(ctx context.Context, text string) wire.Ended {
	a := reach.Asker{Confirm: c.confirm, Banner: func(text string) { _ = c.frame(wire.Stderr, []byte(text)) }}
	ch, client, release, err := c.s.link.Session(ctx, a)
	if err != nil {
		return failed(err)
	}
	defer release()
	defer ch.Close()
	defer c.s.link.HangUp(ctx, ch, client)()
	stdin, err := ch.StdinPipe()
	if err != nil {
		return failed(err)
	}
	ch.Stdout, ch.Stderr = output{c, wire.Output}, output{c, wire.Stderr}
	if err := c.s.link.Within(client, func() error { return ch.Start(text) }); err != nil {
		return failed(wire.Refuse(wire.Failed, "the target does not run the command: %v", err))
	}
	if err := c.frame(wire.Output, nil); err != nil { // it has begun
		return failed(err)
	}
	go func() {
		for {
			select {
			case b := <-c.input:
				if b != nil {
					if _, err := stdin.Write(b); err == nil {
						continue
					}
				}
			case <-ctx.Done():
			}
			stdin.Close()
			for { // a command that reads no more does not stop the stream
				select {
				case <-c.input:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return exited(ch.Wait())
}

func (c *command) confirm(ctx context.Context, q wire.Question) (bool, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return false, err
	}
	select {
	case <-c.answers: // of no question
	default:
	}
	if err := c.frame(wire.Ask, b); err != nil {
		return false, err
	}
	select {
	case yes := <-c.answers:
		return yes, nil
	case <-ctx.Done():
		return false, errors.New("nobody answered in time")
	}
}

// output is one of a command's two.
type output struct {
	c *command
	k wire.Kind
}

func (o output) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		part := b[n:min(len(b), n+wire.MaxFrame)]
		if r := o.c.recorder; r != nil {
			// There is no terminal that would begin lines at their beginning.
			if err := r.Output(bytes.ReplaceAll(part, []byte("\n"), []byte("\r\n"))); err != nil && o.c.s.forced() {
				return n, err
			}
		}
		if err := o.c.frame(o.k, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}
