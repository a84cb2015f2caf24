package panel

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"gatehouse/appliance/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

const testCode = "7K2M-QX9D-4TBH"

func status() control.Status {
	return control.Status{
		Name: "gatehouse-7f3k", Version: "0.1.0", State: control.StateUnclaimed,
		URL: "https://192.168.1.40/",
		Certificate: control.Certificate{
			SHA256: strings.TrimSuffix(strings.Repeat("9A:41:", 16), ":"),
			Words:  "amber canyon violin drift pencil north",
		},
		Trust:    control.Trust{Mechanism: "tpm", Grade: "B", Sentence: "Sealed to the TPM; the boot chain is not enforced"},
		Clock:    control.Clock{Trusted: true, Source: "ntp", Servers: 3, Time: time.Date(2026, 11, 22, 19, 40, 12, 0, time.UTC)},
		Firewall: control.Firewall{InKernel: true, Sentence: "80 and 443 only, from networks on the link while nobody owns the box"},
		Links:    []control.Link{{Name: "eth0", Carrier: true, Source: "dhcp", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.40/24")}}},
	}
}

// states are the blocks that have a golden file each.
func states() map[string]func(*control.Status, *Screen) {
	return map[string]func(*control.Status, *Screen){
		"unclaimed": func(*control.Status, *Screen) {},
		"found":     func(s *control.Status, _ *Screen) { s.Local = "gatehouse-7f3k-2.local" },
		"ready":     func(s *control.Status, _ *Screen) { s.State, s.Owner = control.StateReady, "ada@example.org" },
		"starting": func(s *control.Status, _ *Screen) {
			*s = control.Status{Name: s.Name, Version: s.Version, State: control.StateStarting, Clock: s.Clock, Links: s.Links}
		},
		"locked": func(s *control.Status, _ *Screen) {
			s.State = control.StateLocked
			s.Reason = "The TPM of this machine is not the one that the data was sealed to. Nothing was opened and nothing was lost: put the disk back into its machine, or erase and start anew."
		},
		"no-card":    func(s *control.Status, _ *Screen) { s.Links, s.URL = nil, "" },
		"no-cable":   func(s *control.Status, _ *Screen) { s.Links[0].Carrier, s.URL = false, "" },
		"no-address": func(s *control.Status, _ *Screen) { s.Links[0].Addresses, s.URL = nil, "" },
		"no-dhcp": func(s *control.Status, _ *Screen) {
			s.Links[0].Source, s.URL = "link-local", "https://169.254.12.7/"
		},
		"clock":     func(s *control.Status, _ *Screen) { s.Clock.Trusted, s.Clock.Source, s.Clock.Servers = false, "rtc", 0 },
		"clock-one": func(s *control.Status, _ *Screen) { s.Clock.Trusted, s.Clock.Servers = false, 1 },
		"waiting": func(s *control.Status, _ *Screen) {
			s.State, s.Owner = control.StateReady, "ada@example.org"
			s.Waiting, s.Firewall.Lists = []control.Candidate{{ID: "x", About: control.AboutNetwork, Actor: "ada@example.org"}}, true
		},
		"data": func(s *control.Status, _ *Screen) {
			s.State, s.Owner = control.StateReady, "ada@example.org"
			s.Volume.Problem = "the data volume is full: erase old logs on the page"
		},
		"development": func(s *control.Status, _ *Screen) { s.Development = true },
		"question":    func(_ *control.Status, x *Screen) { x.Prompt = "Restart now? Type yes, then Enter: " },
		"notice":      func(_ *control.Status, x *Screen) { x.Notice = "The old code is void, this is the new one." },
		"qr":          func(_ *control.Status, x *Screen) { x.QR = true },
	}
}

func TestBOX9_EachStateHasItsBlock(t *testing.T) {
	for name, change := range states() {
		s, x := status(), Screen{Code: testCode, Network: true}
		change(&s, &x)
		got := Render(s, x, Width)
		path := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s%v", name, got, want, err)
		}
		fits(t, name, got)
	}
}

func TestBOX12_NothingIsSaidOfDHCPBeforeItFailed(t *testing.T) {
	s := status()
	s.State, s.URL = control.StateStarting, ""
	s.Links[0].Source, s.Links[0].Addresses = "slaac", []netip.Prefix{netip.MustParsePrefix("fe80::5054:ff:fe01:203/64")}
	if out := Render(s, Screen{}, Width); !strings.Contains(out, "no address yet: asking for one by DHCP") {
		t.Errorf("the link is just up:\n%s", out)
	}
	s.Links[0].Addresses, s.URL = append(s.Links[0].Addresses, netip.MustParsePrefix("2001:db8::7/64")), "https://[2001:db8::7]/"
	if out := Render(s, Screen{}, Width); !strings.Contains(out, s.URL) || strings.Contains(out, "DHCP") {
		t.Errorf("an address came from a router:\n%s", out)
	}
}

func TestBOX9_OwnerIsNotCutForAVersion(t *testing.T) {
	s := status()
	s.State, s.Owner, s.Development = control.StateReady, "ada@example.org", true
	s.Version = "0.1.0+66faafac4062.changed"
	out := Render(s, Screen{}, Width)
	if !strings.Contains(out, "box of: ada@example.org") || !strings.Contains(out, "0.1.0 (development)") {
		t.Errorf("a long version pushed the owner out:\n%s", out)
	}
	fits(t, "long version", out)
}

func fits(t *testing.T, name, block string) {
	t.Helper()
	l := strings.Split(strings.TrimSuffix(block, "\n"), "\n")
	if len(l) > 24 {
		t.Errorf("%s: %d lines, a console has 24:\n%s", name, len(l), block)
	}
	for _, line := range l {
		if utf8.RuneCountInString(line) > Width {
			t.Errorf("%s: a line of %d columns: %q", name, utf8.RuneCountInString(line), line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' && r != '\u2588' && r != '\u2580' && r != '\u2584' }) {
			t.Errorf("%s: unsafe on a serial line: %q", name, line)
		}
	}
}

func TestACC1_CodeIsShownOnlyWhileUnclaimed(t *testing.T) {
	for _, state := range []control.State{control.StateStarting, control.StateLocked, control.StateReady} {
		s := status()
		s.State = state
		if out := Render(s, Screen{Code: testCode}, Width) + Line(s, testCode); strings.Contains(out, testCode) {
			t.Errorf("%s shows the code:\n%s", state, out)
		}
	}
	s := status()
	if !strings.Contains(Render(s, Screen{Code: testCode}, Width), testCode) || !strings.Contains(Line(s, testCode), "code="+testCode) {
		t.Error("unclaimed does not show the code")
	}
}

func TestLine(t *testing.T) {
	s := status()
	want := "gatehouse: state=unclaimed name=gatehouse-7f3k url=https://192.168.1.40/ code=7K2M-QX9D-4TBH fingerprint=" + s.Certificate.SHA256
	if got := Line(s, testCode); got != want {
		t.Errorf("Line = %q, want %q", got, want)
	}
	if got := Line(control.Status{}, ""); got != "gatehouse: state=- name=- url=- code=- fingerprint=-" {
		t.Errorf("Line of nothing = %q", got)
	}
	s.Name = "a b\nstate=ready\x1b[2J"
	if got := Line(s, ""); strings.Count(got, " ") != 5 || strings.ContainsAny(got, "\n\x1b") || !strings.Contains(got, "name=a_b_state=ready?[2J ") {
		t.Errorf("Line of a hostile name = %q", got)
	}
}

// Whatever the status says, the block stays in its frame and is plain.
func TestHostileTextStaysInItsFrame(t *testing.T) {
	for _, evil := range []string{"\x1b]0;x\x07\x1b[2J", strings.Repeat("x", 300), strings.Repeat("é\n", 50), "\u202etxt", "\r\nState ready"} {
		s := status()
		s.Owner, s.Name, s.Version, s.URL = evil, evil, "1", evil
		s.State = control.StateReady
		out := Render(s, Screen{Notice: evil}, Width)
		for line := range strings.SplitSeq(out, "\n") {
			if len(line) > Width || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q gives the line %q", evil, line)
			}
		}
	}
}

func FuzzRender(f *testing.F) {
	f.Add("name", "reason of the lock", "https://192.168.1.40/", 80, true)
	f.Fuzz(func(t *testing.T, name, reason, url string, width int, qr bool) {
		s := status()
		s.Name, s.Reason, s.URL, s.State = name, reason, url, control.StateLocked
		width = 40 + (width&0x7fffffff)%200
		for line := range strings.SplitSeq(Render(s, Screen{QR: qr}, width), "\n") {
			if n := utf8.RuneCountInString(line); n > max(width, 185) || !qr && n > width {
				t.Errorf("a line of %d columns in %d: %q", n, width, line)
			}
		}
	})
}

// terminal is a console whose keyboard is a pipe.
type terminal struct {
	io.Reader
	mu     sync.Mutex
	out    strings.Builder
	echoed []string
}

func (c *terminal) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(b)
}

func (c *terminal) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *terminal) echo(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.echoed = append(c.echoed, map[bool]string{true: "on", false: "off"}[on])
	return nil
}

func (c *terminal) echoes() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.echoed, " ")
}

type actions struct {
	mu   sync.Mutex
	done []string
	err  error
}

func (a *actions) do(what string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = append(a.done, what)
	return a.err
}

func (a *actions) list() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.done, " ")
}

func (a *actions) NewCode(context.Context) error   { return a.do("code") }
func (a *actions) Restart(context.Context) error   { return a.do("restart") }
func (a *actions) PowerOff(context.Context) error  { return a.do("off") }
func (a *actions) Erase(context.Context) error     { return a.do("erase") }
func (a *actions) RevertAll(context.Context) error { return a.do("undo") }
func (a *actions) ListsOff(context.Context) error  { return a.do("lists off") }

func (a *actions) Unlock(_ context.Context, key []byte) error {
	return a.do("unlock by " + string(key))
}
func (a *actions) ResetFactor(context.Context) error { return a.do("factor") }

// TestNET3_ConsoleLetsTheLockedOutBackIn: what waits is undone by one key, the
// lists are switched off after a question, and neither is offered for nothing.
func TestNET3_ConsoleLetsTheLockedOutBackIn(t *testing.T) {
	b := start(t, false, func(*control.Status) {})
	b.types("6\n")
	b.shows("There is no such choice.")
	b.types("7\n")
	b.shows("There is no such choice.")
	b.set(func() {
		b.status.Waiting = []control.Candidate{{ID: "x", About: control.AboutLists}}
		b.status.Firewall.Lists = true
		b.now = b.now.Add(time.Minute)
	})
	b.shows("6 Undo the change that waits 7 Switch the allowlists off")
	b.types("6\n")
	b.shows("It is as it was before.")
	b.types("7\n")
	b.shows("Type off, then Enter:")
	b.types("no\n")
	b.shows("Nothing was done.")
	b.types("7\n")
	b.shows("Type off, then Enter:")
	b.types("off\n")
	b.shows("The allowlists are off.")
	b.actions.mu.Lock()
	defer b.actions.mu.Unlock()
	if got := strings.Join(b.actions.done, ","); got != "undo,lists off" {
		t.Errorf("done: %s", got)
	}
}

// bench is a panel at work on one console.
type bench struct {
	t        *testing.T
	keyboard *io.PipeWriter
	console  *terminal
	actions  *actions
	links    *links
	mu       sync.Mutex
	now      time.Time
	status   control.Status
}

func start(t *testing.T, screen bool, change func(*control.Status)) *bench {
	t.Helper()
	r, w := io.Pipe()
	b := &bench{t: t, keyboard: w, console: &terminal{Reader: r}, actions: &actions{}, links: newLinks(), now: time.Unix(1e9, 0), status: status()}
	change(&b.status)
	p := New(Config{
		Terminals: []Terminal{{Name: "test", ReadWriter: b.console, Screen: screen, Echo: b.console.echo}},
		Read: func() (control.Status, string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.status, testCode
		},
		Now: func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.now
		},
		Actions: b.actions, Network: b.links, Log: slog.New(slog.DiscardHandler), Every: time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
		w.Close()
	})
	b.shows("Open ")
	return b
}

func (b *bench) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *bench) types(s string) {
	b.t.Helper()
	if _, err := io.WriteString(b.keyboard, s); err != nil {
		b.t.Fatal(err)
	}
}

// shows waits until text stands on the console and forgets what stood before.
func (b *bench) shows(text string) {
	b.t.Helper()
	for range 5000 {
		if out := b.console.text(); strings.Contains(strings.Join(strings.Fields(out), " "), strings.TrimSpace(text)) {
			b.console.mu.Lock()
			b.console.out.Reset()
			b.console.mu.Unlock()
			return
		}
		time.Sleep(time.Millisecond)
	}
	b.t.Fatalf("the console does not show %q:\n%s", text, b.console.text())
}

func TestBOX9_EraseAsksTwice(t *testing.T) {
	b := start(t, false, func(s *control.Status) { s.State = control.StateLocked })
	for _, refused := range []string{"5\nyes\n", "5\ngatehouse\n", "5\n\n", "5\ngatehouse-7f3k\nyes\n", "5\ngatehouse-7f3k\n\n", "5\nGATEHOUSE-7F3K\n", "5\n5\n"} {
		b.types(refused)
		b.shows("Nothing was done.")
	}
	if done := b.actions.list(); done != "" {
		t.Fatalf("done without being asked twice: %s", done)
	}
	b.types("5\n")
	b.shows("will be gone for ever")
	b.types("gatehouse-7f3k\n")
	b.shows("Once more")
	b.types("gatehouse-7f3k\n")
	b.shows("Erased: the keys are gone.")
	if done := b.actions.list(); done != "erase" {
		t.Errorf("done: %s", done)
	}
}

func TestKEY8_ALockedBoxTakesTheRecoveryKeyAtItsConsole(t *testing.T) {
	b := start(t, false, func(s *control.Status) { s.State = control.StateLocked })
	b.types("9\n")
	b.shows("The recovery key of this box")
	b.types("\n")
	b.shows("Nothing was done.")
	b.types("9\n")
	b.shows("The recovery key of this box")
	b.types("AAAAAAA-BBBBBBB\n")
	b.shows("The data is open.")
	if done := b.actions.list(); done != "unlock by AAAAAAA-BBBBBBB" {
		t.Errorf("done: %s", done)
	}
}

// The words stand on a line of their own only where somebody can use them.
func TestUnlockLine(t *testing.T) {
	s := status()
	s.Unlocking.Words = "amber canyon violin drift pencil north"
	if s.State = control.StateReady; UnlockLine(s) != "" {
		t.Errorf("an open box: %q", UnlockLine(s))
	}
	if s.State = control.StateLocked; UnlockLine(s) != "gatehouse: unlock words: amber canyon violin drift pencil north" {
		t.Errorf("%q", UnlockLine(s))
	}
	if s.Unlocking.Words = ""; UnlockLine(s) != "" {
		t.Errorf("without words: %q", UnlockLine(s))
	}
}

// A passphrase is not seen while it is typed, nor is anything typed in its
// place; afterwards what is typed is seen again, whatever the answer was.
func TestKEY2_ALockedBoxTakesThePassphraseAtItsConsole(t *testing.T) {
	b := start(t, false, func(s *control.Status) {
		s.State = control.StateLocked
		s.Unlocking = control.Unlocking{Words: "amber canyon violin drift pencil north", Takes: []string{control.TakesPassphrase, control.TakesRecovery}}
	})
	for _, shown := range []string{"Proof amber canyon violin drift pencil north for gatehouse unlock, which asks for them", "9 Passphrase or recovery key"} {
		b.types("\n")
		b.shows(shown)
	}
	for _, answer := range []string{"", "a long passphrase"} {
		b.types("9\n")
		b.shows("The passphrase of this box")
		if got := b.console.echoes(); !strings.HasSuffix(got, "off") {
			t.Errorf("while it is typed, echo went %s", got)
		}
		b.types(answer + "\n")
		b.shows(map[bool]string{true: "Nothing was done.", false: "The data is open."}[answer == ""])
		if got := b.console.echoes(); !strings.HasSuffix(got, "on") {
			t.Errorf("afterwards, echo went %s", got)
		}
	}
	b.types("9\n")
	b.shows("The passphrase of this box")
	b.set(func() { b.now = b.now.Add(time.Hour) })
	b.shows("No answer: nothing was done.")
	if got := b.console.echoes(); got != "off on off on off on" {
		t.Errorf("echo went %s", got)
	}
	if done := b.actions.list(); done != "unlock by a long passphrase" {
		t.Errorf("done: %s", done)
	}
}

func TestBOX9_OnlyWhatExistsIsOffered(t *testing.T) {
	b := start(t, false, func(s *control.Status) { s.State, s.URL = control.StateReady, "" })
	for _, choice := range []string{"2", "0", "6", "7", "9", "x", "11", "2 3", "\x1b[A", strings.Repeat("2", 300)} {
		b.types(choice + "\n")
		b.shows("There is no such choice.")
	}
	if done := b.actions.list(); done != "" {
		t.Errorf("done: %s", done)
	}
}

func TestBOX9_Menu(t *testing.T) {
	b := start(t, true, func(*control.Status) {})
	b.types("2\n")
	b.shows("this is the new one")
	b.types("0\n")
	b.shows("Enter goes back")
	b.types("\n")
	b.shows("1 Network 2 New code")
	b.types("3\nyes\n")
	b.shows("Restarting.")
	b.types("4\nyes\r\n")
	b.shows("Switching off.")
	if done := b.actions.list(); done != "code restart off" {
		t.Errorf("done: %s", done)
	}
	b.actions.mu.Lock()
	b.actions.err = errors.New("the audit log cannot be written")
	b.actions.mu.Unlock()
	b.types("2\n")
	b.shows("It did not work: the audit log cannot be written.")
}

func TestQuestionsDoNotWaitForEver(t *testing.T) {
	b := start(t, false, func(*control.Status) {})
	b.types("3\n")
	b.shows("Type yes")
	b.set(func() { b.now = b.now.Add(2 * time.Minute) })
	b.shows("No answer")
	b.types("yes\n")
	b.shows("There is no such choice.")
	if done := b.actions.list(); done != "" {
		t.Errorf("done: %s", done)
	}
}

func TestBlockIsPrintedWhenItChanges(t *testing.T) {
	b := start(t, false, func(*control.Status) {})
	for range 200 { // the clock runs, counters count
		b.set(func() {
			b.status.Clock.Time = b.status.Clock.Time.Add(time.Minute)
			b.status.Memory.Available++
			b.now = b.now.Add(time.Minute)
		})
		time.Sleep(time.Millisecond)
	}
	if out := b.console.text(); out != "" {
		t.Errorf("printed without a change:\n%s", out)
	}
	b.set(func() { b.status.URL = "https://192.168.1.41/" })
	b.shows("url=https://192.168.1.41/ ")
	b.set(func() { b.now = b.now.Add(time.Minute) })
	// A status that flutters within the pause is not printed each time.
	for i := range 100 {
		b.set(func() { b.status.Volume.Problem = strings.Repeat("x", i%7) })
		time.Sleep(2 * time.Millisecond)
	}
	if n := strings.Count(b.console.text(), "box of:"); n > 2 {
		t.Errorf("a fluttering status was printed %d times", n)
	}
}

// A console that hangs holds up neither the other nor the end.
func TestHangingTerminal(t *testing.T) {
	r, w := io.Pipe() // nobody reads: Write hangs
	defer r.Close()
	well := &terminal{Reader: strings.NewReader("")}
	p := New(Config{
		Terminals: []Terminal{
			{Name: "hangs", ReadWriter: struct {
				io.Reader
				io.Writer
			}{strings.NewReader(""), w}},
			{Name: "well", ReadWriter: well},
		},
		Read: func() (control.Status, string) { return status(), testCode },
		Now:  time.Now, Actions: &actions{}, Log: slog.New(slog.DiscardHandler), Every: time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	for !strings.Contains(well.text(), "Firewall") {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-ended
}
