package copier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/filestest"
	"gatehouse/appliance/session/wire"
)

const allRights = right.FileManager | right.SendFiles | right.ReceiveFiles

type bench struct {
	*Copier
	site       *filestest.Site
	here       *os.Root
	hereDir    string
	there      string
	said       []string
	reconnects int
}

func setup(t testing.TB) *bench {
	t.Helper()
	b := &bench{hereDir: t.TempDir(), there: t.TempDir()}
	b.site = filestest.NewSite(t, allRights, filestest.Target(t, b.there))
	var err error
	if b.here, err = os.OpenRoot(b.hereDir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.here.Close() })
	b.Copier = &Copier{Open: b.site.Open, Say: func(s string) { b.said = append(b.said, s) },
		Pause: func(ctx context.Context, _ int) error { b.reconnects++; return ctx.Err() }}
	return b
}

func same(t testing.TB, a, b string) string {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s (%d bytes) and %s (%d bytes) are not the same", a, len(x), b, len(y))
	}
	h := sha256.Sum256(x)
	return hex.EncodeToString(h[:])
}

func empty(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if len(got) != len(want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func TestSES4_FilesGoBothWays(t *testing.T) {
	for _, size := range []int64{0, 1, files.MaxContent, files.Chunk - 1, files.Chunk, files.Chunk + 1, 5*files.Chunk + 77} {
		b := setup(t)
		filestest.Random(t, filepath.Join(b.hereDir, "up"), size)
		r, err := b.Put(t.Context(), b.here, "up", ".", "up")
		if err != nil {
			t.Fatal(err)
		}
		if hash := same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.there, "up")); hash != r.SHA256 || r.Size != size {
			t.Errorf("%+v, want the hash %s", r, hash)
		}
		r, err = b.Get(t.Context(), "up", b.here, "down", false)
		if err != nil {
			t.Fatal(err)
		}
		if hash := same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.hereDir, "down")); hash != r.SHA256 || r.Size != size {
			t.Errorf("%+v, want the hash %s", r, hash)
		}
		empty(t, b.hereDir, "up", "down")
		empty(t, b.there, "up")
	}
}

func TestSES4_CutsAtRandomPoints(t *testing.T) {
	const size = 6*files.Chunk + 12345
	for n := range 12 {
		random := rand.New(rand.NewPCG(uint64(n), 4))
		b := setup(t)
		filestest.Random(t, filepath.Join(b.hereDir, "up"), size)
		b.site.Cuts = []int64{1 + random.Int64N(size/3), 1 + random.Int64N(size/3), 1 + random.Int64N(100)}
		if _, err := b.Put(t.Context(), b.here, "up", "up", ""); err != nil {
			t.Fatal(err)
		}
		b.site.Cuts = []int64{1 + random.Int64N(size/3), 1 + random.Int64N(size/3), 1 + random.Int64N(100)}
		if _, err := b.Get(t.Context(), "up", b.here, "down", false); err != nil {
			t.Fatal(err)
		}
		same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.there, "up"))
		same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.hereDir, "down"))
		if b.reconnects < 3 {
			t.Errorf("round %d: %d cuts were met, want at least 3", n, b.reconnects)
		}
		empty(t, b.hereDir, "up", "down")
		empty(t, b.there, "up")
	}
}

// changes calls f when a copy is past the middle, once.
func (b *bench) inTheMiddle(f func()) {
	done := false
	b.Progress = func(p Progress) {
		if !done && !p.Checking && p.Done > p.Size/2 {
			done = true
			f()
		}
	}
}

// age makes a file an hour old: SFTP tells times in whole seconds.
func age(t *testing.T, path string) {
	t.Helper()
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, before, before); err != nil {
		t.Fatal(err)
	}
}

func spoil(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("another content"), at); err != nil {
		t.Fatal(err)
	}
}

func TestSES4_SourceThatChangedStartsAnew(t *testing.T) {
	const size = 8 * files.Chunk
	for _, up := range []bool{true, false} {
		for _, cut := range []int64{0, size / 2} { // while it flows, and while the connection is away
			b := setup(t)
			from, to := filepath.Join(b.hereDir, "file"), filepath.Join(b.there, "file")
			if !up {
				from, to = to, from
			}
			filestest.Random(t, from, size)
			age(t, from)
			change := func() { spoil(t, from, 10) }
			if cut == 0 {
				b.inTheMiddle(change)
			} else {
				b.site.Cuts = []int64{cut}
				b.Pause = func(context.Context, int) error { b.site.Wait(); change(); return nil }
			}
			var err error
			if up {
				_, err = b.Put(t.Context(), b.here, "file", "file", "")
			} else {
				_, err = b.Get(t.Context(), "file", b.here, "file", false)
			}
			if err != nil {
				t.Fatal(err)
			}
			same(t, from, to)
			if said := strings.Join(b.said, "\n"); !strings.Contains(said, "copied anew") && !strings.Contains(said, "from its beginning") {
				t.Errorf("up %v, cut %d: it was not said: %s", up, cut, said)
			}
			empty(t, b.hereDir, "file")
			empty(t, b.there, "file")
		}
	}
}

func TestSES4_SourceThatIsWrittenToForEver(t *testing.T) {
	for _, up := range []bool{true, false} {
		b := setup(t)
		from := filepath.Join(map[bool]string{true: b.hereDir, false: b.there}[up], "file")
		filestest.Random(t, from, 40*files.Chunk)
		age(t, from)
		n := byte(0)
		b.Progress = func(p Progress) {
			if p.Done > p.Size/2 && !p.Checking {
				n++
				spoil(t, from, int64(n))
				later := time.Now().Add(time.Duration(n) * time.Second)
				if err := os.Chtimes(from, later, later); err != nil {
					t.Error(err)
				}
			}
		}
		var err error
		if up {
			_, err = b.Put(t.Context(), b.here, "file", "file", "")
		} else {
			_, err = b.Get(t.Context(), "file", b.here, "file", false)
		}
		if !errors.Is(err, errChanged) {
			t.Errorf("up %v: %v", up, err)
		}
	}
}

func TestSES4_LogThatGrowsIsCopiedAsItWas(t *testing.T) {
	for _, up := range []bool{true, false} {
		b := setup(t)
		from := filepath.Join(map[bool]string{true: b.hereDir, false: b.there}[up], "log")
		filestest.Random(t, from, 8*files.Chunk)
		whole, _ := os.ReadFile(from)
		b.inTheMiddle(func() {
			f, err := os.OpenFile(from, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if _, err := f.WriteString("one more line"); err != nil {
				t.Error(err)
			}
		})
		var err error
		to := filepath.Join(b.there, "log")
		if up {
			_, err = b.Put(t.Context(), b.here, "log", "log", "")
		} else {
			_, err = b.Get(t.Context(), "log", b.here, "log", false)
			to = filepath.Join(b.hereDir, "log")
		}
		if err != nil || len(b.said) > 0 {
			t.Fatalf("up %v: %v, said %q", up, err, b.said)
		}
		if got, _ := os.ReadFile(to); !bytes.Equal(got, whole) {
			t.Errorf("up %v: %d bytes came, it had %d", up, len(got), len(whole))
		}
	}
}

// TestSES4_ResumeOfAnEarlierRun cuts a copy for good, and a later one goes on.
func TestSES4_ResumeOfAnEarlierRun(t *testing.T) {
	const size = 8 * files.Chunk
	for _, up := range []bool{true, false} {
		for _, resume := range []bool{true, false} {
			b := setup(t)
			from, part := filepath.Join(b.hereDir, "file"), filepath.Join(b.there, files.PartName("file"))
			if !up {
				from, part = filepath.Join(b.there, "file"), filepath.Join(b.hereDir, files.PartName("file"))
			}
			filestest.Random(t, from, size)
			copyIt := func() error {
				if up {
					_, err := b.Put(t.Context(), b.here, "file", "file", "")
					return err
				}
				_, err := b.Get(t.Context(), "file", b.here, "file", false)
				return err
			}
			enough := errors.New("the person gave up")
			b.Pause = func(context.Context, int) error { return enough }
			b.site.Cuts = []int64{size - files.Chunk}
			if err := copyIt(); !errors.Is(err, enough) {
				t.Fatal(err)
			}
			b.site.Wait()
			i, err := os.Stat(part)
			if err != nil || i.Size() < size/2 || i.Mode().Perm()&0o077 != 0 && up {
				t.Fatalf("the part: %v, %v", i, err)
			}
			flowed := int64(0)
			b.Progress = func(p Progress) {
				if !p.Checking && flowed == 0 {
					flowed = size - p.Done
				}
			}
			b.Resume = resume
			if err := copyIt(); err != nil {
				t.Fatal(err)
			}
			if resumed := flowed < size*2/3; resumed != resume {
				t.Errorf("up %v, resume %v: %d bytes of %d were left to send", up, resume, flowed, size)
			}
			same(t, filepath.Join(b.hereDir, "file"), filepath.Join(b.there, "file"))
			empty(t, b.hereDir, "file")
			empty(t, b.there, "file")
		}
	}
}

func TestSES4_ALineThatStaysAwayIsGivenUp(t *testing.T) {
	b := setup(t)
	filestest.Random(t, filepath.Join(b.hereDir, "file"), 8*files.Chunk)
	for range 100 {
		b.site.Cuts = append(b.site.Cuts, 500)
	}
	if _, err := b.Put(t.Context(), b.here, "file", "file", ""); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if b.site.Opened != tries {
		t.Errorf("%d tries, want %d", b.site.Opened, tries)
	}
	// Cuts that let something through are gone on from, however many they are.
	b = setup(t)
	filestest.Random(t, filepath.Join(b.there, "file"), 60*files.MaxContent)
	for range 60 {
		b.site.Cuts = append(b.site.Cuts, files.MaxContent+5000)
	}
	if _, err := b.Get(t.Context(), "file", b.here, "file", false); err != nil {
		t.Error(err)
	}
	if b.reconnects < 2*tries {
		t.Errorf("%d cuts", b.reconnects)
	}
	same(t, filepath.Join(b.hereDir, "file"), filepath.Join(b.there, "file"))
}

func TestSES4_TreesBothWays(t *testing.T) {
	b := setup(t)
	outside := t.TempDir()
	make := func(dir string) {
		for path, mode := range map[string]fs.FileMode{"a": 0o644, "run": 0o755, "sub/b": 0o600, "sub/deep/c": 0o644, "sub/.c.gatehouse-part": 0o644} {
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(path), mode)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "empty"), 0o755), os.Symlink(outside, filepath.Join(dir, "out")), os.Symlink("a", filepath.Join(dir, "in")), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(tree Tree, err error, from, to string) {
		t.Helper()
		if err != nil || len(tree.Files) != 4 || len(tree.Problems) != 4 {
			t.Fatalf("%+v, %v", tree, err)
		}
		for _, path := range []string{"a", "run", "sub/b", "sub/deep/c"} {
			same(t, filepath.Join(from, path), filepath.Join(to, path))
			x, _ := os.Stat(filepath.Join(from, path))
			y, _ := os.Stat(filepath.Join(to, path))
			if x.Mode() != y.Mode() {
				t.Errorf("%s is %v, was %v", path, y.Mode(), x.Mode())
			}
		}
		empty(t, to, "a", "run", "sub", "empty")
		for _, f := range tree.Files {
			if !filepath.IsAbs(f.Source) && !filepath.IsAbs(f.Destination) {
				t.Errorf("%+v does not say where it is here", f)
			}
		}
	}
	make(filepath.Join(b.hereDir, "tree"))
	dir, err := b.here.OpenRoot("tree")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	tree, err := b.PutTree(t.Context(), dir, "tree")
	check(tree, err, filepath.Join(b.hereDir, "tree"), filepath.Join(b.there, "tree"))
	tree, err = b.PutTree(t.Context(), dir, "tree") // over itself
	check(tree, err, filepath.Join(b.hereDir, "tree"), filepath.Join(b.there, "tree"))

	make(filepath.Join(b.there, "other"))
	down := t.TempDir()
	root, err := os.OpenRoot(down)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tree, err = b.GetTree(t.Context(), "other", root)
	check(tree, err, filepath.Join(b.there, "other"), down)

	// A folder of that name leads out of the tree: nothing is written there.
	if err := errors.Join(os.RemoveAll(filepath.Join(b.there, "tree/sub")), os.Symlink(outside, filepath.Join(b.there, "tree/sub")),
		os.RemoveAll(filepath.Join(down, "sub")), os.Symlink(outside, filepath.Join(down, "sub"))); err != nil {
		t.Fatal(err)
	}
	if tree, err := b.PutTree(t.Context(), dir, "tree"); err != nil || len(tree.Files) != 2 {
		t.Errorf("%+v, %v", tree, err)
	}
	if tree, err := b.GetTree(t.Context(), "other", root); err != nil || len(tree.Files) != 2 {
		t.Errorf("%+v, %v", tree, err)
	}
	empty(t, outside)
}

// agent is one that says what it likes.
func agent(t *testing.T, answer func(q files.Request, s *net.TCPConn, f *files.Frames)) func(context.Context, wire.Open) (wire.Stream, wire.Reply, error) {
	stream := func(ctx context.Context) (wire.Stream, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		here, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		there, err := l.Accept()
		if err != nil {
			return nil, err
		}
		go func() {
			defer there.Close()
			o, err := wire.ReadOpen(there)
			var q files.Request
			if err == nil && json.Unmarshal(o.Args, &q) == nil {
				answer(q, there.(*net.TCPConn), files.NewFrames(there))
			}
		}()
		return here.(*net.TCPConn), nil
	}
	return func(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
		st, err := stream(ctx)
		if err != nil {
			return nil, wire.Reply{}, err
		}
		p, err := filestest.Ask(st, o)
		return st, p, err
	}
}

func args(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func TestSES4_NamesThatWouldLeadOut(t *testing.T) {
	hostile := []string{"", ".", "..", "/", "/etc/passwd", "../victim", "../../victim", "a/b", "a/../../victim", "victim\x00", "\x00", strings.Repeat("x", 256), "./victim", "victim/", "//", "sub/..", ".x.gatehouse-part"}
	for _, kind := range []files.Kind{files.File, files.Folder, files.Link, files.Other, "", "dir"} {
		outer := t.TempDir()
		inner := filepath.Join(outer, "a", "b")
		if err := errors.Join(os.MkdirAll(inner, 0o755), os.WriteFile(filepath.Join(outer, "a", "victim"), []byte("whole"), 0o644)); err != nil {
			t.Fatal(err)
		}
		c := &Copier{Pause: func(ctx context.Context, _ int) error { return ctx.Err() }, Open: agent(t, func(q files.Request, s *net.TCPConn, f *files.Frames) {
			h := sha256.Sum256([]byte("evil"))
			e := files.Entry{Kind: files.File, Size: 4, Mode: 0o777}
			switch q.Op {
			case files.List:
				var page []files.Entry
				for _, name := range append(hostile, "honest") {
					page = append(page, files.Entry{Name: []byte(name), Kind: kind, Size: 4})
				}
				_ = errors.Join(wire.WriteReply(s, wire.Reply{}), f.Say(files.FrameEntries, page), f.Say(files.FrameEnd, files.Listed{}))
			case files.Get:
				_ = errors.Join(wire.WriteReply(s, wire.Reply{Args: args(e)}), f.Say(files.FrameBegin, files.Begin{}), f.Write(files.FrameData, []byte("evil")), f.Say(files.FrameEnd, files.End{Size: 4, SHA256: hex.EncodeToString(h[:])}))
			}
		})}
		root, err := os.OpenRoot(inner)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		tree, err := c.GetTree(t.Context(), "x", root)
		if err != nil {
			t.Fatal(err)
		}
		if kind == files.Folder {
			continue // folders in folders, up to the limit: below
		}
		if len(tree.Problems) < len(hostile) {
			t.Errorf("%q: %d problems of %d", kind, len(tree.Problems), len(hostile))
		}
		if b, _ := os.ReadFile(filepath.Join(outer, "a", "victim")); string(b) != "whole" {
			t.Errorf("%q: the file beside holds %q", kind, b)
		}
		empty(t, outer, "a")
		empty(t, filepath.Join(outer, "a"), "b", "victim")
		if kind == files.File {
			empty(t, inner, "honest")
		} else {
			empty(t, inner)
		}
	}
}

func TestSES4_AgentThatLies(t *testing.T) {
	right := sha256.Sum256([]byte("content"))
	good := files.End{Size: 7, SHA256: hex.EncodeToString(right[:])}
	type answer struct {
		size  int64
		begin files.Begin
		data  string
		end   files.End
	}
	for name, a := range map[string]answer{
		"wrong hash":     {7, files.Begin{}, "content", files.End{Size: 7, SHA256: strings.Repeat("0", 64)}},
		"no hash":        {7, files.Begin{}, "content", files.End{Size: 7}},
		"wrong size":     {7, files.Begin{}, "content", files.End{Size: 8, SHA256: good.SHA256}},
		"too short":      {7, files.Begin{}, "conten", good},
		"too long":       {6, files.Begin{}, "content", good},
		"begins further": {7, files.Begin{From: 3}, "tent", good},
		"negative":       {-1, files.Begin{From: -1}, "content", good},
	} {
		b := setup(t)
		if err := os.WriteFile(filepath.Join(b.hereDir, "file"), []byte("whole"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.Open = agent(t, func(_ files.Request, s *net.TCPConn, f *files.Frames) {
			_ = errors.Join(wire.WriteReply(s, wire.Reply{Args: args(files.Entry{Kind: files.File, Size: a.size})}), f.Say(files.FrameBegin, a.begin), f.Write(files.FrameData, []byte(a.data)), f.Say(files.FrameEnd, a.end))
		})
		if _, err := b.Get(t.Context(), "file", b.here, "file", false); err == nil {
			t.Errorf("%s was taken", name)
		}
		if got, _ := os.ReadFile(filepath.Join(b.hereDir, "file")); string(got) != "whole" {
			t.Errorf("%s: the file holds %q", name, got)
		}
	}
	// A put of which the agent says that another file is there.
	for name, end := range map[string]files.End{"hash": {Size: 7, SHA256: strings.Repeat("0", 64)}, "size": {Size: 6, SHA256: good.SHA256}} {
		b := setup(t)
		if err := os.WriteFile(filepath.Join(b.hereDir, "file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.Open = agent(t, func(_ files.Request, s *net.TCPConn, f *files.Frames) {
			_ = errors.Join(wire.WriteReply(s, wire.Reply{Args: args(files.Ready{})}), f.Say(files.FrameBegin, files.Begin{}))
			for {
				if kind, _, err := f.Read(); err != nil || kind == files.FrameEnd {
					break
				}
			}
			_ = f.Say(files.FrameEnd, end)
		})
		if _, err := b.Put(t.Context(), b.here, "file", "file", ""); !errors.Is(err, ErrWrong) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	// A listing that never ends.
	b := setup(t)
	b.Open = agent(t, func(_ files.Request, s *net.TCPConn, f *files.Frames) {
		page := make([]files.Entry, 100)
		err := wire.WriteReply(s, wire.Reply{})
		for err == nil {
			err = f.Say(files.FrameEntries, page)
		}
	})
	if _, _, err := b.List(t.Context(), "."); err == nil || !strings.Contains(err.Error(), fmt.Sprint(files.MaxEntries)) {
		t.Errorf("a listing without end: %v", err)
	}
}

func TestSES4_FoldersWithoutEnd(t *testing.T) {
	b := setup(t)
	lists := 0
	b.Open = agent(t, func(q files.Request, s *net.TCPConn, f *files.Frames) {
		lists++
		_ = errors.Join(wire.WriteReply(s, wire.Reply{}), f.Say(files.FrameEntries, []files.Entry{{Name: []byte("x"), Kind: files.Folder}}), f.Say(files.FrameEnd, files.Listed{}))
	})
	tree, err := b.GetTree(t.Context(), ".", b.here)
	if err != nil || len(tree.Problems) != 1 || lists > maxDepth+1 {
		t.Errorf("%d lists, %+v, %v", lists, tree.Problems, err)
	}
}

func TestSES4_NamesThatAreOneFileHere(t *testing.T) {
	capitals := func(a, b string) bool { return strings.EqualFold(a, b) }
	n := names{}
	for _, c := range []struct {
		name string
		same func(a, b string) bool
		ok   bool
	}{{"Readme", capitals, true}, {"README", capitals, false}, {"other", capitals, true}, {"OTHER", func(a, b string) bool { return false }, true}, {"other", capitals, false}} {
		if err := n.clash(c.name, c.same); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// The disk of a Linux tells them apart.
	b := setup(t)
	for _, name := range []string{"a", "A"} {
		filestest.Random(t, filepath.Join(b.there, name), 10)
	}
	if tree, err := b.GetTree(t.Context(), ".", b.here); err != nil || len(tree.Files) != 2 || len(tree.Problems) != 0 {
		t.Errorf("%+v, %v", tree, err)
	}
}
