package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/durable"
	"gatehouse/appliance/host"
	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/netfilter/xdp"
	"gatehouse/tpm"
	"gatehouse/tpm/hostid"
)

const (
	dataPath = "/data"
	dataName = "gatehouse-data" // of the dm-crypt mapping
	tpmPath  = "/dev/tpmrm0"    // the kernel's resource manager

	// driversTime is how long the start waits for the box's own disk to
	// appear; slow USB disks take some seconds.
	driversTime  = 20 * time.Second
	watchdogTime = 60 * time.Second
)

func (b *box) fileSystems(context.Context) error {
	if err := b.machine.MountEarly(); err != nil {
		return err
	}
	return b.machine.NoCtrlAltDel()
}

// clockFloor keeps a clock without a battery from starting in 1970: the
// program was built later than that.
func (b *box) clockFloor(context.Context) error {
	if time.Now().Before(b.built) {
		return b.machine.SetClock(b.built)
	}
	return nil
}

// drivers loads what the machine's devices ask for, until the box's own disk
// is there. The memory of the rest is given back once no stick is waited for.
func (b *box) drivers(ctx context.Context) error {
	modules, err := b.machine.OpenModules()
	if err != nil {
		return err
	}
	// The software watchdog comes after those that devices ask for, so that
	// real hardware gets the lowest number.
	const last = "softdog"
	first := slices.DeleteFunc(host.Needed(), func(m string) bool { return m == last })
	err = modules.Load(first...)
	_, e := b.machine.MountEFIVariables()
	err = errors.Join(err, e)
	ctx, cancel := context.WithTimeout(ctx, driversTime)
	defer cancel()
	err = errors.Join(err, modules.Coldplug(ctx, func() bool {
		_, err := volume.FindDisk(b.machine)
		return !errors.Is(err, fs.ErrNotExist)
	}))
	err = errors.Join(err, modules.Load(last))
	count, spent := modules.Loaded()
	b.log.Info("drivers", "modules", count, "in the kernel", spent.Round(time.Millisecond))
	b.modules = modules
	return err
}

// openWatchdog arms the watchdog and has it kicked until the box is asked to
// end, whether roles run or not: opening a large volume takes longer than it
// waits, and so do the pauses between roles that fail. From the end on it
// bounds the shutdown.
func (b *box) openWatchdog(ctx context.Context) (err error) {
	b.watchdog, err = b.machine.OpenWatchdog(watchdogTime, func() bool { return true })
	if b.watchdog != nil {
		go b.kick(ctx) // ends with ctx
		if last := b.watchdog.LastReset(); last != "" {
			b.log.Warn("the watchdog ended the last life", "cause", last)
		}
	}
	return err
}

func (b *box) kick(ctx context.Context) {
	for {
		err := b.watchdog.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		b.log.Error("the watchdog was not kicked", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(watchdogTime / 6):
		}
	}
}

func (b *box) settings(context.Context) error {
	return errors.Join(b.machine.SetSysctls(), b.machine.LoopbackUp())
}

// filter closes the box. If that fails the links stay down: a box that cannot
// be reached is better than one that can be reached by all.
func (b *box) filter(context.Context) error {
	b.filtered = nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateStarting, Form: netfilter.Box}))
	return b.filtered
}

func (b *box) findDisk(ctx context.Context) error {
	disk, err := volume.FindDisk(b.machine)
	if b.findInstaller(ctx, disk.Name); b.install != nil {
		b.lock(installerWords)
		return b.installBySeed(ctx)
	}
	if err != nil {
		b.lock("this system was not started from a disk of its own, so there is no place for its data: write the image to a disk and start from that")
		return err
	}
	b.disk = disk
	if b.meta, err = disk.Meta(); err != nil {
		b.lock("the disk " + disk.Name + " has no META partition of this box: write the image to it anew")
		return err
	}
	return nil
}

// lock notes why the box does not open. The first reason counts: what comes
// later follows from it.
func (b *box) lock(reason string) {
	if b.locked == "" {
		b.locked = reason
	}
	if b.keys != nil {
		b.keys.Wipe()
		b.keys = nil
	}
}

// unseal opens the data key, or makes one in memory if there never was any. The
// vault caps the TPM's registers in either case, so that nothing that runs
// later can unseal again.
func (b *box) unseal(ctx context.Context) error {
	if err := b.machine.WaitEntropy(ctx); err != nil {
		return err
	}
	b.tpm = tpm.Find(tpmPath)
	var err error
	if b.boot, err = b.machine.SecureBoot(); err != nil {
		b.log.Warn("reading the state of Secure Boot", "err", err)
	}
	if b.meta == nil {
		return errors.New("there is no META partition to read the keys' header from")
	}
	b.config = vault.Config{
		Meta: b.meta, TPM: b.tpm, Form: vault.Box, SecureBoot: b.boot.Enabled, System: b.measured.release, Log: b.log,
		HostID: func() (hostid.ID, error) { return hostid.Read(os.DirFS("/")) },
	}
	b.keys, err = vault.Open(ctx, b.config)
	if errors.Is(err, vault.ErrBlank) {
		b.keys, err = vault.Create(ctx, b.config)
		b.fresh = err == nil
		b.made = b.fresh
	}
	var locked *vault.Locked
	switch {
	case errors.As(err, &locked):
		b.broken = locked
		b.lock(describe(locked))
	case err != nil:
		b.lock("the keys could not be opened: " + err.Error())
	}
	return err
}

// openData opens the data volume, and makes it at the first start. The vault's
// header is the commit point: it is written last. A power cut before it leaves
// a blank META, and the next start makes keys and volume once more, when
// nothing of value was there; a cut after it finds a volume that is whole.
func (b *box) openData(ctx context.Context) error {
	if b.keys == nil {
		return nil // said already
	}
	if err := b.mountData(ctx); err != nil {
		var problem *volume.Problem
		if errors.As(err, &problem) {
			b.problem = problem.Error()
		} else {
			b.problem = err.Error()
		}
		b.lock("the data volume does not open: " + b.problem)
		return err
	}
	if b.fresh {
		if err := b.keys.Commit(ctx); err != nil {
			b.lock("the new keys could not be written: " + err.Error())
			return err
		}
		b.fresh = false
	}
	// The data are open, so this start is the one that was foreseen, or none
	// was. What waits for others is dropped: the slot of a firmware without
	// keys would open for who takes them out again. Nothing is settled in a trial, or
	// by a system that somebody chose for one start: the one that starts the next time
	// has to open the data too.
	if b.systems.stands.Load() {
		if err := b.keys.Settle(ctx); err != nil {
			b.log.Warn("slots of starts that were foreseen are still there", "err", err)
		}
	}
	// As long as the volume is there: who unlocks it does not wait for that.
	if ok, err := volume.KeepBalanced(context.WithoutCancel(ctx), dataPath, b.log); err != nil || !ok {
		b.problem = "the data volume is full: signing in, reading and erasing work, changes are refused"
		b.log.Warn(b.problem, "err", err)
	}
	b.keepLogs()
	_, err := b.machine.FreePrograms()
	return err
}

func (b *box) mountData(ctx context.Context) error {
	dev, err := b.disk.EnsureData()
	if err != nil {
		return err
	}
	if b.fresh {
		if err := b.discardAgain(ctx); err != nil {
			b.log.Warn("discarding what was erased before", "err", err)
		}
	}
	key, err := b.keys.VolumeKey()
	if err != nil {
		return err
	}
	defer clear(key)
	mapped, err := volume.OpenCrypt(dev, dataName, key)
	if err != nil {
		return err
	}
	b.mapped = true
	checked, err := volume.Prepare(ctx, b.reaper.Command, mapped, !b.fresh)
	if err != nil {
		return err
	}
	if checked.Repaired {
		b.log.Warn("the data volume was mended", "what", checked.Output)
	}
	if err := volume.Mount(mapped, dataPath); err != nil {
		return err
	}
	b.mounted = true
	return nil
}

// keepLogs moves the log, and what the kernel left of a crash, to the volume.
func (b *box) keepLogs() {
	if err := b.journal.Attach(filepath.Join(dataPath, "log"), 8<<20); err != nil {
		b.log.Warn("the log is kept in memory only", "err", err)
	}
	crashes := filepath.Join(dataPath, "crash")
	if err := os.MkdirAll(crashes, 0o700); err != nil {
		b.log.Warn("there is no place for crash reports", "err", err)
		return
	}
	n, err := b.machine.CollectCrashes(func(name string, data []byte) error {
		return replaceFile(filepath.Join(crashes, "kernel-"+filepath.Base(name)), data)
	})
	if err != nil {
		b.log.Warn("collecting the kernel's crash records", "err", err)
	}
	if n > 0 {
		b.log.Warn("the kernel left crash records", "count", n, "folder", "crash")
	}
}

// listen opens the two ports, once: they outlive a failed set of roles.
func (b *box) listen(r *roles) (err error) {
	if b.https == nil {
		if b.https, err = net.Listen("tcp", ":443"); err != nil {
			return fmt.Errorf("opening port 443: %w", err)
		}
	}
	if b.http == nil {
		if b.http, err = net.Listen("tcp", ":80"); err != nil {
			return fmt.Errorf("opening port 80: %w", err)
		}
	}
	r.https, r.http = b.https, b.http
	return nil
}

func replaceFile(path string, data []byte) error { return durable.WriteFile(path, data, 0o600) }

func usage(path string, encrypted bool) control.Volume {
	size, free, err := volume.Usage(path)
	if err != nil {
		return control.Volume{Encrypted: encrypted, Problem: err.Error()}
	}
	return control.Volume{Encrypted: encrypted, Size: size, Free: free}
}

// counters are those of the packet filter, with the early stage's if there is one.
func counters() ([]control.Counter, error) {
	all, err := nft.Counters()
	if err != nil {
		return all, err
	}
	early, err := xdp.Counter(xdp.Folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return all, nil
	case err != nil:
		return all, err
	}
	return append(all, early), nil
}
