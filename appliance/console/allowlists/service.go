// Package allowlists is the pages and the API of who may reach the box.
package allowlists

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/netfilter/allowlist"
)

// Ports are the requests of the privileged process that this package makes.
type Ports struct {
	Exposure func(context.Context) (control.Exposure, error)
	Lists    func(context.Context) (control.Lists, error)
	Read     func(context.Context, control.ListsRead) (control.ListsPart, error)
	Stage    func(context.Context, control.ListsStage) error
	Try      func(context.Context, control.ListsTry) (control.ListsReport, error)
	Keep     func(context.Context, control.Keep) error
	Revert   func(context.Context, control.Revert) error
	// Judge says which lists have an address and what it may reach, by what is
	// in force now.
	Judge func(netip.Addr) ([]string, allowlist.Scope)
	// Staging is held over a proposal: the staging area is one for all people.
	Staging sync.Locker
}

// Document is a whole policy as it is proposed: a list that is not in it is
// removed, one without a text keeps its ranges.
type Document struct {
	Enabled bool           `json:"enabled"`
	XDP     allowlist.XDP  `json:"xdp,omitempty"` // auto, on, off; "": as it is
	Lists   []ListDocument `json:"lists"`
}

// ListDocument is one list.
type ListDocument struct {
	Name     string   `json:"name"`
	Enabled  bool     `json:"enabled"`
	Scopes   []string `json:"scopes"`
	Note     string   `json:"note,omitempty"`
	AllowAll bool     `json:"allow_all,omitempty"`
	Text     *string  `json:"text,omitempty"` // the file; null: as it is
}

// service puts requests together.
type service struct{ Ports }

const part = 48 << 10

// file reads a file in force; one that is not there is empty.
func (s *service) file(ctx context.Context, name string) ([]byte, error) {
	var b bytes.Buffer
	for {
		p, err := s.Read(ctx, control.ListsRead{File: name, Offset: int64(b.Len())})
		if err != nil {
			var refused *control.Error
			if b.Len() == 0 && errors.As(err, &refused) && refused.Code == control.CodeInvalid {
				return nil, nil
			}
			return nil, err
		}
		b.Write(p.Data)
		if len(p.Data) == 0 || int64(b.Len()) >= p.Size {
			return b.Bytes(), nil
		}
	}
}

// document is the policy in force, without texts.
func (s *service) document(ctx context.Context) (Document, error) {
	b, err := s.file(ctx, allowlist.Index)
	if err != nil {
		return Document{}, err
	}
	settings, err := allowlist.ParseSettings(b)
	if err != nil {
		return Document{}, fmt.Errorf("reading the lists in force: %w", err)
	}
	d := Document{Enabled: settings.Enabled, XDP: settings.XDP}
	for _, l := range settings.Lists {
		d.Lists = append(d.Lists, ListDocument{Name: l.Name, Enabled: l.Enabled, Scopes: l.Scopes, Note: l.Note, AllowAll: l.AllowAll})
	}
	return d, nil
}

func (d *Document) find(name string) *ListDocument {
	if i := slices.IndexFunc(d.Lists, func(l ListDocument) bool { return l.Name == name }); i >= 0 {
		return &d.Lists[i]
	}
	return nil
}

// propose stages the document and has it judged; unless it is a dry run it
// takes effect.
func (s *service) propose(ctx context.Context, d Document, q control.ListsTry) (control.ListsReport, error) {
	s.Staging.Lock()
	defer s.Staging.Unlock()
	before, err := s.document(ctx)
	if err != nil {
		return control.ListsReport{}, err
	}
	settings := allowlist.Settings{Enabled: d.Enabled, XDP: cmp.Or(d.XDP, before.XDP)}
	for _, l := range d.Lists {
		if wrong := allowlist.CheckName(l.Name); wrong != "" {
			return control.ListsReport{}, shell.Refuse(fmt.Sprintf("%.40q: %s.", l.Name, wrong))
		}
		settings.Lists = append(settings.Lists, allowlist.ListSettings{Name: l.Name, Enabled: l.Enabled, Scopes: l.Scopes, Note: l.Note, AllowAll: l.AllowAll})
	}
	index, err := settings.Format()
	if err != nil {
		return control.ListsReport{}, err
	}
	if err := s.Stage(ctx, control.ListsStage{Reset: true}); err != nil {
		return control.ListsReport{}, err
	}
	for _, l := range before.Lists {
		if d.find(l.Name) == nil {
			if err := s.Stage(ctx, control.ListsStage{File: l.Name + allowlist.Suffix, Remove: true}); err != nil {
				return control.ListsReport{}, err
			}
		}
	}
	if err := s.stage(ctx, allowlist.Index, index); err != nil {
		return control.ListsReport{}, err
	}
	for _, l := range d.Lists {
		switch {
		case l.Text != nil:
			err = s.stage(ctx, l.Name+allowlist.Suffix, []byte(*l.Text))
		case before.find(l.Name) == nil:
			err = s.stage(ctx, l.Name+allowlist.Suffix, nil)
		}
		if err != nil {
			return control.ListsReport{}, err
		}
	}
	return s.Try(ctx, q)
}

func (s *service) stage(ctx context.Context, name string, b []byte) error {
	for at := 0; ; at += part {
		end := min(at+part, len(b))
		if err := s.Stage(ctx, control.ListsStage{File: name, Offset: int64(at), Data: b[at:end]}); err != nil {
			return err
		}
		if end == len(b) {
			return nil
		}
	}
}
