package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode"

	"github.com/spf13/cobra"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/files/filestest"
	"gatehouse/appliance/files/serve"
	"gatehouse/appliance/session/wire"
)

const fileRights = right.FileManager | right.SendFiles | right.ReceiveFiles

// copied runs cp as the tool does, with a target that is served over loopback.
func copied(t *testing.T, site *filestest.Site, args ...string) (out, diag string, code exitCode) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := copyCommand(func(_ *cobra.Command, target string, _ []string) (opener, func(), error) {
		if target != "server" {
			return nil, nil, fail(exitNotFound, "there is no target %q", target)
		}
		return site, func() {}, nil
	})
	c.Flags().Bool("json", false, "")
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(args)
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	err := c.ExecuteContext(t.Context())
	var f *failure
	switch {
	case errors.As(err, &f):
		code = f.code
		fmt.Fprintln(&stderr, f)
	case err != nil:
		code = exitUsage
		fmt.Fprintln(&stderr, err)
	}
	return stdout.String(), stderr.String(), code
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSES4_CopyRefusals(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	t.Chdir(here)
	write(t, "file", "x")
	write(t, "folder/file", "x")
	write(t, filepath.Join(there, "folder/file"), "x")
	for _, c := range []struct {
		args []string
		code exitCode
		says string
	}{
		{[]string{"file"}, exitUsage, "at least 2 arg"},
		{[]string{"file", "other"}, exitUsage, "one side is TARGET:PATH"},
		{[]string{"server:file", "server:other"}, exitUsage, "one side is TARGET:PATH"},
		{[]string{"server:a", "other:b", "."}, exitUsage, "all sources are on one target"},
		{[]string{"file", "nowhere:"}, exitNotFound, "no target"},
		{[]string{"folder", "server:"}, exitUsage, "-r"},
		{[]string{"missing", "server:"}, exitNotFound, "no such file"},
		{[]string{"server:folder", "."}, exitFailure, "is a folder"},
		{[]string{"server:missing", "."}, exitNotFound, "no such file"},
		{[]string{"server:file", "missing/"}, exitNotFound, "not a folder here"},
		{[]string{"server:..", "."}, exitUsage, "name a file here"},
		{[]string{"file", "server:missing/"}, exitNotFound, "no such"},
		{[]string{"./a:b", "server:"}, exitNotFound, "no such file"},
	} {
		site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
		out, diag, code := copied(t, site, c.args...)
		if code != c.code || !strings.Contains(diag, c.says) || out != "" {
			t.Errorf("cp %q: exit %d, %q, %q; want %d and %q", c.args, code, out, diag, c.code, c.says)
		}
	}
	site := filestest.NewSite(t, right.ReceiveFiles, filestest.Target(t, there))
	if _, diag, code := copied(t, site, "file", "server:"); code != exitDenied || !strings.Contains(diag, "send-files") {
		t.Errorf("without the right: exit %d, %q", code, diag)
	}
}

func TestSES4_CopyBothWays(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	t.Chdir(here)
	write(t, "one", "1")
	write(t, "tree/a", "a")
	write(t, "tree/sub/b", "b")
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	for _, args := range [][]string{
		{"one", "server:"}, {"one", "server:two"}, {"-r", "tree", "server:"}, {"-r", "tree", "server:new"}, {"-r", "tree", "one", "server:new/"},
		{"server:two", "back"}, {"-r", "server:new", "."}, {"-r", "server:tree", "renamed"}, {"server:two", "server:one", "tree"},
	} {
		if _, diag, code := copied(t, site, args...); code != exitOK || diag != "" {
			t.Errorf("cp %q: exit %d, %s", args, code, diag)
		}
	}
	for path, want := range map[string]string{
		filepath.Join(there, "one"): "1", filepath.Join(there, "two"): "1", filepath.Join(there, "tree/sub/b"): "b", filepath.Join(there, "new/a"): "a",
		filepath.Join(there, "new/tree/sub/b"): "b", filepath.Join(there, "new/one"): "1",
		"back": "1", "new/sub/b": "b", "new/tree/a": "a", "renamed/sub/b": "b", "tree/two": "1", "tree/one": "1",
	} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s holds %q (%v), want %q", path, b, err, want)
		}
	}
	out, diag, code := copied(t, site, "--json", "server:one", "back")
	var shown struct {
		Files []struct {
			Source, Destination, SHA256 string
			Size                        int64
		}
		LeftOut []struct{ Path string } `json:"left_out"`
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != exitOK || diag != "" || len(shown.Files) != 1 || len(shown.LeftOut) != 0 {
		t.Fatalf("exit %d, %q, %q, %v", code, out, diag, err)
	}
	// sha256sum of "1"
	if f := shown.Files[0]; f.Source != "one" || f.Destination != "back" || f.Size != 1 || f.SHA256 != "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b" {
		t.Errorf("%+v", f)
	}
}

// hostileNames are names that a file system takes and a terminal should not see.
func hostileNames() []string {
	var names []string
	for i, p := range []string{
		"\x1b]0;owned\a", "\x1b[2J\x1b[H", "\x1b[31mred", "a\nb", "a\rb", "\b\b\b", "\x9b31m", "\u202egnp.exe", "\u2066x", "\xff\xfe", "\xc3", "a\x7f",
		"<script>alert(1)</script>", "$(reboot)", "`id`", "'; rm -rf ~", "%s%n", "-rf", "--help", "\u0085", "\u2028", "\x0e", "\x1bP+q\x1b\\", "\x05", " ",
	} {
		for j := range 20 {
			names = append(names, fmt.Sprintf("%s%s %d", p, strings.Repeat("x", j), i*20+j))
		}
	}
	return names
}

func TestSES4_HostileNamesAreHarmless(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	t.Chdir(here)
	names := hostileNames()
	if len(names) != 500 {
		t.Fatalf("%d names", len(names))
	}
	if err := os.Mkdir(filepath.Join(there, "tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		path := filepath.Join(there, "tree", name)
		if i%2 == 0 {
			write(t, path, name)
		} else if err := os.Symlink("/etc/passwd", path); err != nil { // is left out and said
			t.Fatal(err)
		}
	}
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	out, diag, code := copied(t, site, "-r", "server:tree", "tree")
	if code != exitPartial || strings.Count(diag, "left out") != 251 { // 250, and the sum
		t.Errorf("exit %d, %d lines about links", code, strings.Count(diag, "left out"))
	}
	_, again, _ := copied(t, site, "--json", "-r", "server:tree", "json")
	for _, text := range []string{out, diag, again} {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar) }); i >= 0 {
			t.Errorf("%q reaches the terminal", text[max(0, i-20):min(len(text), i+20)])
		}
	}
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join("tree", name))
		if i%2 == 0 && (err != nil || string(b) != name) {
			t.Errorf("%q came as %q, %v", name, b, err)
		} else if i%2 == 1 && err == nil {
			t.Errorf("the link %q was followed", name)
		}
	}
	if _, diag, code := copied(t, site, "-r", "tree", "server:back"); code != exitOK {
		t.Errorf("back: exit %d, %s", code, diag)
	}
	if b, err := os.ReadFile(filepath.Join(there, "back", names[0])); err != nil || string(b) != names[0] {
		t.Errorf("%q went back as %q, %v", names[0], b, err)
	}
}

// lossy is a session of one stream: it is gone with it.
type lossy struct {
	opener
	used bool
}

func (l *lossy) Open(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
	if l.used {
		return nil, wire.Reply{}, errors.New("the session is gone")
	}
	l.used = true
	return l.opener.Open(ctx, o)
}

func TestSES4_CopyAfterAReconnect(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	t.Chdir(here)
	filestest.Random(t, "big", 3<<20)
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	site.Cuts = []int64{1 << 20, 1 << 20}
	connected := 0
	var stderr bytes.Buffer
	c := copyCommand(func(*cobra.Command, string, []string) (opener, func(), error) {
		connected++
		return &lossy{opener: site}, func() {}, nil
	})
	c.SetArgs([]string{"big", "server:"})
	c.SetOut(&stderr)
	c.SetErr(&stderr)
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err, stderr.String())
	}
	if connected != 3 || strings.Count(stderr.String(), "trying again") < 2 {
		t.Errorf("connected %d times, said %s; want 3 times", connected, stderr.String())
	}
	a, _ := os.ReadFile("big")
	b, _ := os.ReadFile(filepath.Join(there, "big"))
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("another file came")
	}
}

// metered counts what comes through a stream, and does something now and then.
type metered struct {
	wire.Stream
	count func(n int)
}

func (m metered) Read(b []byte) (int, error) {
	n, err := m.Stream.Read(b)
	m.count(n)
	return n, err
}

func (m metered) Write(b []byte) (int, error) {
	n, err := m.Stream.Write(b)
	m.count(n)
	return n, err
}

// TestSES4_CopyOverACutNetwork copies through hub, gateway and carrier, whose
// connections are cut twice each way.
func TestSES4_CopyOverACutNetwork(t *testing.T) {
	size := int64(48 << 20)
	if os.Getenv("GATEHOUSE_SOAK") != "" {
		size = 1 << 30
	}
	here, there := t.TempDir(), t.TempDir()
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	var h *hubBox
	var flowed atomic.Int64
	h = newHubBox(t, nas, func(o wire.Open, st wire.Stream) {
		_ = serve.Stream(context.Background(), site.Config, metered{st, func(n int) {
			now := flowed.Add(int64(n))
			for _, at := range []int64{size / 5, size / 2, size + size/3, size + size/2} {
				if now >= at && now-int64(n) < at {
					h.site.Cut()
				}
			}
		}}, o)
	})
	h.login()
	t.Chdir(here)
	filestest.Random(t, "big", size)
	for _, args := range [][]string{{"cp", "big", "NAS Süd:"}, {"cp", "nas-s-d:big", "back"}} {
		if code, out, diag := h.run(nil, args...); code != exitOK || !strings.Contains(out, fmt.Sprint(size)) {
			t.Fatalf("%q: %d %s %s", args, code, out, diag)
		}
	}
	if m := h.site.Meetings(); m < 6 {
		t.Errorf("the ends met %d times, want 2 and once more for each of 4 cuts", m)
	}
	sums := map[string]bool{}
	for _, path := range []string{"big", "back", filepath.Join(there, "big")} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if n, err := io.Copy(sum, f); err != nil || n != size {
			t.Errorf("%s has %d bytes, %v", path, n, err)
		}
		f.Close()
		sums[hex.EncodeToString(sum.Sum(nil))] = true
	}
	if len(sums) != 1 {
		t.Error("the three files are not the same")
	}
	if asked := h.site.Asked(); len(asked) != 2 || strings.Join(asked[0].Functions, ",") != "send-files" || strings.Join(asked[1].Functions, ",") != "receive-files" {
		t.Errorf("asked for: %+v", asked)
	}
}

// TestSES4_CopyEndsWithItsSession: what the owner ends does not begin again by itself.
func TestSES4_CopyEndsWithItsSession(t *testing.T) {
	there := t.TempDir()
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	var h *hubBox
	var once sync.Once
	var flowed atomic.Int64
	h = newHubBox(t, nas, func(o wire.Open, st wire.Stream) {
		_ = serve.Stream(context.Background(), site.Config, metered{st, func(n int) {
			if flowed.Add(int64(n)) > 1<<20 {
				once.Do(func() { h.site.End("ended by the owner") })
			}
		}}, o)
	})
	h.login()
	t.Chdir(t.TempDir())
	filestest.Random(t, "big", 32<<20)
	code, _, diag := h.run(nil, "cp", "big", "nas-s-d:")
	if code == exitOK || !strings.Contains(diag, "ended by the owner") || strings.Contains(diag, "--resume") || len(h.site.Asked()) != 1 {
		t.Errorf("%d %s, %d sessions were asked for", code, diag, len(h.site.Asked()))
	}
	if _, err := os.Stat(filepath.Join(there, "big")); err == nil {
		t.Error("half a file took its place")
	}
}

// TestSES4_CopyThatIsInterrupted keeps what came, and says so.
func TestSES4_CopyThatIsInterrupted(t *testing.T) {
	there := t.TempDir()
	t.Chdir(t.TempDir())
	site := filestest.NewSite(t, fileRights, filestest.Target(t, there))
	ctx, cancel := context.WithCancel(t.Context())
	filestest.Random(t, filepath.Join(there, "big"), 8<<20)
	var stderr bytes.Buffer
	var flowed atomic.Int64
	c := copyCommand(func(*cobra.Command, string, []string) (opener, func(), error) {
		return &interrupted{site, func(n int) {
			if flowed.Add(int64(n)) > 4<<20 {
				cancel()
			}
		}}, func() {}, nil
	})
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs([]string{"server:big", "."})
	c.SetOut(io.Discard)
	c.SetErr(&stderr)
	if err := c.ExecuteContext(ctx); err == nil || !strings.Contains(stderr.String(), "--resume") {
		t.Errorf("%v, %s", err, stderr.String())
	}
	if i, err := os.Stat(".big.gatehouse-part"); err != nil || i.Size() < 3<<20 {
		t.Errorf("kept: %v, %v", i, err)
	}
	if _, diag, code := copied(t, site, "--resume", "server:big", "."); code != exitOK {
		t.Errorf("going on: %d %s", code, diag)
	}
	a, _ := os.ReadFile("big")
	b, _ := os.ReadFile(filepath.Join(there, "big"))
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("another file came")
	}
}

type interrupted struct {
	opener
	count func(n int)
}

func (i *interrupted) Open(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
	st, p, err := i.opener.Open(ctx, o)
	if err != nil {
		return nil, p, err
	}
	return metered{st, i.count}, p, nil
}
