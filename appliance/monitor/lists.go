package monitor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter"
)

// Lists is how the monitor reaches the allowlists. Nil while locked.
type Lists struct {
	Folder *lists.Folder
	// Filter runs the filter role with an order. Form, ports, addresses, kernel
	// and admission are the caller's to fill in.
	Filter func(context.Context, lists.Order) (lists.Answer, error)
	// Files is the folder of the host that the lists are read from; "": people
	// edit them here.
	Files string
}

const filterTime = 60 * time.Second // a million ranges on the smallest box

// judged is what the last run of the filter role put in force.
type judged struct {
	answer  lists.Answer
	loaded  bool
	problem string // why the kept lists could not be put in force
	swapped time.Time
}

// inForce is what the rules shall ask.
func (m *Monitor) inForce() (l netfilter.Lists, closed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.cfg.Lists == nil:
		return netfilter.Lists{Off: true}, false
	case !m.lists.loaded:
		// Not yet, or not possible: nobody but the box's own networks, so that
		// a person near it can mend it.
		return netfilter.Lists{}, true
	}
	return m.lists.answer.InForce, false
}

// loadLists puts what was kept in force, before the state becomes ready.
func (m *Monitor) loadLists(ctx context.Context) {
	if m.cfg.Lists == nil {
		return
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	if _, closed := m.inForce(); !closed {
		return
	}
	if m.cfg.Lists.Files != "" {
		m.readFiles(ctx)
		if _, closed := m.inForce(); !closed || m.cfg.Lists.Folder.Kept() == "" {
			return // in force; or there never were good ones, and the problems say why
		}
	}
	if why := m.cfg.Lists.Folder.Problem(); why != "" {
		m.mu.Lock()
		m.lists.problem = why
		m.mu.Unlock()
		return
	}
	if err := m.putInForce(ctx, m.cfg.Lists.Folder.Kept()); err != nil {
		m.cfg.Logger.Error("the allowlists are not in force; only the box's own networks are let in", "err", err)
		m.mu.Lock()
		m.lists.problem = err.Error()
		m.mu.Unlock()
	}
}

// putInForce has the filter role fill and swap. If it fails the rules before
// stay, or the whole of the new ones is there: it reads back what it did.
func (m *Monitor) putInForce(ctx context.Context, folder string) error {
	a, err := m.runFilter(ctx, lists.Order{
		Folder: folder, Before: m.cfg.Lists.Folder.Kept(), Apply: true,
		Off: m.cfg.Lists.Folder.Off() && folder == m.cfg.Lists.Folder.Kept(),
	})
	if err != nil {
		return err
	}
	if len(a.Report.Problems) > 0 {
		p := a.Report.Problems[0]
		return fmt.Errorf("%s, line %d: %s", p.File, p.Line, p.Reason)
	}
	return nil
}

func (m *Monitor) runFilter(ctx context.Context, o lists.Order) (lists.Answer, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), filterTime)
	defer cancel()
	o.OnLink, o.Kernel = m.addresses(), m.cfg.Filter != nil
	if !o.Apply {
		return m.cfg.Lists.Filter(ctx, o)
	}
	// No rules of ours go into the kernel between its first look and the last.
	m.filtering.Lock()
	defer m.filtering.Unlock()
	a, err := m.cfg.Lists.Filter(ctx, o)
	if err == nil && a.Error != "" {
		err = fmt.Errorf("the filter: %s", a.Error)
	}
	if err != nil || len(a.Report.Problems) > 0 {
		return a, err
	}
	m.mu.Lock()
	m.lists = judged{answer: a, loaded: true, swapped: m.cfg.Now()}
	m.filtered = filterState{} // the rules may be for another state than this one: look again
	m.mu.Unlock()
	return a, nil
}

func (m *Monitor) registerLists(s *control.Server) {
	control.Handle(s, control.OpLists, func(context.Context, control.Role, control.None) (control.Lists, error) { return m.Lists(), nil })
	control.Handle(s, control.OpListsRead, func(_ context.Context, _ control.Role, q control.ListsRead) (control.ListsPart, error) {
		if err := m.mayList(); err != nil {
			return control.ListsPart{}, err
		}
		m.changing.Lock()
		defer m.changing.Unlock()
		return m.cfg.Lists.Folder.Read(q)
	})
	control.Handle(s, control.OpListsStage, func(_ context.Context, _ control.Role, q control.ListsStage) (control.None, error) {
		if err := m.mayEdit(); err != nil {
			return control.None{}, err
		}
		m.changing.Lock()
		defer m.changing.Unlock()
		return control.None{}, m.cfg.Lists.Folder.Stage(q)
	})
	control.Handle(s, control.OpListsTry, m.tryLists)
	control.Handle(s, control.OpKeep, m.keep)
	control.Handle(s, control.OpRevert, m.takeBack)
}

func (m *Monitor) mayList() error {
	if m.cfg.Lists == nil || m.State() == control.StateLocked {
		return errLocked
	}
	return nil
}

const mostWatched = 256

// tryLists judges what is staged, and puts it in force to be kept.
func (m *Monitor) tryLists(ctx context.Context, _ control.Role, q control.ListsTry) (control.ListsReport, error) {
	if err := m.mayEdit(); err != nil {
		return control.ListsReport{}, err
	}
	if len(q.Watch) > mostWatched {
		q.Watch = q.Watch[:mostWatched]
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	if m.State() != control.StateReady {
		return control.ListsReport{}, &control.Error{Code: control.CodeState, Text: fmt.Sprintf("the box is %s: allowlists come after the claim", m.State())}
	}
	folder := m.cfg.Lists.Folder
	staged, err := folder.Staged()
	if err != nil {
		return control.ListsReport{}, err
	}
	if !q.DryRun {
		if err := m.mayTry(control.AboutLists); err != nil {
			return control.ListsReport{}, err
		}
	}
	a, err := m.runFilter(ctx, lists.Order{Folder: staged, Before: folder.Kept(), Watch: q.Watch})
	if err == nil && a.Error != "" {
		err = fmt.Errorf("judging the allowlists: %s", a.Error)
	}
	if err != nil || q.DryRun || len(a.Report.Problems) > 0 {
		return a.Report, err
	}
	if a.Report.SelfCut && !q.Force {
		a.Report.Problems = []control.Problem{{Text: first(q.Watch), Reason: "your own address would not get in any more: add it to a list for the console, or say that you mean it"}}
		return a.Report, nil
	}
	return m.apply(ctx, q, a.Report)
}

func first(a []netip.Addr) string {
	if len(a) == 0 {
		return ""
	}
	return a[0].String()
}

// apply puts a judged candidate in force.
func (m *Monitor) apply(ctx context.Context, q control.ListsTry, report control.ListsReport) (control.ListsReport, error) {
	folder := m.cfg.Lists.Folder
	if err := m.audit(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "try allowlists", Detail: map[string]string{"change": shorten(strings.Join(report.Summary, " "))}}); err != nil {
		return report, err
	}
	candidate, err := folder.Candidate()
	if err != nil {
		return report, err
	}
	back := func(ctx context.Context) error {
		if why := folder.Problem(); why != "" {
			m.closeLists(why)
		} else if err := m.putInForce(ctx, folder.Kept()); err != nil {
			return err
		}
		m.Refilter()
		return folder.Drop(candidate)
	}
	if err := m.putInForce(ctx, candidate); err != nil {
		// It may have failed on either side of the swap.
		if again := back(ctx); again != nil {
			m.cfg.Logger.Error("putting back the lists that are kept", "err", again)
		}
		return report, fmt.Errorf("the lists stay as they were: %w", err)
	}
	m.Refilter()
	c := m.try(control.AboutLists, q.Actor, report.Summary, func(context.Context) error { return folder.Keep(candidate) }, back)
	report.Candidate = &c
	return report, nil
}

// closeLists lets in the box's own networks alone, as a start does whose lists cannot be read.
func (m *Monitor) closeLists(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists, m.filtered = judged{problem: why}, filterState{}
}

func shorten(s string) string {
	const most = 1000
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Lists is what the faces show.
func (m *Monitor) Lists() control.Lists {
	m.mu.Lock()
	j, files := m.lists, m.files.problems
	m.mu.Unlock()
	l := control.Lists{Enabled: j.answer.Enabled, Lists: slices.Clone(j.answer.Lists), Ranges: j.answer.Ranges, Swapped: j.swapped, Sentence: m.listsSentence()}
	if c := m.candidate(control.AboutLists); c.ID != "" {
		l.Candidate = &c
	}
	if j.problem != "" {
		l.Problems = append(l.Problems, control.Problem{Reason: j.problem})
	}
	if m.cfg.Lists != nil {
		l.Files = m.cfg.Lists.Files
		l.Problems = append(l.Problems, files...)
	}
	l.Early, l.XDP = j.answer.Early, len(j.answer.Early.Links) > 0
	if m.cfg.Filter == nil || m.cfg.Counters == nil {
		return l
	}
	counters, err := m.cfg.Counters()
	if err != nil {
		m.cfg.Logger.Warn("reading the filter's counters", "err", err)
	}
	for _, c := range counters {
		switch c.Name {
		case netfilter.WebRefused, netfilter.WebEarly:
			l.Refused.Name = netfilter.WebRefused
			l.Refused.Packets, l.Refused.Bytes = l.Refused.Packets+c.Packets, l.Refused.Bytes+c.Bytes
		}
		if c.Name == netfilter.WebEarly {
			l.Early.Dropped = c
		}
		for i := range l.Lists {
			if c.Name == netfilter.ListCounter(l.Lists[i].Name) {
				l.Lists[i].Packets, l.Lists[i].Bytes = c.Packets, c.Bytes
			}
		}
	}
	return l
}

// listsOn says whether lists judge sources now.
func (m *Monitor) listsOn() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lists.loaded && m.lists.answer.Enabled
}

// listsSentence says in words what the lists do now.
func (m *Monitor) listsSentence() string {
	m.mu.Lock()
	j, state := m.lists, m.state
	m.mu.Unlock()
	where := ""
	if m.cfg.Filter == nil {
		where = " (not in the kernel: the gateway closes connections of others)"
	}
	switch {
	case state == control.StateLocked && m.cfg.Lists != nil && j.loaded && j.answer.Enabled:
		return "locked: the allowlists that were kept before judge"
	case state != control.StateReady:
		return "only the box's own networks may reach it"
	case m.cfg.Lists != nil && !j.loaded:
		return "the allowlists could not be put in force: only the box's own networks may reach it"
	case !j.answer.Enabled:
		return "no allowlist: anyone may reach it" + where
	}
	on := 0
	for _, l := range j.answer.Lists {
		if l.Enabled {
			on++
		}
	}
	return fmt.Sprintf("%s on: %s may reach it%s", count(on, "list"), count(j.answer.Ranges, "range"), where)
}

func count(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// ListsOff switches all lists off for good, for a person at the console.
func (m *Monitor) ListsOff(ctx context.Context) error {
	if err := m.mayList(); err != nil {
		return err
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	if err := m.audit(ctx, control.Event{Actor: "console", Action: "switch allowlists off"}); err != nil {
		return err
	}
	folder := m.cfg.Lists.Folder
	if err := folder.SwitchOff(); err != nil {
		return err
	}
	if err := m.putInForce(ctx, folder.Kept()); err != nil {
		return err
	}
	// Until here a change that waits is taken back by its own timer, whatever fails.
	if c := m.candidate(control.AboutLists); c.ID != "" {
		if t, err := m.find(c.ID); err == nil {
			m.forget(t)
		}
	}
	m.Refilter()
	return nil
}
