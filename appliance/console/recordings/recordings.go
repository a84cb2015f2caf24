// Package recordings is the pages of what sessions showed: the list, the player, the download.
package recordings

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/remote"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

//go:embed *.html
var files embed.FS

//go:embed player.js
var player []byte

// castTime is how long a recording may take to be taken: one of a day, over a slow line.
const castTime = 30 * time.Minute

// Ports are what this package asks of the broker, which writes the audit log
// before each effect; that a recording was read is one.
type Ports struct {
	Recordings      func(context.Context) ([]api.RecordingInfo, error)
	Cast            func(context.Context, broker.Who, session.ID, io.Writer) error // asciicast v2
	RemoveRecording func(context.Context, broker.Who, session.ID) error
}

// Pages are the routes of the recordings.
type Pages struct {
	Ports
	list, play, ask shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name, "parts.html") }
	return &Pages{p, parse("recordings.html"), parse("play.html"), parse("ask.html")}
}

// Routes are this package's rows of the table. Removing one removes a proof, so
// it takes more than the right to see it.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, r right.Right, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: r, Handle: h}
	}
	return []shell.Route{
		row("GET", "/recordings", right.ReadRecordings, p.show), row("GET", "/recordings/play", right.ReadRecordings, p.open),
		row("GET", "/recordings/cast", right.ReadRecordings, p.cast), row("GET", "/recordings/text", right.ReadRecordings, p.text),
		row("GET", "/recordings/remove", right.ManageSessions, p.openRemove), row("POST", "/recordings/remove", right.ManageSessions, p.remove),
		shell.PageAsset("player.js", player),
	}
}

// Row is a recording as it is shown.
type Row struct {
	api.RecordingInfo
	Length string
}

func rowOf(r api.RecordingInfo) Row { return Row{r, length(r.Seconds)} }

type listView struct {
	Rows   []Row
	Remove bool // the person may
}

func (p *Pages) show(v *shell.Visit) error {
	list, err := p.Recordings(v.Ctx())
	if err != nil {
		return err
	}
	w := listView{Remove: right.May(v.Person().Role, right.ManageSessions)}
	for _, r := range list {
		w.Rows = append(w.Rows, rowOf(r))
	}
	return v.Show(p.list, w)
}

// named is the recording that the address or the form names.
func (p *Pages) named(v *shell.Visit) (Row, error) {
	none := shell.Refuse("There is no such recording. It may have been removed; the page Recordings lists those that are.")
	var id session.ID
	if err := id.UnmarshalText([]byte(v.R.FormValue("session"))); err != nil {
		return Row{}, none
	}
	list, err := p.Recordings(v.Ctx())
	if err != nil {
		return Row{}, err
	}
	for _, r := range list {
		if r.Session == id {
			return rowOf(r), nil
		}
	}
	return Row{}, none
}

type playView struct {
	Row
	Remove bool
	Bundle xterm.Bundle
	Player string // address of the script
}

func (p *Pages) open(v *shell.Visit) error {
	r, err := p.named(v)
	if err != nil {
		return err
	}
	return v.Show(p.play, playView{r, right.May(v.Person().Role, right.ManageSessions), xterm.Open(), shell.AssetAddress("player.js", player)})
}

// answer writes the headers with the first byte, so that an error before it is
// an error's page.
type answer struct {
	v     *shell.Visit
	heads map[string]string
	begun bool
}

func (a *answer) Write(b []byte) (int, error) {
	if !a.begun {
		a.begun = true
		for name, value := range a.heads {
			a.v.W.Header().Set(name, value)
		}
	}
	return a.v.W.Write(b)
}

// lastTime passes an asciicast on, and can add a marker at its end.
type lastTime struct {
	to    io.Writer
	start []byte // of the newest line
	whole bool   // it is, and the next byte begins another
}

const lineStart = 32 // bytes, enough for the time

func (l *lastTime) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		if l.whole {
			l.start, l.whole = l.start[:0], false
		}
		i := bytes.IndexByte(rest, '\n')
		line := rest
		if i >= 0 {
			line, l.whole = rest[:i], true
		}
		l.start = append(l.start, line[:min(len(line), lineStart-len(l.start))]...)
		rest = rest[min(len(rest), len(line)+1):]
	}
	return l.to.Write(b)
}

// mark adds a marker at the time of the last line; a line that is half there is ended first.
func (l *lastTime) mark(text string) {
	at, _, _ := bytes.Cut(bytes.TrimPrefix(l.start, []byte("[")), []byte(","))
	if !json.Valid(at) || len(at) == 0 || at[0] == '{' {
		at = []byte("0")
	}
	b, err := json.Marshal([]any{json.RawMessage(at), "m", text})
	if err != nil {
		return // a number and two texts always are JSON
	}
	if !l.whole {
		b = append([]byte("\n"), b...)
	}
	l.to.Write(append(b, '\n')) // the browser may be gone; there is nobody else to tell
}

func (p *Pages) send(v *shell.Visit, r Row, kind, suffix string, to func(*answer) (io.Writer, func(error))) error {
	if err := http.NewResponseController(v.W).SetWriteDeadline(time.Now().Add(castTime)); err != nil {
		return fmt.Errorf("giving the answer its time: %w", err)
	}
	a := &answer{v: v, heads: map[string]string{"Content-Type": kind}}
	if suffix != "" {
		a.heads["Content-Disposition"] = fmt.Sprintf("attachment; filename=%q", v.Box.Name+"-"+r.Started.UTC().Format("20060102-150405")+"-"+r.Session.String()[:8]+suffix)
	}
	w, end := to(a)
	err := p.Cast(v.Ctx(), remote.Who(v), r.Session, w)
	if err != nil && !a.begun {
		return err
	}
	end(err)
	return nil
}

// cast is the download, and what the player plays. What cannot be read to its
// end says so in a marker: the browser has taken the file for good by then.
func (p *Pages) cast(v *shell.Visit) error {
	r, err := p.named(v)
	if err != nil {
		return err
	}
	return p.send(v, r, "application/x-asciicast", ".cast", func(a *answer) (io.Writer, func(error)) {
		last := &lastTime{to: a}
		return last, func(err error) {
			if err != nil {
				last.mark("the recording cannot be read further: " + shell.Told(err.Error()))
			}
		}
	})
}

// text is the transcript, for those who have no script or no eyes for a player.
func (p *Pages) text(v *shell.Visit) error {
	r, err := p.named(v)
	if err != nil {
		return err
	}
	return p.send(v, r, "text/plain; charset=utf-8", "", func(a *answer) (io.Writer, func(error)) {
		t := &transcript{to: a}
		return t, t.end
	})
}

func (p *Pages) openRemove(v *shell.Visit) error {
	r, err := p.named(v)
	if err != nil {
		return err
	}
	return v.Show(p.ask, r)
}

func (p *Pages) remove(v *shell.Visit) error {
	r, err := p.named(v)
	if err == nil {
		err = p.RemoveRecording(v.Ctx(), remote.Who(v), r.Session)
	}
	if err != nil {
		return err
	}
	v.Redirect("/recordings?done=recording-removed")
	return nil
}
