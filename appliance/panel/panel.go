package panel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/panel/guide"
)

// Actions is what the menu can do. Whoever stands at the console has the box
// in his hands; each action writes the audit log before it acts.
type Actions interface {
	NewCode(ctx context.Context) error
	Restart(ctx context.Context) error
	PowerOff(ctx context.Context) error
	Erase(ctx context.Context) error // everything; the box then restarts
	// The ways out for those who locked themselves out.
	RevertAll(ctx context.Context) error            // what waits to be kept goes back
	ListsOff(ctx context.Context) error             // the lists stay, and judge nobody
	ResetFactor(ctx context.Context) error          // the owner sets up a new second factor
	Unlock(ctx context.Context, typed []byte) error // of a locked box, by what it takes
}

// Network is what the menu sets of the network. Who stands here needs no way
// back by itself: what he sets is kept at once.
type Network interface {
	Network() control.NetworkState
	SetNetwork(ctx context.Context, s control.NetworkSettings) error // refusals are sentences
}

// Terminal is one console in the kernel's line mode, which echoes and edits.
// It is closed at the end, if it can be.
type Terminal struct {
	Name string
	io.ReadWriter
	// Screen is a display, redrawn in place and each minute. Others are taken
	// for a log: they get the block only when it changes, and the line that
	// automation reads.
	Screen bool
	// Echo switches on and off that what is typed is seen; nil: it always is.
	Echo func(on bool) error
}

// Config is what a Panel is made of.
type Config struct {
	Terminals []Terminal
	Read      func() (s control.Status, code string) // asked every second
	Actions   Actions
	Network   Network   // nil: the menu has no such entry
	Installer Installer // nil: this is no medium that installs
	Now       func() time.Time
	Log       *slog.Logger
	Notice    string // shown first, until somebody types
	// Every is how often the status is looked at; 0: each second.
	Every time.Duration
}

const (
	// redrawPause keeps a status that changes all the time from flooding a serial line.
	redrawPause = 3 * time.Second
	// askPause is how long a question waits for its answer; an address takes
	// longer to type than a yes.
	askPause     = time.Minute
	addressPause = 5 * time.Minute
	maxInput     = 128
)

// Panel is the task that draws the block and answers the menu.
type Panel struct {
	c  Config
	mu sync.Mutex // one action at a time
}

// New makes a Panel.
func New(c Config) *Panel {
	if c.Every == 0 {
		c.Every = time.Second
	}
	return &Panel{c: c}
}

func (p *Panel) String() string { return "panel" }

// Run serves each terminal on its own until ctx ends: one that hangs, as a
// serial line does after Ctrl-S, holds up neither the others nor the end.
func (p *Panel) Run(ctx context.Context) error {
	for _, t := range p.c.Terminals {
		s := &session{Panel: p, t: t, notice: p.c.Notice}
		go s.run(ctx) // ends with ctx, or hangs in the kernel until its line goes on
	}
	<-ctx.Done()
	for _, t := range p.c.Terminals {
		if c, ok := t.ReadWriter.(io.Closer); ok {
			go c.Close() // may wait for output to drain
		}
	}
	return ctx.Err()
}

// session is one terminal's.
type session struct {
	*Panel
	t      Terminal
	ask    *question
	asked  time.Time
	qr     bool
	notice string

	line  string // last written
	words string // of UnlockLine, last written
	block string // last drawn, without the time of day
	drawn time.Time
}

// question waits for one line of input.
type question struct {
	shown []string // in the place of the block; nil: the block stays
	text  string
	wait  time.Duration
	blind bool // what is typed is not to be seen
	take  func(ctx context.Context, s *session, answer string)
}

func (s *session) run(ctx context.Context) {
	lines := make(chan string)
	go s.read(ctx, lines)
	tick := time.NewTicker(s.c.Every)
	defer tick.Stop()
	for {
		if err := s.draw(false); err != nil {
			s.c.Log.Warn("the console cannot be written", "terminal", s.t.Name, "error", err)
			return
		}
		select {
		case <-ctx.Done():
			if s.ask != nil {
				s.answered() // what is typed next is seen again
			}
			return
		case <-tick.C:
			if s.ask != nil && s.c.Now().Sub(s.asked) > s.ask.wait {
				s.answered()
				s.notice = "No answer: nothing was done."
			}
		case l, open := <-lines:
			if !open {
				lines = nil // a console without a keyboard still shows
				continue
			}
			s.input(ctx, l)
			if err := s.draw(true); err != nil {
				return
			}
		}
	}
}

// read passes on lines, bounded and cleaned. Too long ones are dropped whole.
func (s *session) read(ctx context.Context, lines chan<- string) {
	defer close(lines)
	in := bufio.NewReaderSize(s.t, maxInput)
	for {
		l, err := in.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			_, err = in.ReadSlice('\n')
		}
		if err != nil {
			return
		}
		text := clean(strings.TrimRight(string(l), "\r\n"))
		if long {
			text = "(too long)"
		}
		select {
		case lines <- text:
		case <-ctx.Done():
			return
		}
	}
}

// draw writes what changed since the last time.
func (s *session) draw(now bool) error {
	status, code := s.c.Read()
	if l := Line(status, code); !s.t.Screen && l != s.line {
		if _, err := fmt.Fprintf(s.t, "%s\n", l); err != nil {
			return err
		}
		s.line = l
	}
	if l := UnlockLine(status); !s.t.Screen && l != s.words {
		if l != "" {
			if _, err := fmt.Fprintf(s.t, "%s\n", l); err != nil {
				return err
			}
		}
		s.words = l
	}
	screen := Screen{Code: code, QR: s.qr && status.URL != "", Notice: s.notice, Network: s.c.Network != nil, Installer: s.c.Installer != nil}
	if s.ask != nil {
		screen.Prompt, screen.Dialogue = s.ask.text, s.ask.shown
	}
	timeless := status
	timeless.Clock.Time = time.Unix(1, 0)
	key, at := Render(timeless, screen, Width), s.c.Now()
	if s.t.Screen {
		key = Render(status, screen, Width) // with the minute
	}
	if !now && (key == s.block || !s.drawn.IsZero() && at.Sub(s.drawn) < redrawPause) {
		return nil
	}
	s.block, s.drawn = key, at
	text := Render(status, screen, Width)
	if s.t.Screen {
		text = "\x1b[H\x1b[2J" + text
	} else {
		text = "\n" + text
	}
	_, err := io.WriteString(s.t, text)
	return err
}

// input takes one line: the answer to a question, or a choice of the menu.
func (s *session) input(ctx context.Context, l string) {
	s.notice, s.qr = "", false
	if q := s.ask; q != nil {
		s.answered()
		q.take(ctx, s, l)
		return
	}
	status, _ := s.c.Read()
	for _, c := range s.choices(status) {
		if c.key == l {
			s.choose(ctx, c, status)
			return
		}
	}
	if l != "" {
		s.notice = "There is no such choice."
	}
}

func (s *session) choose(ctx context.Context, c choice, status control.Status) {
	name := clean(status.Name)
	switch c.key {
	case "0":
		s.qr = true
	case "9":
		s.unlock(takesPassphrase(status))
	case "10":
		s.install()
	case "1":
		s.network()
	case "2":
		s.act(ctx, "The old code is void, this is the new one.", s.c.Actions.NewCode)
	case "3":
		s.question("Restart now? Type yes, then Enter: ", "yes", func(ctx context.Context, s *session) {
			s.act(ctx, "Restarting.", s.c.Actions.Restart)
		})
	case "4":
		s.question("Switch off now? Type yes, then Enter: ", "yes", func(ctx context.Context, s *session) {
			s.act(ctx, "Switching off.", s.c.Actions.PowerOff)
		})
	case "5":
		what := "people, settings, audit log and keys of this box will be gone for ever, and nobody will own it."
		s.question(c.name+": "+what+" Type the name of the box, "+name+", to go on: ", name, func(_ context.Context, s *session) {
			s.question("Once more: everything on "+name+" will be erased now. Type its name again: ", name, func(ctx context.Context, s *session) {
				s.act(ctx, "Erased: the keys are gone. Next the data volume is discarded, what came of it is said here, and the box starts anew.", s.c.Actions.Erase)
			})
		})
	case "6":
		s.act(ctx, "It is as it was before.", s.c.Actions.RevertAll)
	case "7":
		s.question("Anyone could then open the sign-in page. Type off, then Enter: ", "off", func(ctx context.Context, s *session) {
			s.act(ctx, "The allowlists are off. The page switches them on again.", s.c.Actions.ListsOff)
		})
	case "8":
		owner := clean(status.Owner)
		what := "The app, the recovery codes and all sign-ins of " + owner + " end. Until a new app is set up, the password alone opens this box."
		s.question(what+" Type the name of the box, "+name+", to go on: ", name, func(_ context.Context, s *session) {
			s.question("Once more: does "+owner+" know of this? Type yes, then Enter: ", "yes", func(ctx context.Context, s *session) {
				s.act(ctx, "Done. "+owner+" signs in with the password now, and sets up a new app.", s.c.Actions.ResetFactor)
			})
		})
	}
}

// unlock asks for what opens the box. A recovery key is seen while it is typed:
// who stands here has the paper in his hand. A passphrase is known by heart,
// and not seen; a recovery key in its place then is not either.
func (s *session) unlock(passphrase bool) {
	text := "The recovery key of this box, eight groups of seven characters, then Enter: "
	if passphrase {
		text = "The passphrase of this box, or its recovery key, then Enter: "
	}
	s.asks(question{text: text, wait: addressPause, blind: passphrase, take: func(ctx context.Context, s *session, l string) {
		if strings.TrimSpace(l) == "" {
			s.notice = "Nothing was done."
			return
		}
		s.act(ctx, "The data is open. The box goes on.", func(ctx context.Context) error {
			return s.c.Actions.Unlock(ctx, []byte(l))
		})
	}})
}

// network guides through a change of the network.
func (s *session) network() {
	st := s.c.Network.Network()
	if len(st.Links) == 0 {
		s.notice = "No network card was found: there is nothing to set."
		return
	}
	s.guide(guide.New(st))
}

func (s *session) guide(g *guide.Guide) {
	shown, text := g.Question()
	s.asks(question{shown: shown, text: text, wait: addressPause, take: func(ctx context.Context, s *session, l string) {
		outcome, again := g.Answer(l)
		switch outcome {
		case guide.Left:
			s.notice = "Nothing was changed."
		case guide.Set:
			s.act(ctx, "The network is set.", func(ctx context.Context) error { return s.c.Network.SetNetwork(ctx, g.Settings()) })
		default:
			s.guide(g)
			s.notice = again
		}
	}})
}

// question asks for one answer; any other one does nothing.
func (s *session) question(text, answer string, then func(context.Context, *session)) {
	s.asks(question{text: text, wait: askPause, take: func(ctx context.Context, s *session, l string) {
		if l != answer {
			s.notice = "Nothing was done."
			return
		}
		then(ctx, s)
	}})
}

func (s *session) asks(q question) {
	s.ask, s.asked = &q, s.c.Now()
	if q.blind {
		s.echo(false)
	}
}

// answered ends a question. The line that answers it was read to its end.
func (s *session) answered() {
	if s.ask.blind {
		s.echo(true)
	}
	s.ask = nil
}

func (s *session) echo(on bool) {
	if s.t.Echo == nil {
		return
	}
	if err := s.t.Echo(on); err != nil {
		s.c.Log.Warn("whether what is typed is seen cannot be switched", "terminal", s.t.Name, "err", err)
	}
}

// choices are those of the menu, with the network where it can be set.
func (s *session) choices(status control.Status) []choice {
	return choices(status, s.c.Network != nil, s.c.Installer != nil)
}

func (s *session) act(ctx context.Context, done string, do func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := do(ctx); err != nil {
		s.c.Log.Error("the console's choice failed", "terminal", s.t.Name, "error", err)
		s.notice = "It did not work: " + strings.TrimSuffix(err.Error(), ".") + "."
		return
	}
	s.notice = done
}
