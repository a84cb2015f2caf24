package monitor

import (
	"context"
	"fmt"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
)

// hostFiles is what is known of lists that are files of the host.
type hostFiles struct {
	looked   bool
	kept     lists.Digest      // of the lists in force
	seen     lists.Digest      // of those that were judged last
	problems []control.Problem // why they did not become the ones in force
}

// ReadFiles reads the lists of the host's folder, whenever it may have changed.
// They take effect without waiting to be kept: who writes files on the host has
// the host's console, and cannot lock himself out of it. True asks for another
// look soon.
func (m *Monitor) ReadFiles(ctx context.Context) (again bool) {
	if m.cfg.Lists == nil || m.cfg.Lists.Files == "" {
		return false
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	if m.State() != control.StateReady {
		return true // loadLists reads them before the state in which they judge
	}
	return m.readFiles(ctx)
}

// readFiles puts what is in the folder in force, or says why not.
func (m *Monitor) readFiles(ctx context.Context) (again bool) {
	folder, dir := m.cfg.Lists.Folder, m.cfg.Lists.Files
	f := m.files
	if !f.looked {
		var err error
		if f.kept, err = folder.KeptDigest(); err != nil {
			m.cfg.Logger.Warn("comparing the files of the host with the lists in force", "err", err)
		}
		f.looked = true
	}
	digest, problems, again := lists.Survey(dir)
	switch {
	case len(problems) > 0:
		f.seen, f.problems = lists.Digest{}, problems
		m.noteFiles(f)
		return again
	case digest == f.kept:
		f.seen, f.problems = digest, nil
		m.noteFiles(f)
		return false
	case digest == f.seen:
		return false // the same files, the same judgement
	}
	candidate, digest, problems, again := folder.Import(dir)
	if candidate != "" {
		var err error
		if problems, err = m.acceptFiles(ctx, candidate); err != nil {
			problems, digest, again = []control.Problem{{File: dir, Reason: err.Error()}}, lists.Digest{}, true
		}
	}
	f.seen, f.problems = digest, problems
	if len(problems) == 0 {
		f.kept = digest
	} else if err := folder.Drop(candidate); err != nil {
		m.cfg.Logger.Warn("forgetting refused lists", "err", err)
	}
	m.noteFiles(f)
	return again
}

// acceptFiles judges a copy of the files and puts it in force. A power cut
// before it is kept brings the lists of before, and then these files again.
func (m *Monitor) acceptFiles(ctx context.Context, candidate string) ([]control.Problem, error) {
	folder := m.cfg.Lists.Folder
	a, err := m.runFilter(ctx, lists.Order{Folder: candidate, Before: folder.Kept()})
	if err == nil && a.Error != "" {
		err = fmt.Errorf("judging the allowlists: %s", a.Error)
	}
	if err != nil || len(a.Report.Problems) > 0 {
		return a.Report.Problems, err
	}
	event := control.Event{Actor: "host", Action: "apply allowlists", Object: m.cfg.Lists.Files, Detail: map[string]string{"change": shorten(strings.Join(a.Report.Summary, " "))}}
	if err := m.audit(ctx, event); err != nil {
		return nil, err
	}
	err = m.putInForce(ctx, candidate)
	if err == nil {
		err = folder.Keep(candidate)
	}
	if err != nil {
		// On either side of the swap, or in force and not on disk: what is kept
		// is what counts, so it is put back, and the files are tried again.
		if again := m.putKeptBack(ctx); again != nil {
			m.cfg.Logger.Error("putting back the lists that are kept", "err", again)
		}
		return nil, fmt.Errorf("the lists stay as they were: %w", err)
	}
	m.Refilter()
	m.cfg.Logger.Info("the lists of the host are in force", "folder", m.cfg.Lists.Files, "change", a.Report.Summary)
	return nil, nil
}

// putKeptBack: without lists that were ever good the box stays closed, as it was.
func (m *Monitor) putKeptBack(ctx context.Context) error {
	if m.cfg.Lists.Folder.Kept() == "" {
		m.mu.Lock()
		m.lists = judged{}
		m.mu.Unlock()
	} else if err := m.putInForce(ctx, m.cfg.Lists.Folder.Kept()); err != nil {
		return err
	}
	m.Refilter()
	return nil
}

// noteFiles remembers a judgement for the faces, and logs it when it is another
// one than before. It runs with m.changing held, as all that writes m.files.
func (m *Monitor) noteFiles(f hostFiles) {
	m.mu.Lock()
	before := m.files.problems
	m.files = f
	m.mu.Unlock()
	if len(f.problems) > 0 && (len(before) == 0 || before[0] != f.problems[0]) {
		p := f.problems[0]
		m.cfg.Logger.Error("the lists of the host are refused, the last good ones stay", "file", p.File, "line", p.Line, "reason", p.Reason, "problems", len(f.problems))
	}
}

// mayEdit refuses edits of lists that are files of the host.
func (m *Monitor) mayEdit() error {
	if err := m.mayList(); err != nil {
		return err
	}
	if dir := m.cfg.Lists.Files; dir != "" {
		return &control.Error{Code: control.CodeState, Text: fmt.Sprintf("these lists are files of the host: change them there, in %s", dir)}
	}
	return nil
}
