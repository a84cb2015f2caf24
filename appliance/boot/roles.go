// Package boot takes the program from the kernel's or the host's hand-over to running roles, in a fixed list of steps.
//
// Init is PID 1 of our own image, Serve the hosted form; what both have in
// common, from the open vault on, is in this file.
package boot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/audit"
	"gatehouse/appliance/control"
	"gatehouse/appliance/journal"
	"gatehouse/appliance/lists"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/task"
	"gatehouse/appliance/vault"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/netfilter/xdp"
)

// Release is what the program knows of itself, set when it was built.
type Release struct {
	Version string
	Built   string // RFC 3339; the clock is never set before it
	// Final: it was built as a release, with keys that are not everybody's.
	Final bool
}

func (r Release) time() time.Time {
	t, err := time.Parse(time.RFC3339, r.Built)
	if err != nil {
		return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	}
	return t
}

// roles is everything the two forms put together to run the roles.
type roles struct {
	release Release
	log     *slog.Logger
	journal *journal.Journal
	reaper  *supervise.Reaper // runs before and after the roles
	paths   supervise.Paths
	options supervise.Options
	keys    *vault.Vault // nil while locked
	http    net.Listener // port 80
	https   net.Listener // port 443
	files   map[string]*os.File
	monitor monitor.Config
	spool   *spool              // of a locked start; nil: there is no place for one
	kept    func(*lists.Folder) // told of the lists that are kept; nil: nobody asks
	form    netfilter.Form
	ports   netfilter.Ports
	also    func(*monitor.Monitor) []task.Task // what the form runs beside them
	// hostLists is the folder of the host with the allowlists; "": there is none.
	hostLists string
}

// errAuditLog means that nothing can be recorded, so nothing may happen.
var errAuditLog = errors.New("the audit log of the box cannot be written")

// run runs the roles until ctx ends, or until something fails that the box
// cannot be without. It closes what it opens; the vault stays the caller's.
func (r *roles) run(ctx context.Context) error {
	if r.files == nil {
		r.files = map[string]*os.File{}
	}
	defer func() {
		for _, f := range r.files {
			f.Close()
		}
	}()
	if r.keys != nil {
		writer, err := r.openAudit()
		if err != nil {
			return fmt.Errorf("%w: %w", errAuditLog, err)
		}
		defer func() {
			// The context has ended by now: what is left is one signature.
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if _, err := writer.Append(ctx, control.Event{Actor: "system", Action: "stop", Object: r.monitor.Name}); err != nil {
				r.log.Error("the end was not recorded", "err", err)
			}
			if _, err := (remembered{writer, r.keys, r.log}).Checkpoint(ctx); err != nil {
				r.log.Error("the audit log was not signed at the end", "err", err)
			}
			writer.Close()
		}()
		r.compare(ctx, writer)
		r.monitor.Audit = remembered{writer, r.keys, r.log}
		r.monitor.Vault = r.keys
		if _, err := writer.Append(ctx, control.Event{Actor: "system", Action: "start", Object: r.monitor.Name, Detail: map[string]string{"version": r.release.Version, "keys": r.keys.OpenedBy()}}); err != nil {
			return fmt.Errorf("%w: recording the start: %w", errAuditLog, err)
		}
		if r.spool != nil {
			err := r.spool.chain(ctx, func(ctx context.Context, e control.Event) error {
				_, err := writer.Append(ctx, e)
				return err
			})
			if err != nil {
				r.log.Error("what happened while locked is not in the audit log yet", "err", err)
			}
		}
	} else if r.spool != nil {
		r.monitor.Spool = r.spool.Append
		r.spool.Append(control.Event{Actor: "system", Action: "start", Object: r.monitor.Name, Outcome: "failed", Detail: map[string]string{"error": r.monitor.Locked}})
	}
	listener, err := r.openFiles()
	if err != nil {
		return err
	}
	r.openDrops()
	supervisor, err := supervise.New(supervise.Config{
		Specs: supervise.Table(r.paths, r.options), Files: r.files, Reaper: r.reaper, Log: r.log,
		Output: r.journal.Append, CrashDir: r.crashDir(),
	})
	if err != nil {
		return err
	}
	c := r.monitor
	c.Version, c.Development = r.release.Version, !r.release.Final
	c.Roles, c.Alive, c.Restart = supervisor.Status, supervisor.Alive, supervisor.Restart
	c.Log = func(q control.LogQuery) []control.LogLine { return r.journal.Read(q).Lines }
	c.Rand, c.Now, c.Logger = rand.Reader, time.Now, r.log
	if r.paths.Lists != "" {
		c.Lists = r.lists()
		if folder := c.Lists.Folder; r.kept != nil {
			folder.OnKept = func() { r.kept(folder) }
			r.kept(folder)
		}
	}
	mon, err := monitor.New(c)
	if err != nil {
		return err
	}
	server := control.NewServer(r.log, supervisor.Identify)
	mon.Register(server)
	tasks := []task.Task{
		task.Func("control socket", func(ctx context.Context) error { return server.Serve(ctx, listener) }),
		supervisor, r.journal, mon.Watch(),
	}
	if r.also != nil {
		tasks = append(tasks, r.also(mon)...)
	}
	return task.Run(ctx, tasks...)
}

// remembered is an audit log of which the TPM remembers the newest signed entry.
type remembered struct {
	*audit.Writer
	keys *vault.Vault
	log  *slog.Logger
}

// Checkpoint signs the head, then has it remembered: never more than is signed.
func (r remembered) Checkpoint(ctx context.Context) (control.Appended, error) {
	a, err := r.Writer.Checkpoint(ctx)
	if err == nil {
		if err := r.keys.Remember(ctx, a.Sequence); err != nil {
			r.log.Warn("a copy of the data put back later might not be noticed", "err", err)
		}
	}
	return a, err
}

// compare holds the log against what the TPM remembers, and records in it what
// does not fit.
func (r *roles) compare(ctx context.Context, w *audit.Writer) {
	head := w.Head()
	if err := r.keys.Compare(ctx, head.Sequence, head.Checkpoint); err != nil {
		r.log.Warn("whether the data are the newest is not known", "err", err)
	}
	why := r.keys.Behind()
	if why == "" {
		return
	}
	r.log.Error("the data are older than the TPM remembers", "why", why)
	if _, err := w.Append(ctx, control.Event{Actor: "system", Action: "older data found", Object: r.monitor.Name, Outcome: "failed", Detail: map[string]string{"error": why}}); err != nil {
		r.log.Error("older data were not recorded", "err", err)
	}
}

func (r *roles) openAudit() (*audit.Writer, error) {
	gid := -1
	for _, s := range supervise.Table(r.paths, r.options) {
		if s.Role == control.Console && r.options.Privileged {
			gid = int(s.GID) // who reads the log
		}
	}
	return audit.Open(filepath.Join(r.paths.Data, "audit"), audit.Config{
		Key: r.keys.Public(), Sign: func(ctx context.Context, digest []byte) ([]byte, error) {
			if len(digest) != 32 {
				return nil, fmt.Errorf("signing a digest of %d bytes: SHA-256 has 32", len(digest))
			}
			return r.keys.Sign(ctx, [32]byte(digest))
		},
		Now: time.Now, Rand: rand.Reader, Log: r.log, GID: gid,
	})
}

func (r *roles) crashDir() string {
	if r.keys == nil {
		return "" // locked: there is no place that survives
	}
	return filepath.Join(r.paths.Data, "crash")
}

// openFiles makes the sockets that roles inherit or dial. They belong to this
// process, so a role that is started anew finds them as they were.
func (r *roles) openFiles() (control net.Listener, err error) {
	if err := os.MkdirAll(filepath.Dir(r.paths.Control), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of the sockets: %w", err)
	}
	if control, err = listenUnix(r.paths.Control); err != nil {
		return nil, err
	}
	local, err := listenUnix(r.paths.GatewaySocket)
	if err != nil {
		return nil, err
	}
	for name, l := range map[string]net.Listener{fileHTTPS: r.https, fileHTTP: r.http, fileAgent: local} {
		if l == nil {
			return nil, fmt.Errorf("there is no listening socket for %s", name)
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return nil, fmt.Errorf("handing over %s: %w", name, err)
		}
		r.files[name] = f
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("joining gateway and console: %w", err)
	}
	r.files[fileConsole] = os.NewFile(uintptr(pair[0]), fileConsole)
	r.files[fileGateway] = os.NewFile(uintptr(pair[1]), fileGateway)
	return control, nil
}

// openDrops opens the socket with the heads of refused packets. Its bytes come
// from strangers, so this process reads none of them: the gateway does, which
// reads strangers' bytes anyway. The socket stays open here, and a gateway that
// is started anew goes on with it. Without it everything works but the samples.
func (r *roles) openDrops() {
	if r.monitor.Filter == nil {
		return
	}
	f, err := nft.OpenSamples()
	if err != nil {
		r.log.Warn("refused packets are counted and not sampled", "err", err)
		return
	}
	r.files[control.FileDrops] = f
	r.options.Drops, r.monitor.Sampling = true, true
}

const (
	fileHTTPS   = control.FileHTTPS
	fileHTTP    = control.FileHTTP
	fileAgent   = control.FileAgent
	fileConsole = control.FileConsole
	fileGateway = control.FileGateway
)

// listenUnix listens at path, in the place of what an earlier life left there.
// Anyone may connect: the kernel says who it is, and that decides.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, fmt.Errorf("opening the socket %s to the roles: %w", path, err)
	}
	return l, nil
}

// kernelFilter puts the rules of a state into the kernel.
func kernelFilter(form netfilter.Form, ports netfilter.Ports) func(netfilter.State) error {
	return func(s netfilter.State) error {
		if form == netfilter.Box {
			if err := openStage(s.Phase, s.Lists); err != nil {
				return err
			}
		}
		s.Form, s.Ports = form, ports
		return nft.Apply(netfilter.Rules(s))
	}
}

// openStage makes the early stage pass everything on, unless it holds what the
// rules for this state ask: it would keep out whom they let in.
func openStage(s control.State, l netfilter.Lists) error {
	var asked uint64
	if s == control.StateReady && !l.Off && len(l.Names) > 0 {
		asked = l.Generation
	}
	err := xdp.Open(xdp.Folder, asked)
	if err == nil {
		return nil
	}
	if gone := xdp.Remove(xdp.Folder); gone != nil {
		return errors.Join(err, gone)
	}
	return nil
}

// crockford is the alphabet of names: no i, l, o or u to be misread.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

// nameOf makes the box's name of its install id, so that it is the same for as
// long as the data is.
func nameOf(id [16]byte) string {
	var b strings.Builder
	b.WriteString("gatehouse-")
	n := uint32(id[0])<<16 | uint32(id[1])<<8 | uint32(id[2])
	for i := range 4 {
		b.WriteByte(crockford[n>>(19-5*i)&31])
	}
	return b.String()
}

// describe names a locked vault's broken rung for a person, with the values
// that changed.
func describe(l *vault.Locked) string {
	s := l.Cause + " " + l.Advice
	for _, p := range l.PCRs {
		s += fmt.Sprintf(" PCR %d was %s and is %s.", p.Index, short(p.Old), short(p.New))
	}
	return s
}

func short(h string) string {
	if _, err := hex.DecodeString(h); err != nil || len(h) <= 16 {
		return h
	}
	return h[:16] + "…"
}
