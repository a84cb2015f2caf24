// Package filter is the role that runs while allowlists change: it parses them, fills the kernel's sets, swaps the rules, and ends.
//
// It is the one process that reads what people wrote into lists, and holds
// CAP_NET_ADMIN for nothing else. It cannot change the files. The order comes
// as an argument, the answer is one line of JSON.
package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
)

// Run carries out the order and writes the answer.
func Run(order string, out io.Writer) error {
	var o lists.Order
	d := json.NewDecoder(strings.NewReader(order))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	a := carry(o)
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

func carry(o lists.Order) lists.Answer {
	var a lists.Answer
	policy, problems, err := load(o.Folder)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	if a.Report.Problems = problems; len(problems) > 0 {
		return a
	}
	if o.Off {
		policy.Enabled = false
	}
	// What was in force is right, or it would not be; if it cannot be read the
	// change is told as from nothing.
	before, _, err := load(o.Before)
	if err != nil {
		before = allowlist.Policy{}
	}
	change := allowlist.Diff(before, policy)
	a.Report.Summary, a.Report.Added, a.Report.Removed = change.Summary, change.Added, change.Removed
	describe(&a, policy, o.Folder)
	compiled := allowlist.Encode(policy)
	now, err := allowlist.Decode(compiled)
	if err != nil {
		a.Error = fmt.Sprintf("compiling the lists: %v", err)
		return a
	}
	a.Report.Cut, a.Report.SelfCut, a.Admitted = judge(before, now, o.Watch)
	if !o.Apply {
		return a
	}
	if a.InForce, a.Early, err = apply(o, policy, compiled, now); err != nil {
		a.Error = err.Error()
	}
	return a
}

// load reads and parses the files of a folder.
func load(dir string) (allowlist.Policy, []control.Problem, error) {
	if dir == "" {
		return allowlist.Policy{}, nil, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return allowlist.Policy{}, nil, fmt.Errorf("opening the allowlists: %w", err)
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return allowlist.Policy{}, nil, fmt.Errorf("reading the allowlists: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return allowlist.Policy{}, nil, fmt.Errorf("reading the allowlists: %w", err)
	}
	slices.Sort(names)
	var files []allowlist.File
	left := int64(allowlist.MaxBytes)
	for _, name := range names {
		if name != allowlist.Index && !strings.HasSuffix(name, allowlist.Suffix) {
			continue // notes and rubbish of editors are nobody's list
		}
		if len(files) > allowlist.MaxLists+1 {
			break // Parse says that these are too many
		}
		b, err := read(root, name, left)
		if err != nil {
			return allowlist.Policy{}, []control.Problem{{File: name, Reason: err.Error()}}, nil
		}
		left -= int64(len(b))
		files = append(files, allowlist.File{Name: name, Data: b})
	}
	p, bad := allowlist.Parse(files)
	return p, bad, nil
}

func read(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, errors.New("it is not a plain file")
	case fi.Size() > limit:
		return nil, fmt.Errorf("the files have more than %d MiB in all: that is the limit", allowlist.MaxBytes>>20)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errors.New("it grew while it was read")
	}
	return b, err
}

// describe tells of each list; its file says when the ranges were last changed.
func describe(a *lists.Answer, p allowlist.Policy, folder string) {
	a.Enabled = p.Enabled
	for _, l := range p.Lists {
		one := control.List{Name: l.Name, Enabled: l.Enabled, Scopes: l.Scopes.Names(), Note: l.Note, Ranges: len(l.Ranges)}
		if fi, err := os.Stat(filepath.Join(folder, l.Name+allowlist.Suffix)); err == nil {
			one.Changed = fi.ModTime().UTC()
		}
		a.Lists = append(a.Lists, one)
		if p.Enabled && l.Enabled {
			a.Ranges += len(l.Ranges)
		}
	}
}

// judge says who of watch may reach the console before and not after; the
// first of them asks.
func judge(before allowlist.Policy, now allowlist.Compiled, watch []netip.Addr) (cut []netip.Addr, self bool, admitted []string) {
	for i, w := range watch {
		in := now.Admits(w)&allowlist.Console != 0 || w.IsLoopback()
		if i == 0 {
			self = !in
		}
		if !in && before.Admits(w)&allowlist.Console != 0 {
			cut = append(cut, w)
		}
		admitted = append(admitted, strings.Join(now.Lists(w), ","))
	}
	return cut, self, admitted
}

// apply fills and swaps in the kernel, then tells gateway and console. In this
// order a source that is let in anew is never turned away by them, and one that
// is not any more is stopped by the kernel first.
func apply(o lists.Order, p allowlist.Policy, compiled []byte, now allowlist.Compiled) (netfilter.Lists, control.EarlyStage, error) {
	inForce := netfilter.Lists{Off: !p.Enabled}
	early := control.EarlyStage{Sentence: "the early stage is off: the lists are not in the kernel"}
	if o.Kernel {
		old, err := nft.InForce()
		if err != nil {
			return inForce, early, err
		}
		var sets []netfilter.Set
		inForce, sets = netfilter.Sets(p, old.Generation+1)
		rules := netfilter.Rules(netfilter.State{Phase: control.StateReady, OnLink: o.OnLink, Ports: o.Ports, Form: o.Form, Lists: inForce})
		if early, err = install(o, p, rules, sets, inForce.Generation); err != nil {
			return inForce, early, err
		}
	}
	if err := tell(o.Admission, compiled); err != nil {
		return inForce, early, err
	}
	if o.Kernel && p.Enabled {
		// Their packets are dropped already; a kernel without the door to its
		// table keeps dead entries until they time out.
		keep := func(a netip.Addr) bool { return now.Admits(a) != 0 || a.IsLoopback() }
		if _, err := nft.Forget(o.Ports, keep); err != nil {
			fmt.Fprintln(os.Stderr, "gatehouse: connections of sources that are not let in any more:", err)
		}
	}
	return inForce, early, nil
}

// tell replaces the file that gateway and console watch. It lies in memory and
// is made anew at each start, so nothing has to reach a disk.
func tell(path string, compiled []byte) error {
	next := filepath.Join(filepath.Dir(path), ".next")
	if err := os.WriteFile(next, compiled, 0o644); err != nil {
		return fmt.Errorf("telling the gateway who may come in: %w", err)
	}
	if err := os.Chmod(next, 0o644); err != nil { // whatever the umask says
		return fmt.Errorf("telling the gateway who may come in: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("telling the gateway who may come in: %w", err)
	}
	return nil
}
