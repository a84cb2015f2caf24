package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// envConfine carries the Confinement to the child, as JSON.
const envConfine = "GATEHOUSE_CONFINEMENT"

// Confine puts on this process what its row of the table says, before any code
// of the role runs: umask, rlimits, Landlock, seccomp, and with them
// no_new_privs. What uid, capabilities and bounding set it has, the parent
// decided at the fork. It gives a sentence for the log, which names what the
// kernel lacks. After an error the role must not run.
//
// Landlock is best effort, because kernels without it are hosts that we are
// asked to run on; all else is required.
func Confine(role control.Role) (string, error) {
	text := os.Getenv(envConfine)
	if text == "" {
		return "", fmt.Errorf("confining %s: %s is not set: roles are started by the supervisor, not by hand", role, envConfine)
	}
	var c Confinement
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return "", fmt.Errorf("confining %s: reading %s: %w", role, envConfine, err)
	}
	if c.Role != role {
		return "", fmt.Errorf("confining %s: what the supervisor sent is for %q", role, c.Role)
	}
	if err := os.Unsetenv(envConfine); err != nil {
		return "", fmt.Errorf("confining %s: %w", role, err)
	}
	unix.Umask(0o077)
	if err := setLimits(c.Limits); err != nil {
		return "", fmt.Errorf("confining %s: %w", role, err)
	}
	said, err := restrictFiles(c)
	if err != nil {
		return "", fmt.Errorf("confining %s: %w", role, err)
	}
	if err := restrictCalls(c.Families, c.Calls); err != nil {
		return "", fmt.Errorf("confining %s: %w", role, err)
	}
	return said, nil
}

func setLimits(limits map[string]uint64) error {
	names := map[string]int{"NOFILE": unix.RLIMIT_NOFILE, "CORE": unix.RLIMIT_CORE, "NPROC": unix.RLIMIT_NPROC}
	for name, v := range limits {
		which, ok := names[name]
		if !ok {
			return fmt.Errorf("there is no limit %q", name)
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(which, &now); err != nil {
			return fmt.Errorf("reading limit %s: %w", name, err)
		}
		v = min(v, now.Max) // a host may allow less; raising takes a right that roles lack
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("setting limit %s to %d: %w", name, v, err)
		}
	}
	return nil
}

// restrictFiles is Landlock: nothing outside the listed paths can be opened,
// nothing anywhere can be executed, no TCP port can be bound, and signals and
// abstract sockets stay within the role. Connecting stays free: it is the
// firewall's to judge.
func restrictFiles(c Confinement) (string, error) {
	const (
		// /dev/null is written by runtimes and libraries alike.
		devices  = landlock.AccessFSSet(llsys.AccessFSReadFile | llsys.AccessFSWriteFile)
		readable = landlock.AccessFSSet(llsys.AccessFSReadFile | llsys.AccessFSReadDir)
		writable = readable | landlock.AccessFSSet(llsys.AccessFSWriteFile|llsys.AccessFSTruncate|
			llsys.AccessFSMakeReg|llsys.AccessFSMakeDir|llsys.AccessFSRemoveFile|llsys.AccessFSRemoveDir)
		handled = landlock.AccessFSSet(1<<16 - 1) // all of ABI 5
	)
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return "confined without Landlock: this kernel has none, files are kept apart by owner and mode alone", nil
	}
	config, err := landlock.NewConfig(handled, landlock.AccessNetSet(llsys.AccessNetBindTCP), landlock.ScopedSet(3))
	if err != nil {
		return "", err
	}
	change := writable
	if abi >= 2 {
		change |= landlock.AccessFSSet(llsys.AccessFSRefer) // renames between folders of its own
	}
	rules := []landlock.Rule{landlock.PathAccess(devices, "/dev/null", "/dev/urandom").IgnoreIfMissing()}
	for _, p := range c.Read {
		access, err := only(p, readable)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		rules = append(rules, landlock.PathAccess(access, p))
	}
	for _, p := range c.Write {
		rules = append(rules, landlock.PathAccess(change, p))
	}
	if err := config.BestEffort().Restrict(rules...); err != nil {
		return "", fmt.Errorf("restricting files by Landlock: %w", err)
	}
	return fmt.Sprintf("confined, Landlock ABI %d", abi), nil
}

// only leaves out what the kernel refuses for a plain file.
func only(path string, access landlock.AccessFSSet) (landlock.AccessFSSet, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !fi.IsDir() {
		access &^= landlock.AccessFSSet(llsys.AccessFSReadDir)
	}
	return access, nil
}

// encode checks the Confinement and writes it for the child.
func (c Confinement) encode() (string, error) {
	for _, p := range slices.Concat(c.Read, c.Write) {
		if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
			return "", fmt.Errorf("%s: path %q is not absolute", c.Role, p)
		}
	}
	b, err := json.Marshal(c)
	return string(b), err
}
