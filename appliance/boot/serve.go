package boot

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/config"
	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/journal"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/panel"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/task"
	"gatehouse/appliance/unlock"
	"gatehouse/appliance/vault"
	"gatehouse/appliance/watch"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/tpm/hostid"
)

const defaultConfig = "/etc/gatehouse/gatehouse.toml"

// Serve is `gatehoused serve`: the same roles as on our own image, on somebody
// else's system. It has no links, clock or firmware, and filters only its own
// ports. The result is the exit code.
func Serve(release Release, args []string) int {
	sources, err := hostedFlags("serve", `gatehoused serve runs Gatehouse on a NAS system, server or container.

  gatehoused serve --state /srv/gatehouse --https :8443 --http :8080
  gatehoused serve --config gatehouse.toml

A flag counts before a variable (GATEHOUSE_STATE, GATEHOUSE_HTTPS …), and that before the file.
In a container the passphrase that seals the keys comes in GATEHOUSE_KEY.

`, args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused serve:", err)
		return 2
	}
	cfg, err := config.Load(sources)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused serve:", err)
		return 2
	}
	if err := shed(cfg.KeyVariable); err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused serve:", err)
		return 1
	}
	// There are keys in this memory, which a process of the same uid could read.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused serve: keeping other processes out of its memory:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, release, sources, cfg); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "gatehoused serve:", err)
		return 1
	}
	return 0
}

// hostedFlags reads the flags of a word of the hosted form; all take the same.
func hostedFlags(word, help string, args []string) (config.Sources, error) {
	set := flag.NewFlagSet("gatehoused "+word, flag.ContinueOnError)
	set.Usage = func() {
		fmt.Fprint(set.Output(), help)
		set.PrintDefaults()
	}
	file := set.String("config", "", "configuration `file`, read again whenever it changes (default "+defaultConfig+" if it is there)")
	values := make(map[string]*string)
	for _, f := range config.Flags() {
		values[f.Name] = set.String(f.Name, "", f.Usage)
	}
	if err := set.Parse(args); err != nil {
		return config.Sources{}, err
	}
	if set.NArg() > 0 {
		return config.Sources{}, fmt.Errorf("%q is more than flags: see gatehoused %s --help", set.Arg(0), word)
	}
	s := config.Sources{File: *file, Flags: map[string]string{}, Lookup: os.LookupEnv}
	if s.File == "" {
		if _, err := os.Stat(defaultConfig); err == nil {
			s.File = defaultConfig
		}
	}
	set.Visit(func(f *flag.Flag) {
		if v, ok := values[f.Name]; ok {
			s.Flags[f.Name] = *v
		}
	})
	return s, nil
}

func serve(ctx context.Context, release Release, sources config.Sources, cfg config.Config) error {
	form, err := config.Hosted(os.LookupEnv, os.DirFS("/"))
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel)
	lines := journal.New(256<<10, time.Now)
	log := slog.New(slog.NewMultiHandler(lines.Handler(control.Init, level), slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))

	if err := os.MkdirAll(cfg.State, 0o755); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	unlock, err := lockState(cfg.State)
	if err != nil {
		return err
	}
	defer unlock()
	ring, err := hostedVault(ctx, cfg, log)
	if err != nil {
		return err
	}
	h := &hosted{release: release, sources: sources, cfg: cfg, form: form, ring: ring, lines: lines, level: level, log: log, reaper: supervise.NewReaper(log)}
	ring.unlock = h.unlocks
	defer h.close()
	return h.run(ctx)
}

// hosted is a service on somebody's host, from the look at its keys on.
type hosted struct {
	release Release
	sources config.Sources
	cfg     config.Config
	form    config.Form
	ring    *keyring
	lines   *journal.Journal
	level   *slog.LevelVar
	log     *slog.Logger
	reaper  *supervise.Reaper
	anew    anew
	spool   *spool // of locked starts

	http, https net.Listener

	unlocking sync.Mutex // one secret at a time; holds ring.vault while the roles of a locked one run
}

func (h *hosted) close() {
	h.unlocking.Lock()
	defer h.unlocking.Unlock()
	if h.ring.vault != nil {
		h.ring.vault.Wipe()
	}
	h.lines.Close()
}

// run runs the roles under the one waiter of all children, and starts them
// anew if the box is unlocked.
func (h *hosted) run(ctx context.Context) error {
	reaping, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.reaper.Run(reaping) }() // ends below, after the last role
	err := errUnlocked
	for errors.Is(err, errUnlocked) {
		var r *roles
		if r, err = h.roles(); err == nil {
			err = h.anew.run(ctx, r)
		}
	}
	stop()
	if e := <-done; e != nil && !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	return err
}

// unlocks opens the data of a locked service, and has the roles started anew.
func (h *hosted) unlocks(ctx context.Context, s unlock.Secret) error {
	h.unlocking.Lock()
	defer h.unlocking.Unlock()
	if h.ring.vault != nil {
		return errors.New("the data is open already, and the service goes on")
	}
	v, err := openBy(ctx, h.ring.config, h.ring.locked, s)
	if err != nil {
		return err
	}
	h.ring.vault = v
	h.log.Warn("unlocked", "by", v.OpenedBy(), "note", v.Note())
	h.anew.start()
	return nil
}

// roles puts together what runs over the keys as they are now. The ring is
// copied: the roles of a locked service see a locked one to their end.
func (h *hosted) roles() (*roles, error) {
	h.unlocking.Lock()
	ring := *h.ring
	h.unlocking.Unlock()
	name := h.cfg.Name
	if ring.vault != nil {
		if err := h.lines.Attach(filepath.Join(h.cfg.State, "log"), 4<<20); err != nil {
			h.log.Warn("the log is kept in memory only", "err", err)
		}
		if name == "" {
			name = nameOf(ring.vault.InstallID())
		}
	}
	if name == "" {
		name = "gatehouse"
	}
	r, err := h.hostedRoles(ring.vault)
	if err != nil {
		return nil, err
	}
	if h.spool == nil {
		h.spool = openSpool(ring.config.Meta, time.Now, h.log)
	}
	r.spool = h.spool
	r.hostLists = h.cfg.Lists
	r.monitor.Keys = &ring
	r.monitor.Name, r.monitor.Names = name, h.cfg.Names
	if ring.vault == nil {
		r.monitor.Locked = ring.why()
	}
	r.also = func(m *monitor.Monitor) []task.Task {
		tasks := []task.Task{announce(m, os.Stdout), watchConfig(h.sources, h.cfg, h.level, h.log), watchCertificate(m, h.cfg.Certificate, h.cfg.Key, h.log)}
		if h.cfg.Lists != "" && ring.vault != nil {
			tasks = append(tasks, watch.Folder("lists of the host", h.cfg.Lists, h.log, m.ReadFiles))
		}
		return tasks
	}
	return r, nil
}

// lockState keeps two programs from one state folder: they would write the
// same database and audit log.
func lockState(dir string) (func(), error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the state folder: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, fmt.Errorf("the state folder %s is in use by another gatehoused: stop that one, or choose another --state", dir)
	}
	return func() { d.Close() }, nil
}

// hostedConfig is what the vault of a hosted form is opened with. The caller
// clears the passphrase.
func hostedConfig(cfg config.Config, log *slog.Logger) (c vault.Config, err error) {
	form, err := config.Hosted(os.LookupEnv, os.DirFS("/"))
	if err != nil {
		return c, err
	}
	meta, err := vault.OpenFile(filepath.Join(cfg.State, "meta"))
	if err != nil {
		return c, err
	}
	c = vault.Config{
		Meta: meta, Variable: cfg.KeyVariable, Form: vault.Host, Log: log,
		HostID: func() (hostid.ID, error) { return hostid.Read(os.DirFS("/")) },
	}
	if form == config.Container {
		c.Form = vault.Container
	}
	c.Passphrase, err = handedPassphrase()
	return c, err
}

// hostedVault opens the data key, or makes one at the very first start. A vault
// that does not open is no error: the roles then serve the locked state.
func hostedVault(ctx context.Context, cfg config.Config, log *slog.Logger) (*keyring, error) {
	c, err := hostedConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	passphrase := c.Passphrase
	defer clear(passphrase)
	k := &keyring{config: c}
	k.config.Passphrase = nil
	k.vault, err = vault.Open(ctx, c)
	switch {
	case errors.As(err, &k.locked):
		log.Error("locked", "rung", k.locked.Rung, "err", k.locked)
		return k, nil
	case errors.Is(err, vault.ErrBlank):
		if k.vault, err = vault.Create(ctx, c); err == nil {
			err = k.vault.Commit(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	if m := k.vault.Trust().Mechanism; len(passphrase) > 0 && m != "passphrase" {
		log.Warn("the passphrase is not used: the keys were sealed otherwise at the first start, and that is never changed silently", "variable", cfg.KeyVariable, "sealed by", m)
	}
	return k, nil
}

// listenSoon listens, and waits some seconds for an address that is in use:
// after a program that was killed its roles hold the sockets until they notice.
func listenSoon(address string) (net.Listener, error) {
	for range 50 {
		l, err := net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return net.Listen("tcp", address)
}

// listen opens the two ports, once: they outlive the roles of a locked start.
func (h *hosted) listen() (err error) {
	if h.https == nil {
		if h.https, err = listenSoon(h.cfg.HTTPS.String()); err != nil {
			return fmt.Errorf("listening for the console: %w (choose another port with --https)", err)
		}
	}
	if h.http == nil {
		if h.http, err = listenSoon(h.cfg.HTTP.String()); err != nil {
			return fmt.Errorf("listening for the plain page: %w (choose another port with --http)", err)
		}
	}
	return nil
}

func (h *hosted) hostedRoles(keys *vault.Vault) (*roles, error) {
	if err := h.listen(); err != nil {
		return nil, err
	}
	cfg, log := h.cfg, h.log
	r := &roles{release: h.release, log: log, journal: h.lines, keys: keys, reaper: h.reaper, http: h.http, https: h.https}
	run := filepath.Join(cfg.State, "run")
	r.paths = supervise.Paths{Control: filepath.Join(run, "control.sock"), GatewaySocket: filepath.Join(run, "gateway.sock"), Data: cfg.State}
	if keys != nil {
		listPaths(&r.paths)
	}
	r.options = supervise.Options{
		Hosted: string(h.form), Privileged: os.Geteuid() == 0, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Locked: keys == nil, Version: h.release.Version,
	}
	machine := host.New(log)
	r.monitor = monitor.Config{
		Hosted: true, PublicURL: publicURL(r.https), HTTPSPort: cfg.HTTPS.Port(), HTTPPort: cfg.HTTP.Port(),
		Clock: monitor.NewClock(h.release.time(), time.Time{}, "host", nil),
		Machine: monitor.Machine{
			Links:  func() []control.Link { return links(machine, "host", log) },
			Volume: func() control.Volume { return usage(cfg.State, false) },
			Memory: func() control.Memory { return memory(machine, log) },
			Kernel: kernel(machine),
		},
	}
	if has, err := machine.HasSYNCookies(); err == nil && !has {
		log.Warn("a flood of false SYN packets can keep everybody out: set net.ipv4.tcp_syncookies to 1 on this host")
	}
	// A first, closed rule set says whether we may filter here at all.
	r.form, r.ports = netfilter.Hosted, netfilter.Ports{HTTP: cfg.HTTP.Port(), HTTPS: cfg.HTTPS.Port(), HTTPAt: cfg.HTTP.Addr(), HTTPSAt: cfg.HTTPS.Addr()}
	filter := kernelFilter(r.form, r.ports)
	if err := filter(netfilter.State{Phase: control.StateStarting}); err != nil {
		log.Warn("addresses are not filtered in the kernel", "err", err)
		r.options.NoFilter = true
	} else {
		r.monitor.Filter, r.monitor.Counters = filter, nft.Counters
	}
	return r, nil
}

// watchConfig follows the file: the log level changes at once, the rest is
// named as taking effect at the next start.
func watchConfig(sources config.Sources, first config.Config, level *slog.LevelVar, log *slog.Logger) task.Task {
	return config.Watch(sources, log, func(c config.Config, err error) {
		if err != nil {
			return // said by the watcher; the last good one stays
		}
		level.Set(c.LogLevel)
		if later := first.AtNextStart(c); len(later) > 0 {
			log.Warn("takes effect at the next start", "settings", strings.Join(later, ", "))
		}
	})
}

// announce prints the line that automation reads, whenever it changes, and the
// words of a locked service: standard output is its console.
func announce(m *monitor.Monitor, w io.Writer) task.Task {
	return task.Func("announcement", func(ctx context.Context) error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last := ""
		for {
			s := m.Status()
			line := panel.Line(s, m.Code())
			if words := panel.UnlockLine(s); words != "" {
				line += "\n" + words
			}
			if line != last {
				fmt.Fprintln(w, line)
				last = line
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
}

func links(machine *host.Host, source string, log *slog.Logger) []control.Link {
	found, err := machine.Links()
	if err != nil {
		log.Warn("reading the links", "err", err)
		return nil
	}
	var out []control.Link
	for _, l := range found {
		c := control.Link{Name: l.Name, MAC: l.MAC.String(), Carrier: l.Carrier, Source: source, Gateways: l.Gateways, MTU: l.MTU}
		for _, p := range l.Addresses {
			if !p.Addr().IsLoopback() {
				c.Addresses = append(c.Addresses, p)
			}
		}
		if l.Name == "lo" && len(c.Addresses) == 0 {
			continue
		}
		out = append(out, c)
	}
	return out
}

func memory(machine *host.Host, log *slog.Logger) control.Memory {
	m, err := machine.Memory()
	if err != nil {
		log.Warn("reading the memory figures", "err", err)
	}
	return m
}

func kernel(machine *host.Host) string {
	k, err := machine.Release()
	if err != nil {
		return ""
	}
	return k
}

// publicURL is the address that a person opens on a host that listens on one
// address only.
func publicURL(l net.Listener) string {
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok || a.IP.IsUnspecified() {
		return ""
	}
	ap := a.AddrPort()
	return monitor.URL(ap.Addr().Unmap(), ap.Port())
}
