// Package maintenance is the console of the box itself in a session: a few words that show how it is and try the network. No shell, no change, no file.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/agent/lineedit"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session/wire"
)

// Box is what the console shows of the machine, and tries on its network.
type Box struct {
	Status  func(context.Context) (control.Status, error)
	Log     func(context.Context, control.LogQuery) (control.LogLines, error)
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	Connect func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	commandTime = 30 * time.Second
	maxLines    = 500 // of the log
	maxText     = 2 << 10
)

// Run serves one person until quit, ctrl-d, the end of what next gives, or ctx.
// Next gives what was typed.
func Run(ctx context.Context, b Box, next func(context.Context) ([]byte, error), out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, broken := make(chan []byte), make(chan error, 1)
	go func() {
		defer close(keys)
		for {
			k, err := next(ctx)
			if err != nil {
				broken <- err
				return
			}
			select {
			case keys <- k:
			case <-ctx.Done():
				return
			}
		}
	}()
	c := &console{Box: b, out: out, keys: keys}
	c.greet(ctx)
	for k := range keys {
		for len(k) > 0 {
			n, echo, what, text := c.line.Type(k)
			k = k[n:]
			c.raw(echo)
			switch {
			case what == lineedit.End, what == lineedit.Line && c.command(ctx, text):
				return c.err
			case what != 0:
				c.raw(c.line.Show())
			}
			if c.err != nil {
				return c.err
			}
		}
	}
	select {
	case err := <-broken:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	default:
		return context.Cause(ctx)
	}
}

// console is one person at it.
type console struct {
	Box
	line lineedit.Editor
	out  io.Writer
	keys <-chan []byte
	err  error // of out
}

func (c *console) raw(b []byte) {
	if c.err == nil && len(b) > 0 {
		_, c.err = c.out.Write(b)
	}
}

// say shows one line. Whatever is in it cannot steer the terminal.
func (c *console) say(format string, args ...any) {
	c.raw(append([]byte(wire.Printable(fmt.Sprintf(format, args...), maxText)), "\r\n"...))
}

func (c *console) greet(ctx context.Context) {
	name := "gatehouse"
	if s, err := c.Status(ctx); err == nil {
		name = wire.Printable(s.Name, 64)
		c.say("Maintenance console of %s, version %s. Type help for what there is.", name, s.Version)
	} else {
		c.say("Maintenance console. Type help for what there is. The state of the box cannot be read: %v", err)
	}
	c.line.Prompt = name + "> "
	c.raw(c.line.Show())
}

// command is one that can be typed.
type command struct {
	word, takes, about string
	min, max           int // words after it
	run                func(*console, context.Context, []string) error
}

func commands() []command {
	return []command{
		{"help", "", "this list", 0, 0, (*console).help},
		{"status", "", "state, roles, volume, memory, what guards the keys", 0, 0, (*console).status},
		{"log", "[role] [lines]", "the newest lines of the log, 20 unless you say how many", 0, 2, (*console).log},
		{"interfaces", "", "network interfaces and their addresses", 0, 0, (*console).interfaces},
		{"resolve", "NAME", "which addresses a name has", 1, 1, (*console).resolve},
		{"connect", "HOST PORT [tls]", "whether a port of a host answers; at 443, or with tls, what its certificate says", 2, 3, (*console).connect},
		{"time", "", "clock, and where its time is from", 0, 0, (*console).time},
		{"quit", "", "leave; ctrl-d does too", 0, 0, nil},
	}
}

// command runs one line. True: the person leaves.
func (c *console) command(ctx context.Context, line string) bool {
	words := strings.Fields(line)
	if len(words) == 0 {
		return false
	}
	for _, k := range commands() {
		if k.word != words[0] {
			continue
		}
		if n := len(words) - 1; n < k.min || n > k.max {
			c.say("%s is used as: %s", k.word, strings.TrimSpace(k.word+" "+k.takes))
			return false
		}
		if k.run == nil {
			return true
		}
		c.attended(ctx, func(ctx context.Context) error { return k.run(c, ctx, words[1:]) })
		return false
	}
	c.say("There is no %q here; help shows what there is.", wire.Printable(words[0], 40))
	return false
}

// attended runs one command, which ctrl-c ends. What else is typed meanwhile is
// not kept.
func (c *console) attended(ctx context.Context, run func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	keys := c.keys
	for {
		select {
		case err := <-done:
			if err != nil {
				c.say("%v", err)
			}
			return
		case k, ok := <-keys:
			if !ok {
				keys = nil
				cancel()
			}
			if strings.ContainsRune(string(k), 3) {
				cancel()
			}
		}
	}
}

func (c *console) help(context.Context, []string) error {
	for _, k := range commands() {
		c.say("  %-25s %s", strings.TrimSpace(k.word+" "+k.takes), k.about)
	}
	return nil
}

func (c *console) status(ctx context.Context, _ []string) error {
	s, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("the state of the box cannot be read: %w", err)
	}
	c.say("Name        %s", s.Name)
	c.say("State       %s %s", s.State, s.Reason)
	c.say("Version     %s, kernel %s", s.Version, s.Kernel)
	c.say("Up since    %s", s.Started.UTC().Format(time.RFC3339))
	c.say("Address     %s", s.URL)
	c.say("Keys        %s, grade %s: %s", s.Trust.Mechanism, s.Trust.Grade, s.Trust.Sentence)
	c.say("Firewall    %s", s.Firewall.Sentence)
	c.say("Volume      %s free of %s %s", size(s.Volume.Free), size(s.Volume.Size), s.Volume.Problem)
	c.say("Memory      %s free of %s", size(s.Memory.Available), size(s.Memory.Total))
	c.say("Audit log   %d entries, the newest of %s", s.Audit.Sequence, s.Audit.At.UTC().Format(time.RFC3339))
	for _, r := range s.Roles {
		c.say("Role        %-9s %s, restarts %d %s", r.Name, r.State, r.Restarts, r.LastEnd)
	}
	return nil
}

// size is bytes as people read them.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func (c *console) log(ctx context.Context, words []string) error {
	q := control.LogQuery{Limit: 20}
	for _, w := range words {
		if n, err := strconv.Atoi(w); err == nil {
			if n < 1 || n > maxLines {
				return fmt.Errorf("1 to %d lines can be shown", maxLines)
			}
			q.Limit = n
			continue
		}
		q.Role = control.Role(w)
	}
	l, err := c.Log(ctx, q)
	if err != nil {
		return fmt.Errorf("the log cannot be read: %w", err)
	}
	if len(l.Lines) == 0 {
		c.say("There is no line of %q in the log.", wire.Printable(string(q.Role), 40))
	}
	for i, line := range l.Lines {
		if i == q.Limit || ctx.Err() != nil {
			break
		}
		c.say("%s %-8s %s", line.Time.UTC().Format("2006-01-02 15:04:05"), line.Role, line.Text)
	}
	return nil
}

func (c *console) interfaces(ctx context.Context, _ []string) error {
	s, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("the interfaces cannot be read: %w", err)
	}
	for _, l := range s.Links {
		cable := "no cable"
		if l.Carrier {
			cable = "up"
		}
		var addresses []string
		for _, a := range l.Addresses {
			addresses = append(addresses, a.String())
		}
		c.say("%-10s %-8s %s  %s (%s)", l.Name, cable, l.MAC, strings.Join(addresses, " "), l.Source)
	}
	return nil
}

func (c *console) time(ctx context.Context, _ []string) error {
	s, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("the clock cannot be read: %w", err)
	}
	c.say("%s, from %s (%d servers agreed); never before %s", s.Now.UTC().Format(time.RFC3339), s.Clock.Source, s.Clock.Servers, s.Clock.Floor.UTC().Format(time.RFC3339))
	return nil
}
