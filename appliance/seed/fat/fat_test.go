package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// memory is a medium.
type memory []byte

func (m memory) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(m).ReadAt(b, at) }
func (m memory) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > int64(len(m)) {
		return 0, errors.New("beyond the end")
	}
	return copy(m[at:], b), nil
}

func made(t testing.TB, content []byte) memory {
	t.Helper()
	b, err := Format(1<<20, "GATESEED", "seed.json", content)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What Format makes is a file system for others, too.
func TestFormattedVolumeIsOneForOthers(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	file := filepath.Join(t.TempDir(), "fat")
	if err := os.WriteFile(file, made(t, content), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.fat", "-n", file)
	if got := run(t, "mtype", "-i", file, "::/seed.json"); got != string(content) {
		t.Errorf("others read %d bytes, want %d", len(got), len(content))
	}
}

// What others make is read: each width of the table, long and short names,
// pieces in several places.
func TestVolumesOfOthersAreRead(t *testing.T) {
	for _, kind := range []struct {
		bits, size string
	}{{"12", "2048"}, {"16", "32768"}, {"32", "34816"}} {
		folder := t.TempDir()
		file, content := filepath.Join(folder, "fat"), bytes.Repeat([]byte(kind.bits+" bits "), 7000)
		run(t, "mkfs.fat", "-C", "-s", "1", "-F", kind.bits, "-n", "GATESEED", file, kind.size)
		for name, b := range map[string][]byte{"seed.json": content, "a": bytes.Repeat([]byte("a"), 3000), "b": {1}} {
			if err := os.WriteFile(filepath.Join(folder, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// A hole before it makes two pieces of the file.
		run(t, "mcopy", "-i", file, filepath.Join(folder, "a"), filepath.Join(folder, "b"), "::/")
		run(t, "mdel", "-i", file, "::/a")
		run(t, "mcopy", "-i", file, filepath.Join(folder, "seed.json"), "::/")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		disk := memory(b)
		v, err := Open(disk)
		if err != nil {
			t.Fatalf("FAT%s: %v", kind.bits, err)
		}
		f, err := v.Find("SEED.json", 1<<20)
		if err != nil {
			t.Fatalf("FAT%s: %v", kind.bits, err)
		}
		got, err := f.Read(disk)
		if err != nil || !bytes.Equal(got, content) || v.Label != "GATESEED" {
			t.Errorf("FAT%s: %d bytes of %d, label %q, %v", kind.bits, len(got), len(content), v.Label, err)
		}
		if err := f.Overwrite(disk, []byte("gone")); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(disk, []byte(" bits "+kind.bits+" bits ")) {
			t.Errorf("FAT%s: after overwriting, something of the file is left", kind.bits)
		}
		if err := os.WriteFile(file, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := run(t, "mtype", "-i", file, "::/seed.json"); !strings.HasPrefix(got, "gone\x00") || len(got) != len(content) {
			t.Errorf("FAT%s: others read %q…", kind.bits, got[:min(10, len(got))])
		}
		run(t, "fsck.fat", "-n", file)
	}
}

func TestBadVolumesAreRefused(t *testing.T) {
	le := binary.LittleEndian
	content := bytes.Repeat([]byte("x"), 10_000)
	for name, c := range map[string]struct {
		spoil func(memory)
		open  error
		find  string
	}{
		"zeros":           {func(m memory) { clear(m) }, ErrNone, ""},
		"no signature":    {func(m memory) { m[510] = 0 }, ErrNone, ""},
		"sectors of 3":    {func(m memory) { le.PutUint16(m[11:], 3) }, ErrNone, ""},
		"clusters of 3":   {func(m memory) { m[13] = 3 }, ErrNone, ""},
		"no table":        {func(m memory) { m[16] = 0 }, ErrNone, ""},
		"no room":         {func(m memory) { le.PutUint16(m[19:], 3) }, ErrNone, ""},
		"too many":        {func(m memory) { le.PutUint16(m[19:], 0); le.PutUint32(m[32:], 1<<31) }, ErrNone, ""},
		"other file":      {func(m memory) { copy(m[5*512+32:], make([]byte, 64)) }, nil, "not exist"},
		"an empty one":    {func(m memory) { le.PutUint32(m[5*512+64+28:], 0) }, nil, "empty"},
		"too long":        {func(m memory) { le.PutUint32(m[5*512+64+28:], 1<<31) }, nil, "are the most"},
		"out of it":       {func(m memory) { le.PutUint16(m[5*512+64+26:], 2000) }, nil, "lead out"},
		"leads to 0":      {func(m memory) { copy(m[512+3:], []byte{0, 0, 0}) }, nil, "lead out"},
		"ends too early":  {func(m memory) { copy(m[512+3:], []byte{0xff, 0xff, 0xff}) }, nil, "should have"},
		"a folder":        {func(m memory) { m[5*512+64+11] = attrFolder }, nil, "not exist"},
		"in a circle":     {func(m memory) { copy(m[512+3:], []byte{2, 0, 0}) }, nil, ""},
		"a deleted label": {func(m memory) { m[5*512] = 0xe5 }, nil, ""},
	} {
		m := made(t, content)
		c.spoil(m)
		v, err := Open(m)
		if !errors.Is(err, c.open) {
			t.Errorf("%s: opened with %v, want %v", name, err, c.open)
		}
		if err != nil || c.find == "" {
			continue
		}
		if f, err := v.Find("seed.json", 1<<16); err == nil || !strings.Contains(err.Error(), c.find) {
			t.Errorf("%s: found %v, %v, want %q", name, f, err, c.find)
		}
	}
	if v, err := Open(made(t, content)); err != nil {
		t.Error(err)
	} else if _, err := v.Find("other.json", 1<<16); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Whatever is on a stick, reading it ends, and soon.
func FuzzOpen(f *testing.F) {
	small := made(f, []byte("x"))
	f.Add([]byte(small[:16*512]))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Open(memory(b))
		if err != nil {
			return
		}
		if file, err := v.Find("seed.json", 1<<16); err == nil {
			_, _ = file.Read(memory(b))
		}
	})
}
