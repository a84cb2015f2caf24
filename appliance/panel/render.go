// Package panel draws the box's status block on its consoles and runs the menu below it.
//
// Everything it writes is ASCII, but for the blocks of the QR code, which the
// fonts of the kernel's console and of every terminal since the IBM PC have.
// Text that came from elsewhere is stripped of control characters first.
package panel

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"rsc.io/qr"

	"gatehouse/appliance/control"
)

// Screen is what a console shows beside the status.
type Screen struct {
	Code      string   // claim code, shown only while unclaimed
	QR        bool     // the address as a QR code instead of the block
	Notice    string   // what came of the last choice
	Prompt    string   // what is asked now, instead of the menu
	Dialogue  []string // what the question is about, instead of the block
	Network   bool     // the menu sets the network
	Installer bool     // the menu installs to a disk
}

// Width is that of a console; a block has at most 24 lines of it.
const Width = 80

const (
	indent    = 11
	timeShown = "2006-01-02 15:04 UTC"
)

// Line is what automation reads on the serial console, whenever it changes:
//
//	gatehouse: state=unclaimed name=gatehouse-7f3k url=https://192.168.1.40/ code=7K2M-QX9D-4TBH fingerprint=9A:41:…
//
// All five fields are always there, in this order, without spaces; "-" stands
// for one that is empty. The fingerprint is the SHA-256 of the certificate.
func Line(s control.Status, code string) string {
	field := func(v string) string {
		if v = strings.ReplaceAll(clean(v), " ", "_"); v == "" {
			return "-"
		}
		return v
	}
	if s.State != control.StateUnclaimed {
		code = ""
	}
	return fmt.Sprintf("gatehouse: state=%s name=%s url=%s code=%s fingerprint=%s",
		field(string(s.State)), field(s.Name), field(s.URL), field(code), field(s.Certificate.SHA256))
}

// UnlockLine is what stands behind Line while somebody can unlock the box from
// afar: the words that gatehouse unlock asks for. "" if nobody can.
//
//	gatehouse: unlock words: amber canyon violin drift pencil north
func UnlockLine(s control.Status) string {
	if s.State != control.StateLocked || s.Unlocking.Words == "" {
		return ""
	}
	return "gatehouse: unlock words: " + clean(s.Unlocking.Words)
}

// Render draws the block for a console of width columns.
func Render(s control.Status, screen Screen, width int) string {
	d := &drawing{width: max(width, 40)}
	if screen.QR {
		d.qr(s.URL)
		return d.String()
	}
	d.title(s)
	if screen.Dialogue != nil {
		for _, l := range screen.Dialogue {
			text := strings.TrimLeft(l, " ")
			d.text(l[:len(l)-len(text)], clean(text))
		}
		d.rule()
		d.row(">>", screen.Notice)
		d.text(" ", screen.Prompt)
		return d.String()
	}
	switch s.State {
	case control.StateLocked:
		d.row("Locked", s.Reason)
	case control.StateStarting:
		d.row("Starting", "this takes some seconds")
	}
	d.row("Seed", s.Seed)
	d.open(s)
	if s.State == control.StateUnclaimed && screen.Code != "" {
		d.row("Code", fmt.Sprintf("%-26s type it on the page, it works once", screen.Code))
	}
	if s.Certificate.Words != "" && s.State == control.StateUnclaimed {
		d.row("Proof", s.Certificate.Words)
		d.row("", "for gatehouse setup, which asks for them")
	}
	if s.Unlocking.Words != "" && s.State == control.StateLocked {
		d.row("Proof", s.Unlocking.Words)
		d.row("", "for gatehouse unlock, which asks for them")
	}
	d.hash(s.Certificate.SHA256)
	if s.Trust.Sentence != "" {
		d.row("Keys", s.Trust.Sentence+grade(s.Trust))
	}
	d.row("Clock", clock(s.Clock))
	d.row("Firewall", s.Firewall.Sentence)
	d.row("Data", s.Volume.Problem)
	for _, c := range s.Waiting { // without the seconds, which would print it anew each time
		what := map[string]string{control.AboutLists: "the allowlists", control.AboutNetwork: "the network"}[c.About]
		d.row("Waiting", "a change of "+what+" by "+c.Actor+"; it goes back by itself")
	}
	d.rule()
	d.row(">>", screen.Notice)
	if screen.Prompt != "" {
		d.text(" ", screen.Prompt)
	} else {
		d.menu(s, screen.Network, screen.Installer)
	}
	return d.String()
}

// choices are the menu's entries that do something now. A number means the
// same in every state, so that a page of paper beside the box stays true.
func choices(s control.Status, network, installer bool) []choice {
	started, passphrase := s.State != control.StateStarting, takesPassphrase(s)
	all := []struct {
		choice
		now bool
	}{
		{choice{"1", "Network"}, network && started},
		{choice{"2", "New code"}, s.State == control.StateUnclaimed},
		{choice{"3", "Restart"}, true},
		{choice{"4", "Switch off"}, true},
		{choice{"5", "Erase everything"}, s.State == control.StateReady},
		{choice{"5", "Erase and start anew"}, started && s.State != control.StateReady},
		{choice{"6", "Undo the change that waits"}, len(s.Waiting) > 0},
		{choice{"7", "Switch the allowlists off"}, s.Firewall.Lists},
		{choice{"8", "Reset second factor"}, s.State == control.StateReady},
		{choice{"9", "Recovery key"}, s.State == control.StateLocked && !passphrase},
		{choice{"9", "Passphrase or recovery key"}, s.State == control.StateLocked && passphrase},
		{choice{"10", "Install to a disk"}, installer && started},
		{choice{"0", "Show QR"}, s.URL != ""},
	}
	var c []choice
	for _, x := range all {
		if x.now {
			c = append(c, x.choice)
		}
	}
	return c
}

type choice struct{ key, name string }

func takesPassphrase(s control.Status) bool {
	return slices.Contains(s.Unlocking.Takes, control.TakesPassphrase)
}

type drawing struct {
	strings.Builder
	width int
}

func (d *drawing) line(s string) { d.WriteString(strings.TrimRight(s, " ") + "\n") }

func (d *drawing) rule() { d.line(" " + strings.Repeat("-", d.width-2)) }

func (d *drawing) title(s control.Status) {
	left := program(s, clean(s.Version))
	owner := clean(s.Owner)
	switch {
	case s.State == control.StateLocked || s.State == control.StateStarting:
		owner = "" // not known before the data is open
	case owner == "":
		owner = "nobody yet"
	}
	right := clean(s.Name)
	if owner != "" {
		right += " | box of: " + owner
	}
	if len(left)+len(right) > d.width-4 {
		// Whose box it is says more than which build of a version it is.
		version, _, _ := strings.Cut(clean(s.Version), "+")
		left = program(s, version)
	}
	right = cut(right, d.width-2-len(left)-2)
	d.line(left + strings.Repeat(" ", d.width-1-len(left)-len(right)) + right)
	d.rule()
}

func program(s control.Status, version string) string {
	if s.Development {
		version += " (development)"
	}
	return " Gatehouse " + version
}

// open says where the page is, or what keeps it from being reached.
func (d *drawing) open(s control.Status) {
	carrier, addresses, dhcp := false, 0, false
	for _, l := range s.Links {
		carrier = carrier || l.Carrier
		if l.Carrier {
			for _, a := range l.Addresses {
				if !a.Addr().Is6() || !a.Addr().IsLinkLocalUnicast() { // nobody types those
					addresses++
				}
			}
			dhcp = dhcp || l.Source != "link-local" && l.Source != ""
		}
	}
	switch {
	case len(s.Links) == 0 && s.URL == "":
		d.row("Open", "no network card was found")
	case !carrier && len(s.Links) > 0:
		d.row("Open", "no cable: plug a network cable in")
	case addresses == 0 && s.URL == "":
		d.row("Open", "no address yet: asking for one by DHCP")
	case !dhcp && len(s.Links) > 0:
		d.row("Open", s.URL)
		d.row("", "no DHCP server answered: open it from a computer on the same cable")
	case s.URL == "":
		d.row("Open", "the page is not up yet")
	case s.Local != "":
		d.row("Open", s.URL+"   https://"+s.Local+"/")
	default:
		d.row("Open", s.URL)
	}
}

// hash writes a SHA-256 with colons, 95 characters, in two lines.
func (d *drawing) hash(h string) {
	h = clean(h)
	if h == "" {
		return
	}
	if half := len(h)/2 + 1; len(h) > d.width-indent-2 && half+indent+16 <= d.width && h[half-1] == ':' {
		d.line(" " + pad("SHA-256", indent-1) + h[:half])
		d.line(strings.Repeat(" ", indent) + pad(h[half:], half) + " in the browser")
		return
	}
	d.row("SHA-256", h)
}

func (d *drawing) menu(s control.Status, network, installer bool) {
	line := " "
	for _, c := range choices(s, network, installer) { // an entry is not broken in two
		entry := c.key + " " + c.name
		if len(line)+len(entry) > d.width-1 {
			d.line(line)
			line = " "
		}
		line += entry + "   "
	}
	d.line(line)
	d.text(" ", "Type a number, then Enter.")
}

// row writes a label and its text, wrapped; nothing if there is no text.
func (d *drawing) row(label, text string) {
	if text = clean(text); text != "" {
		d.text(" "+pad(label, indent-1), text)
	}
}

// text writes words after a first prefix, going on below its end.
func (d *drawing) text(prefix, text string) {
	line := prefix
	for word := range strings.SplitAfterSeq(text, " ") {
		if len(line)+len(strings.TrimRight(word, " ")) > d.width-1 && len(line) > len(prefix) {
			d.line(line)
			line = strings.Repeat(" ", len(prefix))
		}
		for len(line)+len(word) > d.width && len(word) > d.width-len(prefix)-1 {
			room := d.width - 1 - len(line)
			d.line(line + word[:room])
			line, word = strings.Repeat(" ", len(prefix)), word[room:]
		}
		line += word
	}
	d.line(line)
}

// qr draws two modules to a character. The light ones are drawn, since a
// console is dark; two modules of quiet zone are enough on it.
func (d *drawing) qr(url string) {
	code, err := qr.Encode(clean(url), qr.L)
	if err != nil {
		d.row("QR", "the address is too long for a QR code: "+url)
		return
	}
	light := func(x, y int) bool {
		return !(x >= 0 && y >= 0 && x < code.Size && y < code.Size && code.Black(x, y))
	}
	const quiet = 2
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b := " "
		for x := -quiet; x < code.Size+quiet; x++ {
			below := y+1 < code.Size+quiet && light(x, y+1)
			switch {
			case light(x, y) && below:
				b += "\u2588"
			case light(x, y):
				b += "\u2580"
			case below:
				b += "\u2584"
			default:
				b += " "
			}
		}
		d.line(b)
	}
	d.row("Open", url)
	d.text(" ", "Enter goes back.")
}

func grade(t control.Trust) string {
	if t.Grade == "" {
		return ""
	}
	return " (grade " + t.Grade + ")"
}

func clock(c control.Clock) string {
	t := c.Time.UTC().Truncate(time.Minute).Format(timeShown)
	switch {
	case c.Time.IsZero():
		return ""
	case !c.Trusted && c.Source == "ntp":
		return fmt.Sprintf("%s, not to be trusted: %s, and three have to", t, map[bool]string{true: "only 1 server says so", false: fmt.Sprintf("only %d servers say so", c.Servers)}[c.Servers == 1])
	case !c.Trusted:
		return t + ", not to be trusted: no time server has answered yet"
	case c.Source == "ntp" && c.Servers == 1:
		return t + ", from 1 server"
	case c.Source == "ntp":
		return fmt.Sprintf("%s, from %d servers", t, c.Servers)
	case c.Source == "":
		return t
	}
	return t + ", from the " + c.Source
}

// clean makes text safe to print on a terminal.
func clean(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s))
}

func pad(s string, n int) string { return fmt.Sprintf("%-*s", n, s) }

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	if n < 3 {
		return ""
	}
	return s[:n-2] + ".."
}
