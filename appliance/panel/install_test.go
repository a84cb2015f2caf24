package panel

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// targets is a medium with two disks, one of them in use.
type targets struct {
	installed []string
	err       error
}

func (g *targets) Targets() ([]Target, error) {
	return []Target{
		{Name: "sda", Words: "sda  Great Disk  1.0 TB", Holds: "sda1 512 MB stuff"},
		{Name: "sdb", Words: "sdb  Stick  4.0 GB", Holds: "no partitions", Refused: "it is in use"},
	}, g.err
}

func (g *targets) Install(_ context.Context, name string) error {
	g.installed = append(g.installed, name)
	return nil
}

// asked types answers at the menu and returns the last notice.
func (g *targets) asked(t *testing.T, answers ...string) string {
	t.Helper()
	p := New(Config{Installer: g, Actions: &actions{}, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Read: func() (control.Status, string) { s := status(); s.State = control.StateLocked; return s, "" }})
	s := &session{Panel: p}
	for _, a := range answers {
		s.input(t.Context(), a)
	}
	return s.notice
}

func TestBOX3_InstallingAsksTwice(t *testing.T) {
	for _, c := range []struct {
		answers []string
		says    string
	}{
		{[]string{"10", ""}, "no disk of that name"},
		{[]string{"10", "sdc"}, "no disk of that name"},
		{[]string{"10", "/dev/sda"}, "no disk of that name"},
		{[]string{"10", "sdb"}, "sdb is refused: it is in use"},
		{[]string{"10", "sda", "yes"}, "Nothing was done"},
		{[]string{"10", "sda", "sdb"}, "Nothing was done"},
	} {
		g := &targets{}
		if said := g.asked(t, c.answers...); !strings.Contains(said, c.says) || len(g.installed) > 0 {
			t.Errorf("%q: %q, installed %v", c.answers, said, g.installed)
		}
	}
	g := &targets{err: errors.New("no /sys")}
	if said := g.asked(t, "10"); !strings.Contains(said, "no /sys") {
		t.Errorf("the disks are not known: %q", said)
	}
	g = &targets{}
	if said := g.asked(t, "10", "sda", "sda"); !strings.Contains(said, "Installing to sda") || len(g.installed) != 1 {
		t.Errorf("%q, installed %v", said, g.installed)
	}
}
