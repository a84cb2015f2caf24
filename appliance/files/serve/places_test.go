package serve_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/files"
	"gatehouse/appliance/files/filestest"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// begun is a put that the agent has taken content of, and waits for more.
type begun struct {
	wire.Stream
	*files.Frames
	t     testing.TB
	whole []byte
	sent  int
}

// begin sends the first bytes of content to a path.
func begin(t testing.TB, s *filestest.Site, path string, content []byte, n int) *begun {
	t.Helper()
	stream, f, _, err := ask(t, s, files.Request{Op: files.Put, Path: []byte(path), Size: int64(len(content))})
	if err := errors.Join(err, f.Expect(files.FrameBegin, &files.Begin{}, nil), f.Write(files.FrameData, content[:n])); err != nil {
		t.Fatal(err)
	}
	return &begun{stream, f, t, content, n}
}

// finish sends the rest and reads what the agent says of it.
func (b *begun) finish() error {
	h := sha256.Sum256(b.whole)
	go func() { // the answer comes whatever becomes of it
		_ = b.Frames.Write(files.FrameData, b.whole[b.sent:])
		_ = b.Say(files.FrameEnd, files.End{Size: int64(len(b.whole)), SHA256: hex.EncodeToString(h[:])})
	}()
	return b.Expect(files.FrameEnd, &files.End{}, func(int64) {})
}

// grown waits until a file has a size.
func grown(t testing.TB, path string, size int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if i, err := os.Stat(path); err == nil && i.Size() == size {
			return
		}
	}
	t.Fatalf("%s does not get %d bytes", path, size)
}

// contains checks a file's content.
func contains(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what was acknowledged: %d bytes of %d, %v", path, len(got), len(want), err)
	}
}

// The network of an upload is gone and its tool is killed, which the agent does
// not know yet. The person changes the end of the file and goes on with it in a
// session of its own. What becomes of the first touches nothing then, also where
// the agent cannot know that both are at one place.
func TestSES4_ALostPutWritesNothingLater(t *testing.T) {
	const size = 4*files.Chunk + 5
	before, after := make([]byte, size), make([]byte, size)
	for i := 2 * files.Chunk; i < size; i++ {
		before[i], after[i] = '1', '2'
	}
	for name, at := range map[string]string{"the target": "192.0.2.5:22", "another name of it": "nas.example:22"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			dial := filestest.Target(t, dir)
			a := filestest.NewSite(t, all, dial)
			first := begin(t, a, "file", before, 3*files.Chunk+1000)
			grown(t, filepath.Join(dir, files.PartName("file")), 3*files.Chunk) // and 1000 bytes wait
			s, f, p, err := ask(t, a.Beside(session.ID{2}, at, dial), files.Request{Op: files.Put, Path: []byte("file"), Size: size, Resume: true})
			var ready files.Ready
			if err := errors.Join(err, files.Message(p.Args, &ready)); err != nil || ready.Part != 2*files.Chunk {
				t.Fatalf("%+v, %v", ready, err)
			}
			h := sha256.Sum256(after[:ready.Part])
			if err := errors.Join(f.Say(files.FrameHave, files.Have{From: ready.Part, SHA256: hex.EncodeToString(h[:])}), f.Expect(files.FrameBegin, &files.Begin{}, nil)); err != nil {
				t.Fatal(err)
			}
			if err := (&begun{s, f, t, after, int(ready.Part)}).finish(); err != nil {
				t.Fatal(err)
			}
			contains(t, filepath.Join(dir, "file"), after)
			first.Stream.Close() // now the agent hears of it
			a.Wait()
			contains(t, filepath.Join(dir, "file"), after)
			holds(t, dir, "file")
		})
	}
}

// The later of two puts ends the earlier, whatever sessions they are of, and
// however each spells the path. The earlier is told, in a way after which its tool
// does not come again and end the later in its turn.
func TestSES4_TheLaterPutIsMeantAcrossSessions(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "folder"), 0o755), os.Symlink("folder", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	file, dial := filepath.Join(dir, "folder", "file"), filestest.Target(t, dir)
	a := filestest.NewSite(t, all, dial)
	b := a.Beside(session.ID{2}, a.At, dial)
	for path, one := range map[string][]byte{"folder/file": bytes.Repeat([]byte("A"), 1<<20), "link/file": bytes.Repeat([]byte("A"), 1<<20), file: make([]byte, 1<<19)} {
		two := bytes.Repeat([]byte("B"), 1<<20) // as long as the first, within a second
		first := begin(t, a, "folder/file", one, len(one))
		second := begin(t, b, path, two, 600_000)
		if err := first.finish(); code(err) != wire.Failed || !strings.Contains(err.Error(), "another copy to the same place") {
			t.Errorf("%s: the first: %v", path, err)
		}
		first.Stream.Close()
		a.Wait()
		if err := second.finish(); err != nil {
			t.Errorf("%s: the second: %v", path, err)
		}
		contains(t, file, two)
		holds(t, filepath.Dir(file), "file")
	}
	events, _ := a.Snapshot()
	for i, e := range events {
		if e.Outcome != []string{"", "failed"}[i%2] {
			t.Errorf("of the first is written down: %+v", e)
		}
	}
}

// A put that finds another's part in its place leaves it: the other goes on.
func TestSES4_APartOfAnotherIsLeft(t *testing.T) {
	dir := t.TempDir()
	dial, content := filestest.Target(t, dir), make([]byte, 1<<20)
	a := filestest.NewSite(t, all, dial)
	first := begin(t, a, "file", content, 1000)
	second := begin(t, a.Beside(session.ID{2}, "nas.example:22", dial), "file", content, 600_000)
	if err := first.finish(); code(err) != wire.Failed || !strings.Contains(err.Error(), "another copy to the same place") {
		t.Errorf("the first: %v", err)
	}
	if err := second.finish(); err != nil {
		t.Errorf("the second: %v", err)
	}
	contains(t, filepath.Join(dir, "file"), content)
	holds(t, dir, "file")
}

// A tool that comes again after a loss may have both its streams served in the
// wrong order. The one that is ended for it is tried again.
func TestSES4_ACopyBegunAgainIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	a := filestest.NewSite(t, all, filestest.Target(t, dir))
	content := make([]byte, 1<<20)
	first := begin(t, a, "file", content, 600_000)
	second := begin(t, a, "file", content, 1000)
	if err := first.finish(); code(err) != wire.Unreachable {
		t.Errorf("the first: %v", err)
	}
	if err := second.finish(); err != nil {
		t.Errorf("the second: %v", err)
	}
	contains(t, filepath.Join(dir, "file"), content)
}
