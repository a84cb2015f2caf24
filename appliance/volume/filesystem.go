package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Runner runs a program to its end. An exit code other than 0 is no error:
// e2fsck's codes say what it did. Before the supervisor runs, Exec is one;
// later it must be the supervisor's, because one waiter reaps everything.
type Runner func(ctx context.Context, path string, args ...string) (exitCode int, output string, err error)

// Exec is the Runner by os/exec, with a bounded output and an empty environment.
func Exec(ctx context.Context, path string, args ...string) (int, string, error) {
	var out bounded
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"PATH=/sbin:/bin"}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), string(out), nil
	}
	if err != nil {
		return -1, string(out), fmt.Errorf("running %s: %w", path, err)
	}
	return 0, string(out), nil
}

type bounded []byte

func (b *bounded) Write(p []byte) (int, error) {
	const limit = 16 << 10
	*b = append(*b, p[:min(len(p), limit-len(*b))]...)
	return len(p), nil
}

// A Problem says in words why the data volume cannot be used, and what to do.
// The volume is as it was found.
type Problem struct {
	Words  string
	Output string // of the program that found it
	Err    error
}

func (p *Problem) Error() string {
	if p.Err != nil {
		return p.Words + ": " + p.Err.Error()
	}
	return p.Words
}

func (p *Problem) Unwrap() error { return p.Err }

const (
	mke2fs = "/sbin/mke2fs"
	e2fsck = "/sbin/e2fsck"
)

// Prepare makes the mapped volume ready to mount. It is the one place that
// decides between making a file system and checking one: committed is whether
// the vault's header was ever committed, and from then on the volume is never
// formatted again, whatever is wrong with it. A power cut between Format and
// the commit leaves committed false: the next start formats once more, under
// a new key, and nothing of value was there.
func Prepare(ctx context.Context, run Runner, mapped string, committed bool) (Checked, error) {
	if committed {
		return Check(ctx, run, mapped)
	}
	return Checked{}, Format(ctx, run, mapped)
}

// Format makes an ext4 file system. Inode tables and journal are left to be
// written in the background, so that 64 GiB take a second or two; what an
// attacker could make of the old blocks is nothing, as they decrypt to noise.
// Five in a hundred blocks stay reserved for root, which PID 1 is and roles
// are not: the audit log can go on when a role has filled the disk.
func Format(ctx context.Context, run Runner, mapped string) error {
	if !strings.HasPrefix(mapped, mapperFolder+"/") {
		return fmt.Errorf("formatting %s: not a mapping; data is never written in the clear", mapped)
	}
	return format(ctx, run, mapped)
}

func format(ctx context.Context, run Runner, dev string) error {
	code, out, err := run(ctx, mke2fs, formatArguments(dev)...)
	if err != nil {
		return fmt.Errorf("making the file system: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("making the file system on %s: mke2fs ended with %d: %s", dev, code, lastLine(out))
	}
	return nil
}

// formatArguments are all explicit: nothing is left to an mke2fs.conf.
func formatArguments(dev string) []string {
	return []string{
		"-q", "-F", "-t", "ext4", "-L", "gatehouse-data",
		"-b", "4096", "-I", "256", "-i", "65536", "-m", "5",
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-J", "size=16",
		"-e", "remount-ro",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		dev,
	}
}

// Checked is what Check found.
type Checked struct {
	Repaired bool   // something was mended
	Output   string // of e2fsck, if anything was mended
}

// Check runs e2fsck -p, which mends what can be mended without a decision. A
// volume that needs one is a *Problem; it stays as it is.
func Check(ctx context.Context, run Runner, dev string) (Checked, error) {
	code, out, err := run(ctx, e2fsck, "-p", dev)
	if err != nil {
		return Checked{}, &Problem{Words: "The data volume could not be checked", Err: err}
	}
	return checked(code, out)
}

// checked reads the exit code, a sum of bits (e2fsck(8)).
func checked(code int, out string) (Checked, error) {
	const corrected, reboot, left, operational = 1, 2, 4, 8
	switch {
	case code == 0:
		return Checked{}, nil
	case code > 0 && code&^(corrected|reboot) == 0:
		// 2 asks for a restart if the file system was mounted: it was not.
		return Checked{Repaired: true, Output: out}, nil
	case code > 0 && code&left != 0 && code&^(corrected|reboot|left) == 0:
		return Checked{}, &Problem{
			Words: "The data volume is damaged and could not be mended without a decision. Nothing on it was changed or " +
				"erased. Copy the disk before you try anything; then restore a backup, or erase at the console and start anew",
			Output: out, Err: errors.New(lastLine(out)),
		}
	}
	words := fmt.Sprintf("The data volume could not be checked (e2fsck ended with %d). Nothing on it was changed or erased", code)
	if code == operational {
		words = "The data volume could not be read as a file system: its beginning is damaged, or the disk fails. " +
			"Nothing on it was changed or erased. Copy the disk before you try anything"
	}
	return Checked{}, &Problem{Words: words, Output: out, Err: errors.New(lastLine(out))}
}

// lastLine is the part of a program's output that names the cause, bounded.
func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	line := strings.ToValidUTF8(lines[len(lines)-1], "·")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "")
	}
	if line == "" {
		return "it said nothing"
	}
	return line
}

// Mount mounts a mapped volume on path, which it makes if needed. Nothing on
// it is ever executed, opened as a device or followed as a symbolic link.
func Mount(dev, path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("mounting the data volume: %w", err)
	}
	const flags = unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOSYMFOLLOW | unix.MS_NOATIME
	if err := unix.Mount(dev, path, "ext4", flags, "errors=remount-ro,commit=5"); err != nil {
		return &Problem{Words: "The data volume could not be mounted. Nothing on it was changed", Err: err}
	}
	return nil
}

// Unmount writes everything out and unmounts. A file that a role still holds
// open keeps it busy: that is tried until ctx ends, then the volume is made
// read-only, which is as good for its content, and the error says so.
func Unmount(ctx context.Context, path string) error {
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: nothing is mounted there
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			unix.Sync()
			if ro := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); ro != nil {
				return fmt.Errorf("unmounting %s: it is still in use, and could not be made read-only: %w", path, ro)
			}
			return fmt.Errorf("unmounting %s: it is still in use; it was made read-only", path)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Usage gives size and free bytes of the file system at path; free is what
// roles can use, without root's reserve.
func Usage(path string) (size, free uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("asking for the space on %s: %w", path, err)
	}
	return st.Blocks * uint64(st.Bsize), st.Bavail * uint64(st.Bsize), nil
}
