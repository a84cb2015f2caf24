package supervise

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// capabilities are those that a row may name.
var capabilities = map[string]uintptr{"CAP_NET_RAW": unix.CAP_NET_RAW, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_BPF": unix.CAP_BPF}

// spawn starts an incarnation. last waits for the end of its output and gives
// the newest lines.
func (s *Supervisor) spawn(r *role) (last func() []string, err error) {
	for _, f := range r.spec.Folders {
		if err := f.prepare(); err != nil {
			return nil, fmt.Errorf("preparing %s: %w", r.spec.Role, err)
		}
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", r.spec.Role, err)
	}
	defer in.Close()
	attr, keep, closeNull, err := s.attributes(r.spec, in)
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("starting %s: %w", r.spec.Role, err)
	}
	defer closeNull()
	argv := []string{"gatehoused", string(r.spec.Role)}
	err = s.config.Reaper.start(r.spec.program, argv, attr, keep, func(c *child) {
		now := s.config.Now()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.child, r.state, r.since = c, stateRunning, now
		r.alive = now.Add(s.timing.grace - s.config.Heartbeat)
	})
	if err != nil {
		out.Close()
		return nil, err
	}
	r.mu.Lock()
	c := r.child
	r.mu.Unlock()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid), []byte(strconv.Itoa(r.spec.OOMScore)), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.config.Log.Warn("role has no out-of-memory score of its own", "role", r.spec.Role, "err", err)
	}
	s.config.Log.Info("role started", "role", r.spec.Role, "pid", c.pid)
	return s.listen(r.spec.Role, out, c), nil
}

// attributes is what the fork gives the child.
func (s *Supervisor) attributes(spec Spec, in *os.File) (attr *syscall.ProcAttr, keep map[uintptr]bool, done func(), err error) {
	confine, err := spec.Confine.encode()
	if err != nil {
		return nil, nil, nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, nil, err
	}
	files := []uintptr{null.Fd(), in.Fd(), in.Fd()}
	var names []string
	for _, name := range spec.Files {
		f := s.config.Files[name]
		if f == nil {
			continue // New let only what may be absent through
		}
		names = append(names, fmt.Sprintf("%s=%d", name, len(files)))
		files = append(files, f.Fd())
	}
	env := append(spec.Env[:len(spec.Env):len(spec.Env)], envConfine+"="+confine)
	if len(names) > 0 {
		env = append(env, control.EnvFiles+"="+strings.Join(names, ","))
	}
	sys, keep := spec.credentials()
	return &syscall.ProcAttr{Dir: "/", Env: env, Files: files, Sys: sys}, keep, func() { null.Close() }, nil
}

// credentials are who the child is, and the capabilities that it keeps.
func (s Spec) credentials() (sys *syscall.SysProcAttr, keep map[uintptr]bool) {
	sys = &syscall.SysProcAttr{Setsid: true}
	if s.SetUID {
		// No groups besides: Groups empty and not NoSetGroups drops root's.
		sys.Credential = &syscall.Credential{Uid: s.UID, Gid: s.GID}
		keep = make(map[uintptr]bool)
		for _, name := range s.Caps {
			keep[capabilities[name]] = true
			sys.AmbientCaps = append(sys.AmbientCaps, capabilities[name])
		}
	}
	return sys, keep
}

// Once runs a role that ends by itself, confined by its row as the others are,
// with one argument besides its name. It gives what the role wrote, the end of
// it if that is long; exit codes other than 0 are errors.
func (r *Reaper) Once(ctx context.Context, spec Spec, argument string) (string, error) {
	for _, f := range spec.Folders {
		if err := f.prepare(); err != nil {
			return "", fmt.Errorf("preparing %s: %w", spec.Role, err)
		}
	}
	confine, err := spec.Confine.encode()
	if err != nil {
		return "", err
	}
	sys, keep := spec.credentials()
	env := append(spec.Env[:len(spec.Env):len(spec.Env)], envConfine+"="+confine)
	code, output, err := r.run(ctx, spec.program, []string{"gatehoused", string(spec.Role), argument}, &syscall.ProcAttr{Dir: "/", Env: env, Sys: sys}, keep)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s ended with %d: %s", spec.Role, code, output)
	}
	return output, err
}

// prepare makes the folder, or puts its owner and mode right. What stands
// above it belongs to us alone, so nobody can swap it under our hands.
func (f Folder) prepare() error {
	if err := os.Mkdir(f.Path, os.FileMode(f.Mode)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := unix.Open(f.Path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s is not a folder: %w", f.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	if st.Uid != f.UID || st.Gid != f.GID {
		if err := unix.Fchown(fd, int(f.UID), int(f.GID)); err != nil {
			return fmt.Errorf("giving %s to %d:%d: %w", f.Path, f.UID, f.GID, err)
		}
	}
	if st.Mode&0o7777 != f.Mode {
		if err := unix.Fchmod(fd, f.Mode); err != nil {
			return fmt.Errorf("setting the mode of %s to %04o: %w", f.Path, f.Mode, err)
		}
	}
	return nil
}

func jitter() byte {
	var b [1]byte
	rand.Read(b[:]) // never fails
	return b[0]
}
