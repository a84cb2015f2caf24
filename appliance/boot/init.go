package boot

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/journal"
	"gatehouse/appliance/lists"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/seed"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/task"
	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume"
	"gatehouse/netfilter"
	"gatehouse/tpm"
)

// box is our own image on its own machine. Its steps fill it in, in order.
type box struct {
	release Release
	log     *slog.Logger
	level   *slog.LevelVar
	journal *journal.Journal
	machine *host.Host
	reaper  *supervise.Reaper
	tpm     *tpm.TPM
	built   time.Time

	measured measured // how firmware started this system
	watchdog *host.Watchdog
	filtered error // why links must stay down
	disk     volume.Disk
	meta     *os.File
	config   vault.Config
	keys     *vault.Vault
	fresh    bool // keys are made, but not committed yet
	made     bool // keys were made at this start
	mapped   bool
	mounted  bool
	problem  string // of the data volume, in words
	locked   string // why the box does not open, in words; "" while it does

	install     *install      // the medium that this system was started from, if it installs
	modules     *host.Modules // until they are freed
	seed        *seed.Seed    // nil: there is none that counts
	medium      *medium       // where it lies
	seedProblem string        // why the one that is there does not count

	http, https net.Listener

	mu      sync.Mutex
	source  map[string]string       // how each link got its addresses
	wanted  control.NetworkSettings // of the network, in effect
	learnt  map[string]learnt       // by link
	written learnt                  // what the processes see
	ending  string                  // restart or off, once asked for
	erasing bool                    // the keys are erased, the rest is to follow
	end     context.CancelFunc
	anew    anew // the roles alone
	boot    host.SecureBoot
	broken  *vault.Locked // what the vault said, if it did not open

	systems systems

	unlocking sync.Mutex // one secret at a time
	spool     *spool     // opened with the first roles

	remembering sync.Mutex      // of what follows
	standing    *vault.Standing // of lists and network in META, once it was asked for
	folder      *lists.Folder   // of the lists, once they are open
}

// A step is one line of the start. A step that fails does not stop the others:
// a box without a disk, a TPM or a cable still has to say so on its console,
// and on its page where there is an address. What later steps need they look
// for themselves.
type step struct {
	name string
	run  func(*box, context.Context) error
}

// steps is the order of the start. Default drop is in the kernel before the
// first link is up, and the keys are capped before anything of the data volume
// is touched.
var steps = []step{
	{"kernel file systems", (*box).fileSystems},
	{"clock floor", (*box).clockFloor},
	{"drivers", (*box).drivers},
	{"watchdog", (*box).openWatchdog},
	{"kernel settings", (*box).settings},
	{"filter", (*box).filter},
	{"disk", (*box).findDisk},
	{"systems", (*box).judgeSystems},
	{"measurements", (*box).measurements},
	{"keys", (*box).unseal},
	{"seed", (*box).readSeed},
	{"data volume", (*box).openData},
	{"links", (*box).raiseLinks},
}

// Init is PID 1. It returns only if the kernel refuses to restart.
func Init(release Release) int {
	lines := journal.New(512<<10, time.Now)
	level := new(slog.LevelVar)
	log := slog.New(lines.Handler(control.Init, level))
	b := &box{
		release: release, log: log, level: level, journal: lines, built: release.time(),
		machine: host.New(log), reaper: supervise.NewReaper(log),
	}
	// What must live as long as the machine is not bound to the roles' end.
	life := context.Background()
	ctx, end := context.WithCancel(life)
	b.end = end
	go b.signals(ctx)
	go func() { b.log.Error("the reaper ended", "err", b.reaper.Run(life)) }()

	start := time.Now()
	for _, s := range steps {
		began := time.Now()
		if err := s.run(b, ctx); err != nil {
			log.Error("step failed", "step", s.name, "err", err)
			fmt.Fprintf(os.Stderr, "gatehouse: %s: %v\n", s.name, err)
		} else {
			log.Info("step", "step", s.name, "took", time.Since(began).Round(time.Millisecond))
		}
	}
	log.Info("started", "took", time.Since(start).Round(time.Millisecond))
	if !b.leaveTrial() {
		b.serve(ctx)
	}
	b.shutdown()
	// Only reached when the kernel refused. The watchdog was disarmed or will
	// end this; returning would be a panic of the kernel.
	fmt.Fprintln(os.Stderr, "gatehouse: the machine does not end by itself: switch it off")
	select {}
}

// serve runs the roles until the box is asked to end. Should they fail as a
// whole, they are tried again after a pause: a box in a cupboard must not stay
// silent because of one bad minute.
func (b *box) serve(ctx context.Context) {
	pause := time.Second
	for ctx.Err() == nil {
		r, err := b.roles()
		if err == nil {
			err = b.anew.run(ctx, r)
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errUnlocked) {
			pause = time.Second
			continue
		}
		b.ended(err)
		fmt.Fprintf(os.Stderr, "gatehouse: the roles ended: %v\n", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Minute)
	}
}

// ended notes why the roles ended. Without its audit log the box may do
// nothing, but must not be silent either: it is locked, and says why.
func (b *box) ended(err error) {
	b.log.Error("the roles ended", "err", err)
	if errors.Is(err, errAuditLog) {
		b.lock(err.Error() + ". Restart the box; if that does not help, choose 'Erase and start anew' at the console")
	}
}

// power notes how to end and ends the roles; serve returns then.
func (b *box) power(action string) {
	// Whoever restarts a box in a trial says nothing against the new system. What was
	// found against it stays.
	b.endTrial("the box was restarted before it had proved itself", false)
	b.mu.Lock()
	if b.ending == "" {
		b.ending = action
	}
	b.mu.Unlock()
	// The answer to the one who asked goes out first.
	time.AfterFunc(500*time.Millisecond, b.end)
}

// signals takes what the kernel sends PID 1: SIGINT for control-alt-delete.
func (b *box) signals(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-ctx.Done():
	case s := <-ch:
		b.log.Warn("asked to end by a signal", "signal", s)
		b.power("restart")
	}
}

// shutdown ends in order: the volume first, since it must be whole whatever
// follows; then the keys; the TPM is told last, so that its counters of bad
// ends do not move.
func (b *box) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	failed := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "gatehouse: %s: %v\n", what, err)
		}
	}
	b.journal.Close()
	if b.mounted {
		failed("closing the data volume", volume.Unmount(ctx, dataPath))
	}
	if b.mapped {
		failed("closing the data volume", volume.CloseCrypt(dataName))
	}
	if b.keys != nil {
		b.keys.Wipe()
	}
	b.mu.Lock()
	action, erasing := b.ending, b.erasing
	b.mu.Unlock()
	if erasing {
		b.finishErasing()
	}
	if b.tpm != nil {
		failed("ending the TPM's session", b.tpm.Shutdown(false))
	}
	if b.watchdog != nil {
		failed("disarming the watchdog", b.watchdog.Disarm())
	}
	if action == "off" {
		failed("switching off", b.machine.PowerOff())
		return
	}
	failed("restarting", b.machine.Restart())
}

// roles puts together what runs once the steps are done.
func (b *box) roles() (*roles, error) {
	r := &roles{release: b.release, log: b.log, journal: b.journal, keys: b.keys, reaper: b.reaper}
	r.paths = supervise.Paths{Control: "/run/gatehouse/control.sock", GatewaySocket: "/run/gatehouse/gateway.sock", Data: dataPath}
	if b.keys != nil {
		listPaths(&r.paths)
		r.kept = b.rememberKept
	} else {
		b.unpackLists(context.Background(), &r.paths)
	}
	r.options = supervise.Options{Privileged: true, Locked: b.keys == nil, Version: b.release.Version}
	if err := b.listen(r); err != nil {
		return nil, err
	}
	seen, save := time.Time{}, func(time.Time) error { return nil }
	if b.mounted {
		seen, save = b.keptTime()
	}
	r.monitor = monitor.Config{
		Name: "gatehouse", Locked: b.locked, HTTPPort: 80, HTTPSPort: 443, Trust: b.trust(),
		Clock: monitor.NewClock(b.built, seen, "rtc", save),
		Machine: monitor.Machine{
			Links:        func() []control.Link { return b.links() },
			Volume:       b.volumeStatus,
			Memory:       func() control.Memory { return memory(b.machine, b.log) },
			ApplyNetwork: b.applyNetwork,
			SetClock:     b.machine.SetClock,
			Power:        b.power,
			Erase:        b.erase,
			Kernel:       kernel(b.machine),
			Model:        strings.TrimSpace(b.machine.DMI().Vendor + " " + b.machine.DMI().Product),
			Serial:       b.machine.DMI().Serial,
		},
	}
	if b.meta != nil {
		r.spool = b.spooled()
	}
	r.monitor.Network = b.network()
	r.monitor.Keys = b.keyring()
	if b.filtered == nil {
		r.monitor.Filter, r.monitor.Counters = kernelFilter(netfilter.Box, netfilter.Ports{}), counters
	}
	if b.keys != nil {
		r.monitor.Name, r.monitor.Signer = nameOf(b.keys.InstallID()), b.keys
		if given := b.givenName(); given != "" {
			r.monitor.Name = given
		}
		b.verifier(&r.monitor)
	}
	b.monitorSeed(&r.monitor)
	var mon *monitor.Monitor
	tasks := []task.Task{}
	if b.keys != nil && b.mounted && b.systems.book != nil {
		e := b.engine(func() *monitor.Monitor { return mon })
		r.monitor.Systems, tasks = e, append(tasks, e)
	} else {
		r.monitor.NoSystems = b.systems.problem
	}
	if err := b.machine.SetName(r.monitor.Name); err != nil {
		b.log.Warn("naming the machine", "err", err)
	}
	r.also = func(m *monitor.Monitor) []task.Task {
		mon = m
		return append(tasks, b.panel(m), b.machine.PowerButton(b.pressed(m)),
			b.machine.KernelLog(func(l host.KernelLine) { b.journal.Append("kernel", l.Text) }))
	}
	return r, nil
}

// spooled is where events wait while the box is locked: one for all starts of
// the roles, so that what was not written to META is not lost between them.
func (b *box) spooled() *spool {
	if b.spool == nil {
		b.spool = openSpool(b.meta, time.Now, b.log)
	}
	return b.spool
}

// pressed ends the box in order; a full disk or a broken log does not make the
// power button a dead one.
func (b *box) pressed(m *monitor.Monitor) func() {
	return func() {
		if err := m.PowerOff(context.Background()); err != nil {
			b.log.Error("switching off without an entry in the audit log", "err", err)
			b.power("off")
		}
	}
}

// verifier hands the monitor the claim code that was set when flashing.
func (b *box) verifier(c *monitor.Config) {
	salt, key, ok, err := vault.ReadClaimVerifier(b.meta)
	if err != nil {
		b.log.Error("the claim code set when flashing cannot be read; the console shows a new one", "err", err)
		return
	}
	if !ok {
		return
	}
	c.Verifier = &control.ClaimMaterial{Salt: salt[:], Key: key[:]}
	c.ForgetVerifier = func() error { return vault.ClearClaimVerifier(b.meta) }
}

// setSource notes how a link got its addresses, for the faces.
func (b *box) setSource(name, source string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.source == nil {
		b.source = make(map[string]string)
	}
	b.source[name] = source
}

func (b *box) links() []control.Link {
	// What nobody asked for by DHCP or gave, the kernel took from a router.
	out := links(b.machine, "slaac", b.log)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range out {
		if mode := netconf.Mode(b.wanted, out[i].Name); mode != netconf.Automatic {
			out[i].Source = mode
		} else if s := b.source[out[i].Name]; s != "" {
			out[i].Source = s
		}
	}
	return out
}

func (b *box) volumeStatus() control.Volume {
	if !b.mounted {
		return control.Volume{Problem: b.problem}
	}
	v := usage(dataPath, true)
	v.Problem = b.problem
	return v
}

// keyring is what this box can do with its keys.
func (b *box) keyring() *keyring {
	return &keyring{
		vault: b.keys, locked: b.broken, config: b.config, boot: b.boot, epoch: b.epoch(), unlock: b.unlocks,
		start: &b.measured, owner: b.machine, image: os.DirFS("/"),
	}
}

func (b *box) epoch() uint64 {
	if b.measured.release == nil {
		return 0
	}
	return b.measured.release.Epoch
}

// approver is whose approvals this system brings; nil: it brings none.
func (b *box) approver() *ecdsa.PublicKey {
	if b.measured.release == nil {
		return nil
	}
	return b.measured.release.Key
}

func (b *box) trust() control.Trust {
	if b.keys != nil {
		return b.keys.Trust()
	}
	return control.Trust{Mechanism: "none", Grade: "-", Sentence: "locked: the keys are not open"}
}

// keptTime reads the last time that an earlier life was sure of, and gives the
// function that keeps it.
func (b *box) keptTime() (time.Time, func(time.Time) error) {
	file := filepath.Join(dataPath, "clock")
	var seen time.Time
	text, err := os.ReadFile(file)
	if err == nil {
		seen, err = time.Parse(time.RFC3339, string(text))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.log.Warn("the time of the last life cannot be read; the build time is the floor", "err", err)
	}
	if seen.After(time.Now()) {
		// The clock chip lost its time. The floor is the better guess.
		if err := b.machine.SetClock(seen); err != nil {
			b.log.Warn("setting the clock to its floor", "err", err)
		}
	}
	return seen, func(t time.Time) error { return replaceFile(file, []byte(t.UTC().Format(time.RFC3339))) }
}
