// Package auditlog is the page that reads, verifies and exports the audit log.
package auditlog

import (
	"embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/audit"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// exportTime is how long the whole log may take to be taken.
const exportTime = 30 * time.Minute

// pageSize is how many rows a page has.
const pageSize = 50

// Pages are the routes of the audit log.
type Pages struct {
	log  audit.Reader
	page shell.Page
}

// New makes the pages.
func New(log audit.Reader) *Pages { return &Pages{log, shell.Parse(files, "audit.html")} }

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	return []shell.Route{
		{Method: "GET", Path: "/audit", States: ready, Need: shell.Full, Right: right.ReadAudit, Handle: p.show},
		{Method: "POST", Path: "/audit/verify", States: ready, Need: shell.Full, Right: right.ReadAudit, Handle: p.verify},
		{Method: "GET", Path: "/audit/export.jsonl", States: ready, Need: shell.Full, Right: right.ReadAudit, Handle: p.export},
	}
}

type view struct {
	Who, What, Text, Day string
	Entries              []audit.Entry
	Damaged              int
	Older                string // address of the next page
	Filtered             bool
	Verdict              string
	Whole                bool
}

func (p *Pages) read(v *shell.Visit) (w view, err error) {
	w.Who, w.What, w.Text, w.Day = v.R.FormValue("who"), v.R.FormValue("what"), v.R.FormValue("text"), v.R.FormValue("day")
	q := audit.Query{Actor: w.Who, Action: w.What, Text: w.Text, Limit: pageSize}
	if w.Day != "" {
		if q.After, err = time.Parse("2006-01-02", w.Day); err != nil {
			return w, shell.Refuse(fmt.Sprintf("%.20q is not a day. Give it as 2026-11-22.", w.Day))
		}
		q.Before = q.After.AddDate(0, 0, 1)
	}
	if below := v.R.FormValue("below"); below != "" {
		if q.Below, err = strconv.ParseUint(below, 10, 64); err != nil {
			return w, shell.Refuse("The page to go on from is not a number.")
		}
	}
	w.Filtered = w.Who+w.What+w.Text+w.Day != ""
	page, err := p.log.Read(q)
	if err != nil {
		return w, fmt.Errorf("reading the audit log: %w", err)
	}
	w.Entries, w.Damaged = page.Entries, page.Damaged
	if page.More && len(page.Entries) > 0 {
		next := url.Values{"below": {fmt.Sprint(page.Entries[len(page.Entries)-1].Sequence)}}
		for k, s := range map[string]string{"who": w.Who, "what": w.What, "text": w.Text, "day": w.Day} {
			if s != "" {
				next.Set(k, s)
			}
		}
		w.Older = "/audit?" + next.Encode()
	}
	return w, nil
}

func (p *Pages) show(v *shell.Visit) error {
	w, err := p.read(v)
	if err != nil {
		return v.ShowAgain(p.page, w, err)
	}
	return v.Show(p.page, w)
}

// verify checks the chain against the head that the writer knows, so that a
// log that was cut short shows.
func (p *Pages) verify(v *shell.Visit) error {
	st, err := v.Box.Status(v.Ctx())
	if err != nil {
		return err
	}
	if err := v.Record("verify", "audit log", nil); err != nil {
		return err
	}
	w, err := p.read(v)
	if err != nil {
		return v.ShowAgain(p.page, w, err)
	}
	report, err := audit.VerifyDir(p.log.Dir, audit.Trust{Sequence: st.Audit.Sequence, Hash: st.Audit.Hash})
	var broken *audit.BrokenError
	switch {
	case errors.As(err, &broken):
		w.Verdict = broken.Sentence
	case err != nil:
		return fmt.Errorf("verifying the audit log: %w", err)
	default:
		w.Verdict, w.Whole = report.Sentence, report.Whole
	}
	return v.Show(p.page, w)
}

func (p *Pages) export(v *shell.Visit) error {
	if err := v.Record("export", "audit log", nil); err != nil {
		return err
	}
	// Two years of a busy box over a slow line take longer than a page may.
	if err := http.NewResponseController(v.W).SetWriteDeadline(time.Now().Add(exportTime)); err != nil {
		return err
	}
	h := v.W.Header()
	h.Set("Content-Type", "application/jsonl")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", v.Box.Name+"-audit.jsonl"))
	_, err := p.log.WriteTo(v.W)
	return err
}
