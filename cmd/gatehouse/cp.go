package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/copier"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
)

// opener opens streams of a session and reads the answers.
type opener interface {
	Open(context.Context, wire.Open) (wire.Stream, wire.Reply, error)
}

// cpCommand copies files to and from targets.
func cpCommand() *cobra.Command {
	s := &reach{}
	c := copyCommand(func(cmd *cobra.Command, target string, functions []string) (opener, func(), error) {
		return s.hold(cmd, target, functions)
	})
	s.flags(c.Flags())
	return c
}

// hold keeps a session until it is let go.
func (r *reach) hold(cmd *cobra.Command, target string, functions []string) (opener, func(), error) {
	begun, over := make(chan *technician.Session), make(chan error, 1)
	ctx, let := context.WithCancel(cmd.Context())
	go func() { // ends when it is let go, which who asked does
		over <- r.session(cmd, target, functions, func(all context.Context, s *technician.Session) error {
			begun <- s
			select {
			case <-ctx.Done():
			case <-all.Done():
			}
			return nil
		})
	}()
	select {
	case s := <-begun:
		return s, func() { let(); <-over }, nil
	case err := <-over:
		let()
		return nil, nil, err
	}
}

// copyCommand is cp; connect begins a session with a target.
func copyCommand(connect func(cmd *cobra.Command, target string, functions []string) (opener, func(), error)) *cobra.Command {
	var r copyRun
	c := &cobra.Command{
		Use:   "cp SOURCE… TARGET:PATH | cp TARGET:SOURCE… PATH",
		Short: "Copy files to a target, or from one",
		Long: `Copy files to a target behind the box, or from one. A relative path at the target
begins where the account does that the box signs in with; a local name with a colon
is written ./like:this.

A file is written beside its place as .NAME.gatehouse-part, and takes the place when
size and SHA-256 are right. When the connection is lost the copy goes on by itself;
--resume goes on with what an earlier one left. Links and devices in folders are left
out and said.

Ends with 8 if something was left out.`,
		Example: "  gatehouse cp report.pdf 'Accounts server:/srv/reports/'\n  gatehouse cp -r 'Accounts server:/var/log/app' .\n" +
			"  gatehouse cp --resume disk.img 'Accounts server:disk.img'",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.cmd, r.connect = cmd, connect
			if f := cmd.Flags().Lookup("json"); f != nil {
				r.asJSON = f.Value.String() == "true"
			}
			return r.run(cmd.Context(), args)
		},
	}
	c.Flags().BoolVarP(&r.recursive, "recursive", "r", false, "copy folders with what is in them")
	c.Flags().BoolVar(&r.resume, "resume", false, "go on with what an interrupted copy left")
	return c
}

// copyRun is one run of cp.
type copyRun struct {
	cmd                       *cobra.Command
	connect                   func(cmd *cobra.Command, target string, functions []string) (opener, func(), error)
	recursive, resume, asJSON bool

	copier   *copier.Copier
	bar      progressBar
	files    []copier.Result
	problems []copier.Problem
	failed   error // the first problem that has an exit code of its own
}

// copyPlace is an argument: a path here, or one at a target.
type copyPlace struct{ target, path string }

func parseCopyPlace(arg string) copyPlace {
	i := strings.IndexByte(arg, ':')
	if i <= 0 || strings.ContainsAny(arg[:i], `/\`) || runtime.GOOS == "windows" && i == 1 {
		return copyPlace{"", arg}
	}
	p := copyPlace{arg[:i], arg[i+1:]}
	if p.path == "" {
		p.path = "."
	}
	return p
}

func (r *copyRun) run(ctx context.Context, args []string) error {
	to := parseCopyPlace(args[len(args)-1])
	var sources []string
	target := to.target
	for _, arg := range args[:len(args)-1] {
		from := parseCopyPlace(arg)
		switch {
		case (from.target == "") == (to.target == ""):
			return fail(exitUsage, "one side is TARGET:PATH, the other a path here")
		case target != "" && from.target != "" && from.target != target:
			return fail(exitUsage, "all sources are on one target, not on %s and %s", printable(target), printable(from.target))
		case from.target != "":
			target = from.target
		}
		sources = append(sources, from.path)
	}
	functions := []string{"receive-files"}
	if to.target != "" {
		functions = []string{"send-files"}
	}
	if r.recursive {
		functions = append([]string{"file-manager"}, functions...) // in the grant's order
	}
	l := &copyLine{connect: func() (opener, func(), error) { return r.connect(r.cmd, target, functions) }}
	defer l.close()
	if err := l.begin(); err != nil {
		return err
	}
	r.bar.begin(r.cmd)
	r.copier = &copier.Copier{Open: l.Open, Resume: r.resume, Progress: r.bar.show, Say: r.say}
	var err error
	if to.target != "" {
		err = r.upload(ctx, sources, to.path)
	} else {
		err = r.download(ctx, sources, to.path)
	}
	r.bar.clear()
	return r.report(err)
}

// upload copies each source; the error is one that ends all of it.
func (r *copyRun) upload(ctx context.Context, sources []string, to string) error {
	for _, source := range sources {
		if err := r.uploadOne(ctx, source, to, len(sources) > 1 || strings.HasSuffix(to, "/")); err != nil {
			if err := r.problem(ctx, source, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *copyRun) uploadOne(ctx context.Context, source, to string, into bool) error {
	// What the person named may be a link; what is found in a folder may not.
	real, err := filepath.EvalSymlinks(source)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return err
	}
	i, err := os.Stat(real)
	if err != nil {
		return err
	}
	base := filepath.Base(source)
	if base == "." || base == ".." || base == string(filepath.Separator) {
		base = filepath.Base(real)
	}
	inside := strings.TrimRight(to, "/") + "/" + base
	if !i.IsDir() {
		dir, err := os.OpenRoot(filepath.Dir(real))
		if err != nil {
			return err
		}
		defer dir.Close()
		if into {
			to = inside
		}
		done, err := r.copier.Put(ctx, dir, filepath.Base(real), to, base)
		if err == nil {
			done.Source = source
			r.files = append(r.files, done)
		}
		return err
	}
	if !r.recursive {
		return fail(exitUsage, "it is a folder: -r copies it with what is in it")
	}
	if !into {
		switch e, err := r.copier.Stat(ctx, to); {
		case err == nil && e.Kind == files.Folder:
			into = true
		case err != nil && refusalCode(err) != wire.NotFound:
			return err
		}
	}
	if into {
		to = inside
	}
	dir, err := os.OpenRoot(real)
	if err != nil {
		return err
	}
	defer dir.Close()
	tree, err := r.copier.PutTree(ctx, dir, to)
	r.take(tree)
	return err
}

func (r *copyRun) download(ctx context.Context, sources []string, to string) error {
	i, err := os.Stat(to)
	into := err == nil && i.IsDir()
	if !into && (len(sources) > 1 || strings.HasSuffix(to, "/") || strings.HasSuffix(to, string(filepath.Separator))) {
		return fail(exitNotFound, "%s is not a folder here", files.Shown(to))
	}
	folder, name := to, ""
	if !into {
		folder, name = filepath.Dir(to), filepath.Base(to)
	}
	dir, err := os.OpenRoot(folder)
	if err != nil {
		return fail(exitNotFound, "opening the folder to copy to: %w", err)
	}
	defer dir.Close()
	for _, source := range sources {
		as := name
		if into {
			as = path.Base(source)
		}
		if err := r.downloadOne(ctx, source, dir, as, into); err != nil {
			if err := r.problem(ctx, source, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *copyRun) downloadOne(ctx context.Context, source string, dir *os.Root, as string, into bool) error {
	if err := copier.CheckName(as); err != nil {
		return fail(exitUsage, "%w: name a file here to copy it to", err)
	}
	if r.recursive {
		e, err := r.copier.Stat(ctx, source)
		if err != nil {
			return err
		}
		if e.Kind == files.Folder {
			return r.downloadTree(ctx, source, dir, as, into)
		}
	}
	done, err := r.copier.Get(ctx, source, dir, as, false)
	if err == nil {
		done.Destination = filepath.Join(dir.Name(), as)
		r.files = append(r.files, done)
	}
	return err
}

func (r *copyRun) downloadTree(ctx context.Context, source string, dir *os.Root, as string, into bool) error {
	if err := dir.Mkdir(as, 0o777); err != nil && (!into || !errors.Is(err, fs.ErrExist)) {
		return err
	}
	sub, err := dir.OpenRoot(as)
	if err != nil {
		return err
	}
	defer sub.Close()
	tree, err := r.copier.GetTree(ctx, source, sub)
	r.take(tree)
	return err
}

func (r *copyRun) take(t copier.Tree) {
	r.files = append(r.files, t.Files...)
	r.problems = append(r.problems, t.Problems...)
}

// problem notes that a source could not be copied. One that the others would
// meet too comes back.
func (r *copyRun) problem(ctx context.Context, source string, err error) error {
	if copier.Ends(ctx, err) {
		return err
	}
	r.problems = append(r.problems, copier.Problem{Path: source, Err: err})
	if r.failed == nil {
		r.failed = err
	}
	return nil
}

// report prints what was copied and what was not.
func (r *copyRun) report(err error) error {
	out, diag := r.cmd.OutOrStdout(), r.cmd.ErrOrStderr()
	if r.asJSON {
		if err := printJSON(out, r.shown()); err != nil {
			return err
		}
	} else {
		for _, f := range r.files {
			fmt.Fprintf(out, "%s  %13d  %s\n", printable(f.SHA256), f.Size, files.Shown(f.Destination))
		}
	}
	for _, f := range r.files {
		if f.Note != "" {
			fmt.Fprintf(diag, "%s: %s\n", files.Shown(f.Destination), printable(f.Note))
		}
	}
	if err == nil && r.failed != nil && len(r.files) == 0 && len(r.problems) == 1 {
		err = r.failed
	} else {
		for _, p := range r.problems {
			fmt.Fprintf(diag, "left out: %s: %s\n", files.Shown(p.Path), printable(p.Err.Error()))
		}
	}
	if errors.Is(err, copier.ErrLost) || errors.Is(err, context.Canceled) {
		fmt.Fprintln(diag, "What came so far is kept: the same with --resume goes on from there.")
	}
	if err != nil {
		return copyFailure(err)
	}
	if len(r.problems) > 0 {
		return fail(exitPartial, "%d copied, %d left out", len(r.files), len(r.problems))
	}
	return nil
}

type copiedShown struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Size        int64  `json:"size"`
	SHA256      string `json:"sha256"`
	Note        string `json:"note,omitempty"`
}

type leftShown struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

func (r *copyRun) shown() (s struct {
	Files   []copiedShown `json:"files"`
	LeftOut []leftShown   `json:"left_out"`
}) {
	s.Files, s.LeftOut = []copiedShown{}, []leftShown{}
	for _, f := range r.files {
		s.Files = append(s.Files, copiedShown{f.Source, f.Destination, f.Size, f.SHA256, f.Note})
	}
	for _, p := range r.problems {
		s.LeftOut = append(s.LeftOut, leftShown{p.Path, p.Err.Error()})
	}
	return s
}

func refusalCode(err error) wire.Code {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// copyFailure gives an error of a copy its exit code.
func copyFailure(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return err
	}
	code := map[wire.Code]exitCode{
		wire.Denied: exitDenied, wire.Credential: exitDenied, wire.NotFound: exitNotFound, wire.Unreachable: exitUnreachable, wire.HostKey: exitVerification,
	}[refusalCode(err)]
	switch {
	case errors.Is(err, copier.ErrLost):
		code = exitUnreachable
	case errors.Is(err, copier.ErrWrong):
		code = exitVerification
	case errors.Is(err, fs.ErrNotExist):
		code = exitNotFound
	case code == 0:
		code = exitFailure
	}
	return fail(code, "%s", printable(err.Error()))
}

func (r *copyRun) say(text string) {
	r.bar.clear()
	fmt.Fprintln(r.cmd.ErrOrStderr(), printable(text))
}

// copyLine is the session, and another one when it was lost.
type copyLine struct {
	connect func() (opener, func(), error)
	now     opener
	end     func()
}

func (l *copyLine) begin() (err error) {
	l.now, l.end, err = l.connect()
	return err
}

// Open opens a stream, of a new session where the last one was lost. One that
// somebody has ended is over.
func (l *copyLine) Open(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
	if l.now == nil {
		if err := l.begin(); err != nil {
			return nil, wire.Reply{}, final(err)
		}
	}
	s, p, err := l.now.Open(ctx, o)
	if err != nil && ctx.Err() == nil && refusalCode(err) == "" {
		l.close()
		err = final(err)
	}
	return s, p, err
}

// final tells what the box or the agent have decided from what may pass.
func final(err error) error {
	var f *failure
	var r *refusal
	var e *carrier.Ended
	if errors.As(err, &f) && f.code != exitUnreachable || errors.As(err, &r) && r.status/100 == 4 && r.status != http.StatusTooManyRequests ||
		errors.As(err, &e) || errors.Is(err, technician.ErrOver) {
		return copier.Final(err)
	}
	return err
}

func (l *copyLine) close() {
	if l.now != nil {
		l.end()
	}
	l.now = nil
}

// progressBar is a line on a terminal; elsewhere it is nothing.
type progressBar struct {
	mu    sync.Mutex
	out   *os.File
	drawn time.Time
	width int

	name  string
	begun time.Time
	first int64
}

func (b *progressBar) begin(cmd *cobra.Command) {
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.out = f
	}
}

func (b *progressBar) show(p copier.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.out == nil || now.Sub(b.drawn) < 200*time.Millisecond && p.Done < p.Size {
		return
	}
	if b.name != p.Name {
		b.name, b.begun, b.first = p.Name, now, p.Done
	}
	b.drawn = now
	name := []rune(files.Shown(p.Name))
	if len(name) > 40 {
		name = append([]rune("…"), name[len(name)-39:]...)
	}
	what := "checking"
	if took := now.Sub(b.begun).Seconds(); !p.Checking {
		what = fmt.Sprintf("%.1f MB/s", float64(max(p.Done-b.first, 0))/1e6/max(took, 0.001))
	}
	line := fmt.Sprintf("%-40s %3d%% %10.1f MB  %s", string(name), 100*p.Done/max(p.Size, 1), float64(p.Done)/1e6, what)
	fmt.Fprintf(b.out, "\r%-*s", b.width, line)
	b.width = len([]rune(line))
}

func (b *progressBar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out != nil && b.width > 0 {
		fmt.Fprintf(b.out, "\r%*s\r", b.width, "")
		b.width = 0
	}
}
