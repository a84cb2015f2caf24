package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// ran is a Runner that remembers.
type ran struct {
	calls []string
	code  int
	out   string
	err   error
}

func (r *ran) run(_ context.Context, path string, args ...string) (int, string, error) {
	r.calls = append(r.calls, filepath.Base(path)+" "+strings.Join(args, " "))
	return r.code, r.out, r.err
}

// Once the header is committed nothing formats the volume, whatever the check says.
func TestBOX6_CommittedIsNeverFormatted(t *testing.T) {
	for code := range 256 {
		r := &ran{code: code, out: "bad magic number"}
		_, _ = Prepare(t.Context(), r.run, "/dev/mapper/data", true)
		if len(r.calls) != 1 || r.calls[0] != "e2fsck -p /dev/mapper/data" {
			t.Fatalf("exit code %d: ran %q", code, r.calls)
		}
	}
	r := &ran{err: errors.New("no such program")}
	var p *Problem
	if _, err := Prepare(t.Context(), r.run, "/dev/mapper/data", true); !errors.As(err, &p) || len(r.calls) != 1 {
		t.Errorf("a check that cannot run: %v, ran %q", err, r.calls)
	}
}

func TestBOX6_FormatRefusesTheClear(t *testing.T) {
	r := &ran{}
	for _, dev := range []string{"/dev/vda3", "/dev/sda", "data", ""} {
		if err := Format(t.Context(), r.run, dev); err == nil {
			t.Errorf("%q was formatted", dev)
		}
	}
	if len(r.calls) != 0 {
		t.Errorf("ran %q", r.calls)
	}
}

func TestFormatFailure(t *testing.T) {
	r := &ran{code: 1, out: "first\nDevice size reported to be zero.\n"}
	if err := Format(t.Context(), r.run, "/dev/mapper/data"); err == nil || !strings.Contains(err.Error(), "reported to be zero") {
		t.Errorf("mke2fs failed: %v", err)
	}
}

func TestCheckedCodes(t *testing.T) {
	for code := -1; code < 256; code++ {
		c, err := checked(code, "said so")
		var p *Problem
		switch {
		case code == 0:
			if err != nil || c.Repaired {
				t.Errorf("0: %+v, %v", c, err)
			}
		case code == 1, code == 2, code == 3:
			if err != nil || !c.Repaired || c.Output != "said so" {
				t.Errorf("%d: %+v, %v", code, c, err)
			}
		case !errors.As(err, &p):
			t.Errorf("%d: %v, want a *Problem", code, err)
		case code >= 4 && code <= 8 && !strings.Contains(p.Words, "damaged"):
			t.Errorf("%d: %s", code, p.Words)
		case code > 8 && strings.Contains(p.Words, "damaged"):
			t.Errorf("%d: says damaged, is %s", code, p.Words)
		}
	}
}

func FuzzLastLine(f *testing.F) {
	f.Add("a\nb\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := lastLine(s); got == "" || len(got) > 210 || strings.Contains(got, "\n") {
			t.Errorf("lastLine(%q) = %q", s, got)
		}
	})
}

// The real programs on a file: made, found clean, mended, and told damaged.
func TestFormatAndCheckForReal(t *testing.T) {
	const blocks = 1 << 16 // 256 MiB, sparse
	dev := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(dev, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dev, blocks*4096); err != nil {
		t.Fatal(err)
	}
	if err := format(t.Context(), Exec, dev); err != nil {
		t.Fatal(err)
	}
	if c, err := Check(t.Context(), Exec, dev); err != nil || c.Repaired {
		t.Fatalf("a new file system: %+v, %v", c, err)
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// s_r_blocks_count: root's reserve.
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	if reserved := uint32(super[8]) | uint32(super[9])<<8 | uint32(super[10])<<16; reserved != blocks/20 {
		t.Errorf("%d blocks are reserved, want %d", reserved, blocks/20)
	}
	// Every superblock gone: not to be mended without a decision.
	noise := []byte(strings.Repeat("not a superblock", 256))
	for group := range int64(blocks / 32768 * 2) {
		if _, err := f.WriteAt(noise, group*32768*4096); err != nil {
			t.Fatal(err)
		}
	}
	var p *Problem
	if _, err := Check(t.Context(), Exec, dev); !errors.As(err, &p) || !strings.Contains(p.Error(), "data volume") {
		t.Errorf("a volume without superblocks: %v", err)
	}
}

func TestExec(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	code, out, err := Exec(ctx, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
	if code != 3 || err != nil || out != "out\nerr\n" {
		t.Errorf("Exec = %d, %q, %v", code, out, err)
	}
	if _, out, _ = Exec(ctx, "/bin/sh", "-c", "yes | head -c 100000"); len(out) != 16<<10 {
		t.Errorf("%d bytes of output were kept", len(out))
	}
	if _, _, err := Exec(ctx, "/nowhere/mke2fs"); err == nil {
		t.Error("a program that is not there ran")
	}
	cancel()
	if _, _, err := Exec(ctx, "/bin/sh", "-c", "sleep 10"); err == nil {
		t.Error("a program outlived its context without an error")
	}
}

func TestFormatArguments(t *testing.T) {
	args := formatArguments("/dev/mapper/data")
	for _, want := range []string{"lazy_itable_init=1,lazy_journal_init=1,nodiscard", "remount-ro", "/dev/mapper/data"} {
		if !slices.Contains(args, want) {
			t.Errorf("%q lacks %s", args, want)
		}
	}
}

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if ok, err := Reserve(dir); !ok || err != nil {
			t.Fatalf("Reserve = %v, %v", ok, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, reserveName))
	if err != nil || info.Size() != ReserveSize {
		t.Errorf("the reserve: %v, %v", info, err)
	}
	for range 2 {
		if err := Release(dir); err != nil {
			t.Errorf("Release = %v", err)
		}
	}
	if _, err := Reserve(filepath.Join(dir, "no")); err == nil {
		t.Error("space was reserved in a folder that is not there")
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, reserveName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Reserve(dir); err == nil {
		t.Error("a symbolic link in the place of the reserve was followed")
	}
}

// Nobody could sign in on a full volume, because a session is written; the
// reserve is there for that, and comes back once there is room for both.
func TestAUD1_TheReserveIsGivenBackOnAFullVolume(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
		t.Fatalf("mounting a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	balance := func(when string, want bool) (free uint64) {
		t.Helper()
		if held, err := Balance(dir); held != want || err != nil {
			t.Errorf("%s: held %v, %v", when, held, err)
		}
		_, free, err := Usage(dir)
		if err != nil {
			t.Fatal(err)
		}
		return free
	}
	fill := func(leave uint64) {
		t.Helper()
		_, free, err := Usage(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("hog", leave)), make([]byte, free-leave), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	balance("empty", true)
	fill(20 << 20)
	balance("room is left", true)
	fill(1 << 20)
	if free := balance("full", false); free < ReserveSize {
		t.Errorf("%d bytes are free after the reserve was given back", free)
	}
	balance("what was given back is not taken again", false)
	if err := os.Remove(filepath.Join(dir, fmt.Sprint("hog", 1<<20))); err != nil {
		t.Fatal(err)
	}
	if free := balance("room again", true); free < ReserveSize {
		t.Errorf("the reserve took what others need: %d bytes are free", free)
	}
	// A power cut while it was made.
	if err := os.Truncate(filepath.Join(dir, reserveName), 0); err != nil {
		t.Fatal(err)
	}
	if free := balance("half made", true); free > 30<<20 {
		t.Errorf("a half reserve is taken for one: %d bytes are free", free)
	}
}

// What lies at the folder once the volume is gone is not the volume.
func TestAUD1_NoReserveWhereTheVolumeWas(t *testing.T) {
	dir := t.TempDir()
	k := keeper{folder: dir, log: slog.New(slog.DiscardHandler)}
	if held, err := k.begin(); !held || err != nil {
		t.Fatalf("%v, %v", held, err)
	}
	if err := Release(dir); err != nil {
		t.Fatal(err)
	}
	if !k.look() || !k.held {
		t.Error("the reserve is not taken again")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
		t.Fatalf("mounting a small file system (this test needs root): %v", err)
	}
	defer syscall.Unmount(dir, 0)
	if k.look() {
		t.Error("it goes on in another file system")
	}
	if _, err := os.Lstat(filepath.Join(dir, reserveName)); err == nil {
		t.Error("space was reserved in another file system")
	}
}

func TestUsage(t *testing.T) {
	if _, _, err := Usage(filepath.Join(t.TempDir(), "no")); err == nil {
		t.Error("the space of nothing was told")
	}
	if size, free, err := Usage(t.TempDir()); err != nil || size == 0 || free > size {
		t.Errorf("Usage = %d, %d, %v", size, free, err)
	}
}
