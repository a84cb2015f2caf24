package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// clock moves a second on at each look.
func clock() func() time.Time {
	t := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return func() time.Time { t = t.Add(time.Second); return t }
}

func texts(j *Journal, role control.Role, limit int) []string {
	var out []string
	for _, l := range j.Read(control.LogQuery{Role: role, Limit: limit}).Lines {
		out = append(out, l.Text)
	}
	return out
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestLinesCannotPoseAsOthers(t *testing.T) {
	j := New(1<<20, clock())
	for in, want := range map[string]string{
		"plain äöü 日本":                      "plain äöü 日本",
		"end\r\n":                           "end",
		"two\nlines":                        `two\x0alines`,
		"\x1b[2J\x1b[31mgone":               `\x1b[2J\x1b[31mgone`,
		"over\rwritten":                     `over\x0dwritten`,
		"a\tb":                              "a  b",
		"bad \xff byte":                     `bad \xff byte`,
		"right to left \u202e evil":         `right to left \u202e evil`,
		"line\u2028separator\u0085 and nul": `line\u2028separator\x85 and nul`,
		"nul\x00":                           `nul\x00`,
	} {
		j.Append(control.Agent, in)
		got := texts(j, control.Agent, 1)
		same(t, fmt.Sprintf("%q", in), got, want)
		if again := clean(got[0]); again != got[0] {
			t.Errorf("%q changes when it is cleaned again: %q", got[0], again)
		}
	}
	for _, long := range []string{strings.Repeat("ä", textLimit), strings.Repeat("\x00", textLimit)} {
		j.Append(control.Agent, long)
		got := texts(j, control.Agent, 1)[0]
		if len(got) > textLimit || !strings.HasSuffix(got, "…") || clean(got) != got {
			t.Errorf("a long line is kept with %d bytes", len(got))
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b]0;title\x07\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if len(got) > textLimit {
			t.Fatalf("%d bytes", len(got))
		}
		for _, r := range got {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q holds %q", got, r)
			}
		}
		if clean(got) != got {
			t.Fatalf("%q changes when it is cleaned again", got)
		}
	})
}

func TestMemoryIsBoundedPerRole(t *testing.T) {
	const limit = 10_000
	j := New(limit, clock())
	j.Append(control.Console, "sign-in refused")
	for i := range 100_000 {
		j.Append(control.Agent, fmt.Sprintf("flood %d", i))
	}
	same(t, "the quiet role's line", texts(j, control.Console, 10), "sign-in refused")
	same(t, "the newest of the flood", texts(j, control.Agent, 1), "flood 99999")
	for role, r := range j.roles {
		if r.bytes > limit || cap(r.lines) > 4*limit/overhead {
			t.Errorf("%s holds %d bytes in %d places", role, r.bytes, cap(r.lines))
		}
	}
	if n := len(j.Read(control.LogQuery{Limit: 1 << 30}).Lines); n < 100 || n > limit/overhead+1 {
		t.Errorf("%d lines in all", n)
	}
}

func TestReadOrderRoleAndLimit(t *testing.T) {
	j := New(1<<20, clock())
	for i := range 300 {
		j.Append([]control.Role{control.Agent, control.Console, "kernel"}[i%3], fmt.Sprint(i))
	}
	same(t, "all", texts(j, "", 4), "296", "297", "298", "299")
	same(t, "one role", texts(j, "kernel", 2), "296", "299")
	same(t, "nobody", texts(j, "nobody", 2))
	if n := len(texts(j, "", 0)); n != defaultLimit {
		t.Errorf("without a limit: %d lines", n)
	}
	if n := len(texts(j, "", -5)); n != defaultLimit {
		t.Errorf("with a negative limit: %d lines", n)
	}
	big := New(64<<20, clock())
	for range 2000 {
		big.Append(control.Agent, strings.Repeat("\\", textLimit-10))
	}
	size := 0
	for _, l := range texts(big, "", 2000) {
		size += 2 * len(l)
	}
	if size > answerLimit || size < answerLimit/2 {
		t.Errorf("an answer of %d bytes, limit %d", size, answerLimit)
	}
}

func TestBOX12_LogSurvivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	j := New(1<<20, clock())
	j.Append(control.Init, "before the volume was open")
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	j.Append(control.Agent, "first boot")
	if err := j.Attach(dir, 1<<20); err == nil {
		t.Error("attached twice")
	}
	// No Close: the power goes.
	j2 := New(1<<20, clock())
	j2.Append(control.Init, "second boot begins")
	if err := j2.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	want := []string{"before the volume was open", "first boot", "second boot begins"}
	same(t, "second boot", texts(j2, "", 10), want...)
	if err := j2.Close(); err != nil {
		t.Fatal(err)
	}
	j2.Append(control.Init, "in memory alone")
	same(t, "after Close", texts(j2, "", 10), append(want, "in memory alone")...)
	j3 := New(1<<20, clock())
	if err := j3.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	same(t, "third boot", texts(j3, "", 10), want...)
}

func TestTornAndForeignLinesAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	good := `{"time":"2026-01-02T03:04:05Z","role":"agent","text":"good"}` + "\n"
	for name, rest := range map[string]string{
		"torn":          `{"time":"2026-01-02T03:04:05Z","role":"agent","te`,
		"garbage":       "\x00\x00\x00\xff\n",
		"another field": `{"time":"2026-01-02T03:04:05Z","role":"agent","text":"x","as":"root"}` + "\n",
		"no role":       `{"text":"x"}` + "\n",
		"much too long": strings.Repeat("x", 20*textLimit) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, newName), []byte(good+rest), 0o600); err != nil {
			t.Fatal(err)
		}
		j := New(1<<20, clock())
		if err := j.Attach(dir, 1<<20); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same(t, name, texts(j, "", 10), "good")
		j.Append(control.Agent, "next")
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		again := New(1<<20, clock())
		if err := again.Attach(dir, 1<<20); err != nil {
			t.Fatal(err)
		}
		same(t, name+", after the next boot", texts(again, "", 10), "good", "next")
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Escape sequences put into the file do not come out of it.
	evil := `{"time":"2026-01-02T03:04:05Z","role":"agent","text":"\u001b[2J"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, newName), []byte(evil), 0o600); err != nil {
		t.Fatal(err)
	}
	j := New(1<<20, clock())
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	same(t, "escape sequence from the file", texts(j, "", 1), `\x1b[2J`)
}

func TestDiskIsBounded(t *testing.T) {
	dir := t.TempDir()
	const limit = 20_000
	j := New(1<<20, clock())
	if err := j.Attach(dir, limit); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		j.Append(control.Agent, fmt.Sprintf("line %d", i))
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	var size int64
	for _, f := range files {
		fi, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), fi.Mode())
		}
	}
	if size > limit || size < limit/3 {
		t.Errorf("%d bytes on disk, limit %d", size, limit)
	}
	again := New(1<<20, clock())
	if err := again.Attach(dir, limit); err != nil {
		t.Fatal(err)
	}
	same(t, "the newest", texts(again, "", 2), "line 4998", "line 4999")
}

func TestDiskThatRefuses(t *testing.T) {
	j := New(1<<20, clock())
	if err := j.Attach("/proc/nowhere", 1<<20); err == nil {
		t.Error("a folder that cannot be made was attached")
	}
	dir := t.TempDir()
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Fatalf("after a failed Attach: %v", err)
	}
	j.file.Close() // as a disk that is gone
	j.Append(control.Agent, "one")
	j.Append(control.Agent, "two")
	same(t, "lines after the loss", texts(j, control.Agent, 10), "one", "two")
	got := texts(j, control.Init, 10)
	if len(got) != 1 || !strings.Contains(got[0], "the log goes on in memory") {
		t.Errorf("the loss is told as %q, want once", got)
	}
	if err := j.Sync(); err != nil {
		t.Errorf("Sync without a disk: %v", err)
	}
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Errorf("attaching again: %v", err)
	}
	// Each line once: those of before the loss are on disk, the others are added.
	same(t, "after attaching again", texts(j, control.Agent, 10), "one", "two")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	same(t, "after attaching a third time", texts(j, control.Agent, 10), "one", "two")
	if err := New(1, clock()).Attach(writeFile(t, dir), 1<<20); err == nil {
		t.Error("a file was attached as a folder")
	}
}

func writeFile(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHandler(t *testing.T) {
	j := New(1<<20, clock())
	var level slog.LevelVar
	log := slog.New(j.Handler(control.Init, &level))
	log.Debug("not shown")
	log.Info("role started", "role", "agent", "text", "a\nb")
	level.Set(slog.LevelDebug)
	log.Debug("shown")
	same(t, "lines", texts(j, control.Init, 10), `level=INFO msg="role started" role=agent text="a\nb"`, "level=DEBUG msg=shown")
}

func TestManyWriters(t *testing.T) {
	dir := t.TempDir()
	j := New(1<<20, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	lines := 200
	if testing.Short() {
		lines = 50
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range lines {
				j.Append(control.Role(fmt.Sprint("w", w)), fmt.Sprint(i))
				j.Read(control.LogQuery{Limit: 5})
			}
		})
	}
	if err := j.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	cancel()
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	again := New(1<<20, time.Now)
	if err := again.Attach(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	for w := range 8 {
		if n := len(texts(again, control.Role(fmt.Sprint("w", w)), 1000)); n != lines {
			t.Errorf("writer %d: %d of %d lines on disk", w, n, lines)
		}
	}
}
