package consoletest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter/allowlist"
)

// allowlists doubles what the monitor and the filter role do: files are the
// real ones, the kernel is not there, and a candidate stays until it is kept
// or taken back.
type allowlists struct {
	*trials
	folder   *lists.Folder
	path     string // of the candidate's files
	files    string // folder of the host that they come from
	problems []control.Problem
}

// HostLists makes the lists in force files of the host, which are not edited
// here, with what is wrong with those that are there now.
func (b *Box) HostLists(dir string, problems ...control.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lists.files, b.lists.problems = dir, problems
}

func (l *allowlists) mayEdit() error {
	if l.files != "" {
		return refused(control.CodeState, "these lists are files of the host: change them there, in %s", l.files)
	}
	return nil
}

func load(dir string) (allowlist.Policy, []control.Problem, error) {
	if dir == "" {
		return allowlist.Policy{}, nil, nil
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return allowlist.Policy{}, nil, err
	}
	var files []allowlist.File
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil {
			return allowlist.Policy{}, nil, err
		}
		files = append(files, allowlist.File{Name: n.Name(), Data: b})
	}
	p, bad := allowlist.Parse(files)
	return p, bad, nil
}

func (b *Box) handleLists(s *control.Server) {
	folder, err := lists.Open(filepath.Join(b.Dir, "lists"))
	must(b.t, err)
	l := &b.lists
	*l = allowlists{trials: &b.trials, folder: folder}
	locked := func(f func() error) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		return f()
	}
	control.Handle(s, control.OpLists, func(context.Context, control.Role, control.None) (out control.Lists, err error) {
		err = locked(func() error {
			out, err = l.show()
			return err
		})
		return out, err
	})
	control.Handle(s, control.OpListsRead, func(_ context.Context, _ control.Role, q control.ListsRead) (p control.ListsPart, err error) {
		err = locked(func() error {
			p, err = folder.Read(q)
			return err
		})
		return p, err
	})
	control.Handle(s, control.OpListsStage, func(_ context.Context, _ control.Role, q control.ListsStage) (control.None, error) {
		return control.None{}, locked(func() error {
			if err := l.mayEdit(); err != nil {
				return err
			}
			return folder.Stage(q)
		})
	})
	control.Handle(s, control.OpListsTry, func(_ context.Context, _ control.Role, q control.ListsTry) (r control.ListsReport, err error) {
		err = locked(func() error {
			r, err = l.try(q)
			return err
		})
		return r, err
	})
}

func (l *allowlists) show() (control.Lists, error) {
	dir, candidate := l.folder.Kept(), l.candidate(control.AboutLists)
	if candidate != nil {
		dir = l.path
	}
	p, _, err := load(dir)
	if err != nil {
		return control.Lists{}, err
	}
	out := control.Lists{Enabled: p.Enabled, Sentence: "no allowlist: anyone may reach it", Candidate: candidate, Refused: control.Counter{Packets: 31}, Files: l.files, Problems: l.problems}
	for _, one := range p.Lists {
		out.Lists = append(out.Lists, control.List{Name: one.Name, Enabled: one.Enabled, Scopes: one.Scopes.Names(), Note: one.Note, Ranges: len(one.Ranges), Packets: 1204, Changed: time.Now().Add(-50 * time.Hour)})
		out.Ranges += len(one.Ranges)
	}
	if p.Enabled {
		out.Sentence = fmt.Sprintf("%d lists on: %d ranges may reach it", len(out.Lists), out.Ranges)
	}
	return out, nil
}

func (l *allowlists) try(q control.ListsTry) (control.ListsReport, error) {
	if err := l.mayEdit(); err != nil {
		return control.ListsReport{}, err
	}
	staged, err := l.folder.Staged()
	if err != nil {
		return control.ListsReport{}, err
	}
	if err := l.free(control.AboutLists); err != nil && !q.DryRun {
		return control.ListsReport{}, err
	}
	before, _, err := load(l.folder.Kept())
	if err != nil {
		return control.ListsReport{}, err
	}
	p, bad, err := load(staged)
	if err != nil || len(bad) > 0 {
		return control.ListsReport{Problems: bad}, err
	}
	d := allowlist.Diff(before, p)
	// The tests' browsers come from loopback, which is never cut off; the
	// address after it stands for the asker's.
	r := control.ListsReport{Summary: d.Summary, Added: d.Added, Removed: d.Removed}
	r.SelfCut = p.Enabled && len(q.Watch) > 0 && q.Watch[0].IsLoopback() && p.Admits(q.Watch[0])&allowlist.Console == 0
	if q.DryRun {
		return r, nil
	}
	if r.SelfCut && !q.Force {
		r.Problems = []control.Problem{{Text: q.Watch[0].String(), Reason: "your own address would not get in any more"}}
		return r, nil
	}
	if l.path, err = l.folder.Candidate(); err != nil {
		return r, err
	}
	path := l.path
	r.Candidate = l.begin(control.AboutLists, q.Actor, d.Summary, func() error { return l.folder.Keep(path) }, func() error { return l.folder.Drop(path) })
	return r, nil
}
