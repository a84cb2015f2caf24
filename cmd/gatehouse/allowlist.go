package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
	"gatehouse/netfilter/allowlist"
)

// allowlistDocument is the policy as the box's API takes it.
type allowlistDocument struct {
	Enabled bool             `json:"enabled"`
	XDP     allowlist.XDP    `json:"xdp,omitempty"`
	Lists   []*allowlistPart `json:"lists"`
}

type allowlistPart struct {
	Name     string   `json:"name"`
	Enabled  bool     `json:"enabled"`
	Scopes   []string `json:"scopes"`
	Note     string   `json:"note,omitempty"`
	AllowAll bool     `json:"allow_all,omitempty"`
	Text     *string  `json:"text,omitempty"`
}

func (d *allowlistDocument) find(name string) *allowlistPart {
	if i := slices.IndexFunc(d.Lists, func(l *allowlistPart) bool { return l.Name == name }); i >= 0 {
		return d.Lists[i]
	}
	return nil
}

// allowlistFlags are those of every verb.
type allowlistFlags struct {
	changeFlags
	force bool
}

func allowlistCommand() *cobra.Command {
	var f allowlistFlags
	c := group("allowlist", "Say who may reach a box")
	c.Long = `Show and change the lists of addresses that may reach ports 80 and 443 of a box.

A change takes effect at once and goes back by itself after 60 seconds unless it is
kept, over a new connection: that shows that you still get in. The files are
allowlists.toml (switch, order, scopes) and NAME.list (a range a line, # for notes).`
	c.Example = "  gatehouse allowlist list --email ann@example.com --password file:password --code -\n" +
		"  gatehouse allowlist apply office.list --dry-run --email …\n" +
		"  gatehouse allowlist apply lists/ --keep --email …"
	f.register(c)
	verb := func(use, short string, args cobra.PositionalArgs, run func(*allowlistRun, context.Context, []string) error) *cobra.Command {
		v := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			return f.signedIn(cmd, "/api/v1/allowlists", func(ctx context.Context, r *change) error {
				return run(&allowlistRun{r, f.force}, ctx, args)
			})
		}}
		c.AddCommand(v)
		return v
	}
	verb("list", "List the allowlists, with what they let in", cobra.NoArgs, (*allowlistRun).list)
	verb("show NAME", "Print the file of one list", cobra.ExactArgs(1), (*allowlistRun).show)
	verb("try ADDRESS", "Say whether an address gets in, by which list, to what", cobra.ExactArgs(1), (*allowlistRun).try)
	verb("keep", "Keep the change that waits", cobra.NoArgs, (*allowlistRun).keepWaiting)
	verb("revert", "Take the change that waits back at once", cobra.NoArgs, (*allowlistRun).revert)
	for _, v := range []*cobra.Command{
		verb("apply FILE|FOLDER", "Apply NAME.list, or a folder with allowlists.toml and all lists", cobra.ExactArgs(1), (*allowlistRun).apply),
		verb("edit NAME", "Edit one list with $EDITOR and apply it", cobra.ExactArgs(1), (*allowlistRun).editList),
	} {
		f.registerTry(v)
		v.Flags().BoolVar(&f.force, "force", false, "apply even if your own address would not get in")
	}
	return c
}

// allowlistRun is one verb at work, signed in.
type allowlistRun struct {
	*change
	force bool
}

func (r *allowlistRun) lists(ctx context.Context) (control.Lists, error) {
	var l control.Lists
	_, err := r.call(ctx, "GET", "/api/v1/allowlists", nil, &l)
	return l, err
}

func (r *allowlistRun) list(ctx context.Context, _ []string) error {
	l, err := r.lists(ctx)
	if err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(r.out, l)
	}
	fmt.Fprintln(r.out, printable(l.Sentence))
	if l.Files != "" {
		fmt.Fprintf(r.out, "These lists are files of the host, in %s.\n", printable(l.Files))
	}
	if l.Early.Sentence != "" {
		fmt.Fprintln(r.out, printable(l.Early.Sentence))
	}
	if len(l.Lists) > 0 {
		fmt.Fprintf(r.out, "%-20s %-4s %9s %14s  %s\n", "LIST", "ON", "RANGES", "PACKETS IN", "FOR")
	}
	for _, x := range l.Lists {
		fmt.Fprintf(r.out, "%-20s %-4s %9d %14d  %s\n", printable(x.Name), map[bool]string{true: "yes", false: "no"}[x.Enabled], x.Ranges, x.Packets, printable(strings.Join(x.Scopes, ", ")))
	}
	for _, p := range l.Problems {
		fmt.Fprintln(r.err, "problem:", problemLine(p))
	}
	if c := l.Candidate; c != nil {
		fmt.Fprintf(r.out, "A change by %s waits to be kept, for %d more seconds.\n", printable(c.Actor), c.Seconds)
	}
	return nil
}

func problemLine(p control.Problem) string {
	where := ""
	switch {
	case p.Line > 0:
		where = fmt.Sprintf("%s, line %d: ", p.File, p.Line)
	case p.File != "":
		where = p.File + ": "
	}
	text := ""
	if p.Text != "" {
		text = fmt.Sprintf(" (%q)", p.Text)
	}
	return printable(where + p.Reason + text)
}

func (r *allowlistRun) document(ctx context.Context, name string) (allowlistDocument, error) {
	path := "/api/v1/allowlists/document"
	if name != "" {
		path += "?" + url.Values{"list": {name}}.Encode()
	}
	var d allowlistDocument
	_, err := r.call(ctx, "GET", path, nil, &d)
	return d, err
}

func (r *allowlistRun) text(ctx context.Context, name string) (string, error) {
	d, err := r.document(ctx, name)
	if err != nil {
		return "", err
	}
	if l := d.find(name); l != nil && l.Text != nil {
		return *l.Text, nil
	}
	return "", fail(exitNotFound, "the box has no list %q", name)
}

func (r *allowlistRun) show(ctx context.Context, args []string) error {
	text, err := r.text(ctx, args[0])
	if err == nil {
		_, err = io.WriteString(r.out, text)
	}
	return err
}

func (r *allowlistRun) try(ctx context.Context, args []string) error {
	a, err := netip.ParseAddr(args[0])
	if err != nil {
		return fail(exitUsage, "%q is not an address: write one such as 192.0.2.7 or 2001:db8::7", args[0])
	}
	var answer struct {
		Address netip.Addr `json:"address"`
		Lists   []string   `json:"lists"`
		Scopes  []string   `json:"scopes"`
	}
	if _, err := r.call(ctx, "POST", "/api/v1/allowlists/test", map[string]any{"address": a}, &answer); err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(r.out, answer)
	}
	switch {
	case len(answer.Scopes) == 0:
		fmt.Fprintf(r.out, "%s does not get in: its packets are dropped\n", answer.Address)
	case len(answer.Lists) == 0:
		fmt.Fprintf(r.out, "%s gets in to %s: no list judges it\n", answer.Address, strings.Join(answer.Scopes, ", "))
	default:
		fmt.Fprintf(r.out, "%s gets in to %s, by %s\n", answer.Address, printable(strings.Join(answer.Scopes, ", ")), printable(strings.Join(answer.Lists, ", ")))
	}
	return nil
}

// read makes the document of a list's file or of a folder.
func (r *allowlistRun) read(ctx context.Context, path string) (allowlistDocument, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return allowlistDocument{}, fail(exitNotFound, "reading the lists: %w", err)
	}
	if fi.IsDir() {
		return readFolder(path)
	}
	name, ok := strings.CutSuffix(filepath.Base(path), allowlist.Suffix)
	if wrong := allowlist.CheckName(name); !ok || wrong != "" {
		return allowlistDocument{}, fail(exitUsage, "%s: the file of a list is called NAME%s, and %s", path, allowlist.Suffix, wrong)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return allowlistDocument{}, fail(exitNotFound, "reading the list: %w", err)
	}
	d, err := r.document(ctx, "")
	if err != nil {
		return d, err
	}
	text := string(b)
	if l := d.find(name); l != nil {
		l.Text = &text
		return d, nil
	}
	if len(d.Lists) == 0 {
		d.Enabled = true
	}
	d.Lists = append(d.Lists, &allowlistPart{Name: name, Enabled: true, Scopes: allowlist.Everything.Names(), Text: &text})
	return d, nil
}

func readFolder(dir string) (allowlistDocument, error) {
	index, err := os.ReadFile(filepath.Join(dir, allowlist.Index))
	if err != nil {
		return allowlistDocument{}, fail(exitNotFound, "a folder of lists has %s: %w", allowlist.Index, err)
	}
	settings, err := allowlist.ParseSettings(index)
	if err != nil {
		return allowlistDocument{}, fail(exitUsage, "%w", err)
	}
	d := allowlistDocument{Enabled: settings.Enabled, XDP: settings.XDP}
	for _, l := range settings.Lists {
		if wrong := allowlist.CheckName(l.Name); wrong != "" {
			return d, fail(exitUsage, "%s: %q: %s", allowlist.Index, l.Name, wrong)
		}
		b, err := os.ReadFile(filepath.Join(dir, l.Name+allowlist.Suffix))
		if err != nil {
			return d, fail(exitNotFound, "%s names the list %s: %w", allowlist.Index, l.Name, err)
		}
		text := string(b)
		d.Lists = append(d.Lists, &allowlistPart{Name: l.Name, Enabled: l.Enabled, Scopes: l.Scopes, Note: l.Note, AllowAll: l.AllowAll, Text: &text})
	}
	return d, nil
}

func (r *allowlistRun) apply(ctx context.Context, args []string) error {
	d, err := r.read(ctx, args[0])
	if err != nil {
		return err
	}
	return r.propose(ctx, d)
}

func (r *allowlistRun) editList(ctx context.Context, args []string) error {
	text, err := r.text(ctx, args[0])
	if err != nil {
		return err
	}
	return r.edit(ctx, args[0]+allowlist.Suffix, text, func(path string) error { return r.apply(ctx, []string{path}) })
}

func (r *allowlistRun) propose(ctx context.Context, d allowlistDocument) error {
	var report control.ListsReport
	question := map[string]any{"document": d, "dry_run": r.dryRun, "force": r.force}
	if _, err := r.call(ctx, "POST", "/api/v1/allowlists/try", question, &report); err != nil {
		var refused *refusal
		if errors.As(err, &refused) {
			return fail(exitConflict, "nothing was changed: %w", err)
		}
		return err
	}
	if r.asJSON {
		if err := printJSON(r.out, report); err != nil {
			return err
		}
	} else {
		for _, s := range report.Summary {
			fmt.Fprintln(r.out, printable(s))
		}
		if report.SelfCut {
			fmt.Fprintln(r.out, "Your own address would not get in any more.")
		}
	}
	if report.Candidate == nil {
		return nil
	}
	return r.offer(ctx, report.Candidate)
}

func (r *allowlistRun) settle(ctx context.Context, verb string) error {
	l, err := r.lists(ctx)
	if err != nil {
		return err
	}
	return r.waiting(ctx, verb, l.Candidate)
}

func (r *allowlistRun) keepWaiting(ctx context.Context, _ []string) error {
	return r.settle(ctx, "keep")
}
func (r *allowlistRun) revert(ctx context.Context, _ []string) error { return r.settle(ctx, "revert") }
