package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
)

func connectCommand() *cobra.Command {
	r := &reach{}
	var forwards []string
	var stdio bool
	c := &cobra.Command{
		Use:   "connect TARGET",
		Short: "Open a terminal on a target, or forward a port to it",
		Long: `Open a terminal on a target of kind ssh, or the console of the box itself, with the
credential that is kept for the target. ~. at the beginning of a line leaves, ~~ types ~.

With --forward it opens no terminal, but a port of this machine that leads to the port
of the target, until it is interrupted: many connections at once. With --stdio it is one
such connection over standard input and output, for ProxyCommand of OpenSSH (see
gatehouse ssh-config).

The session goes on when its way is lost and another is found within two minutes.`,
		Example: "  gatehouse connect nas\n  gatehouse connect nas --forward 2222\n  gatehouse connect printer --forward 127.0.0.2:9100 --forward 0\n" +
			"  ssh -o ProxyCommand=\"gatehouse connect nas --stdio\" ann@nas.gatehouse",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case stdio && len(forwards) > 0:
				return fail(exitUsage, "--stdio and --forward do not go together")
			case stdio:
				r.usesIn = true
				return r.session(cmd, args[0], []string{"remote-control"}, func(ctx context.Context, s *technician.Session) error {
					return forwardStdio(ctx, s, cmd.InOrStdin(), cmd.OutOrStdout())
				})
			case len(forwards) > 0:
				listen, err := parseForwards(forwards)
				if err != nil {
					return err
				}
				return r.session(cmd, args[0], []string{"remote-control"}, func(ctx context.Context, s *technician.Session) error {
					return forwardPorts(ctx, cmd, s, listen, r.asJSON)
				})
			}
			r.usesIn = true
			return r.session(cmd, args[0], []string{"remote-control", "system-info"}, func(ctx context.Context, s *technician.Session) error {
				return terminal(ctx, cmd, s, r)
			})
		},
	}
	r.flags(c.Flags())
	c.Flags().StringArrayVar(&forwards, "forward", nil, "lead the local `[ADDRESS:]PORT` to the target's port; 0 is any free one; may be given often")
	c.Flags().BoolVar(&stdio, "stdio", false, "be one connection to the target's port, over standard input and output")
	return c
}

// parseForwards takes ports and loopback addresses alone: what is forwarded is
// for programs of this machine.
func parseForwards(in []string) ([]string, error) {
	var out []string
	for _, f := range in {
		host, port, err := net.SplitHostPort(f)
		if err != nil {
			host, port = "127.0.0.1", f
		}
		a, badHost := netip.ParseAddr(host)
		n, badPort := strconv.ParseUint(port, 10, 16)
		if badHost != nil || badPort != nil || !a.IsLoopback() {
			return nil, fail(exitUsage, "--forward %s: it takes PORT, 0 to 65535, or ADDRESS:PORT, where ADDRESS is one of this machine's loopback, such as 127.0.0.1; the port of the target is the one that it was declared with", f)
		}
		out = append(out, net.JoinHostPort(a.String(), strconv.FormatUint(n, 10)))
	}
	return out, nil
}

// forwarded is one open port, as --json prints it.
type forwarded struct {
	Local  string `json:"local"`
	Target string `json:"target"`
	Host   string `json:"host"`
}

func forwardPorts(ctx context.Context, cmd *cobra.Command, s *technician.Session, listen []string, asJSON bool) error {
	var open []net.Listener
	defer func() {
		for _, l := range open {
			l.Close()
		}
	}()
	var shown []forwarded
	t := s.Grant.Target
	for _, a := range listen {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a)
		if err != nil {
			return fmt.Errorf("opening the local port %s: %w", a, err)
		}
		open = append(open, l)
		shown = append(shown, forwarded{l.Addr().String(), t.Name, net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))})
	}
	if asJSON {
		if err := printJSON(cmd.OutOrStdout(), shown); err != nil {
			return err
		}
	} else {
		for _, f := range shown {
			fmt.Fprintf(cmd.OutOrStdout(), "%s leads to %s, %s\n", f.Local, printable(f.Target), f.Host)
		}
	}
	var mu sync.Mutex
	report := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(cmd.ErrOrStderr(), "gatehouse: %s\n", printable(err.Error()))
	}
	ends := make(chan error, len(open))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for _, l := range open {
		go func() { ends <- s.Forward(ctx, l, report) }()
	}
	first := <-ends
	stop()
	for range open[1:] {
		<-ends
	}
	if errors.Is(first, context.Canceled) {
		return first
	}
	return unreached(first)
}

// forwardStdio is one connection for a program that started this one. The end
// of either way is passed on; the program ends when both have ended, or the way
// back with an error.
func forwardStdio(ctx context.Context, s *technician.Session, in io.Reader, out io.Writer) error {
	st, _, err := s.Open(ctx, wire.Open{Do: wire.Forward})
	if err != nil {
		return refusedThere(unreachedStream(err))
	}
	defer st.Close()
	there := make(chan error, 1)
	go func() { // ends with in, or with the program
		_, err := io.Copy(st, in)
		there <- errors.Join(err, st.CloseWrite())
	}()
	cut := context.AfterFunc(ctx, func() { st.Close() })
	defer cut()
	if _, err := io.Copy(out, st); err != nil {
		if ctx.Err() != nil {
			return &ended{exitInterrupted}
		}
		return unreached(because(s, err))
	}
	if c, ok := out.(io.Closer); ok {
		c.Close() // the other program sees the end by it
	}
	select {
	case <-there: // that the target took less than was sent is for the two programs to judge
		return nil
	case <-s.Done():
		return unreached(s.Err())
	case <-ctx.Done():
		return &ended{exitInterrupted} // ssh says that it is done by a signal: that is worth no word
	}
}

// unreachedStream leaves refusals as they are.
func unreachedStream(err error) error {
	var r *wire.Refusal
	if errors.As(err, &r) || errors.Is(err, context.Canceled) {
		return err
	}
	return unreached(err)
}

// terminal shows a terminal of the target in this one.
func terminal(ctx context.Context, cmd *cobra.Command, s *technician.Session, r *reach) error {
	do := wire.Terminal
	switch k := s.Grant.Target.Kind; k {
	case targets.Box:
		do = wire.Console
	case targets.SSH:
	case targets.HTTP, targets.HTTPS:
		return fail(exitUsage, "%s has web pages and no terminal: gatehouse open %s, or --forward PORT", s.Grant.Target.Name, s.Grant.Target.Name)
	default:
		return fail(exitUsage, "%s is a target of kind %s, which has no terminal: give --forward PORT", s.Grant.Target.Name, k)
	}
	t := newTerminal(cmd, true)
	open := wire.Open{Do: do, Width: 80, Height: 24, Term: os.Getenv("TERM")}
	if size, ok := t.size(); ok {
		open.Width, open.Height = size.Width, size.Height
	}
	st, reply, err := s.Open(ctx, open)
	if err != nil {
		return refusedThere(unreachedStream(err))
	}
	if reply.Recorded {
		fmt.Fprintln(t.err, "This session is recorded.")
	}
	if err := t.raw(); err != nil {
		return errors.Join(err, st.Close())
	}
	defer t.restore()
	sizes, stop := t.sizes()
	defer stop()
	screen := technician.Screen{In: cmd.InOrStdin(), Out: cmd.OutOrStdout(), Err: t.err, Sizes: sizes, Question: r.question(t), Typed: t.person != nil}
	if t.person != nil {
		screen.Filter = (&escape{start: true}).filter
	}
	cut := context.AfterFunc(ctx, func() { st.Close() })
	defer cut()
	end, err := technician.Attend(st, screen)
	t.restore()
	if errors.Is(err, technician.ErrLeft) {
		fmt.Fprintf(t.err, "\nLeft %s.\n", printable(s.Grant.Target.Name))
	}
	return howItEnded(end, because(s, err))
}

// because prefers why a session is over to how that was noticed.
func because(s *technician.Session, err error) error {
	if err == nil || errors.Is(err, technician.ErrLeft) || errors.Is(err, technician.ErrHostKey) {
		return err
	}
	select {
	case <-s.Done():
		if why := s.Err(); why != nil {
			return why
		}
	default:
	}
	return err
}

// localTerminal is the one that this program runs in, if it does.
type localTerminal struct {
	person *os.File // nil: nobody types
	err    io.Writer
	mu     sync.Mutex
	before *term.State
}

// newTerminal finds it; shown: only if what comes is seen there too.
func newTerminal(cmd *cobra.Command, shown bool) *localTerminal {
	t := &localTerminal{err: cmd.ErrOrStderr()}
	if isTerminal(cmd.InOrStdin()) && (!shown || isTerminal(cmd.OutOrStdout())) {
		t.person = cmd.InOrStdin().(*os.File)
	}
	return t
}

func (t *localTerminal) size() (technician.Size, bool) {
	if t.person == nil {
		return technician.Size{}, false
	}
	w, h, err := term.GetSize(int(t.person.Fd()))
	return technician.Size{Width: w, Height: h}, err == nil && w > 0 && h > 0
}

func (t *localTerminal) raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.person == nil || t.before != nil {
		return nil
	}
	before, err := term.MakeRaw(int(t.person.Fd()))
	if err != nil {
		return fmt.Errorf("switching the terminal: %w", err)
	}
	t.before = before
	return nil
}

// restore gives the terminal back as it was; it may be called often.
func (t *localTerminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.before != nil {
		term.Restore(int(t.person.Fd()), t.before) // if it is gone there is nobody to tell
		t.before = nil
	}
}

// sizes hears of every change of the terminal's size.
func (t *localTerminal) sizes() (<-chan technician.Size, func()) {
	out := make(chan technician.Size, 1)
	if t.person == nil {
		return out, func() {}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() { // ends with done
		for {
			select {
			case <-done:
				return
			case <-changed:
			}
			if s, ok := t.size(); ok {
				select {
				case <-out: // only the newest counts
				default:
				}
				out <- s
			}
		}
	}()
	return out, func() { signal.Stop(changed); close(done) }
}

// escape finds ~. at the beginning of a line, by which a person leaves a
// terminal that does not answer any more.
type escape struct{ start, tilde bool }

func (e *escape) filter(in []byte) (send []byte, leave bool) {
	out := make([]byte, 0, len(in)+1)
	for _, c := range in {
		if e.tilde {
			e.tilde = false
			switch c {
			case '.':
				return out, true
			case '~': // one of two
			default:
				out = append(out, '~')
			}
		} else if e.start && c == '~' {
			e.tilde, e.start = true, false
			continue
		}
		out = append(out, c)
		e.start = c == '\r' || c == '\n'
	}
	return out, false
}

// question asks whether the target is the right one, as ssh does.
func (r *reach) question(t *localTerminal) func(wire.Question, <-chan []byte) (bool, error) {
	return func(q wire.Question, typed <-chan []byte) (bool, error) {
		if r.hostKey != "" {
			if q.Fingerprint != r.hostKey {
				return false, fail(exitVerification, "%s shows the %s key %s, and not the one of --host-key", q.Target, q.Algorithm, q.Fingerprint)
			}
			return true, nil
		}
		if t.person == nil {
			tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
			if err != nil {
				return false, fail(exitVerification, "%s is not pinned yet, it shows the %s key %s, and nobody is here to be asked: compare it at the target and give it with --host-key", q.Target, q.Algorithm, q.Fingerprint)
			}
			defer tty.Close()
			lines := make(chan []byte)
			done := make(chan struct{})
			defer close(done)
			go func() { // ends with tty
				defer close(lines)
				b := make([]byte, 256)
				for {
					n, err := tty.Read(b)
					if err != nil {
						return
					}
					select {
					case lines <- append([]byte(nil), b[:n]...):
					case <-done:
						return
					}
				}
			}()
			return askHostKey(tty, q, lines), nil
		}
		was := t.before != nil
		t.restore()
		yes := askHostKey(t.err, q, typed)
		if was {
			return yes, t.raw()
		}
		return yes, nil
	}
}

func askHostKey(w io.Writer, q wire.Question, typed <-chan []byte) bool {
	fmt.Fprintf(w, "Nobody has been at %s before through this box. Its %s key is\n  %s\nIf it is the right one, it is pinned for everybody. Type yes, no or the fingerprint: ", q.Target, q.Algorithm, q.Fingerprint)
	var line strings.Builder
	for tries := 0; tries < 3; {
		b, ok := <-typed
		if !ok {
			return false
		}
		line.Write(b)
		text, _, whole := strings.Cut(line.String(), "\n")
		if !whole && line.Len() < 1024 {
			continue
		}
		line.Reset()
		switch strings.TrimSpace(text) {
		case "yes", q.Fingerprint:
			return true
		case "no":
			return false
		}
		tries++
		fmt.Fprint(w, "Type yes, no or the fingerprint: ")
	}
	return false
}
