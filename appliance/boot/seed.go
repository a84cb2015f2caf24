package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/seed"
	"gatehouse/appliance/seed/fat"
	"gatehouse/appliance/volume/disks"
)

// nameFile is where the name that a seed gave is kept, in the data volume.
const nameFile = "name"

// stickTime is how long the start of a box without an owner waits for a USB
// stick that is there to become a disk: the kernel lets one settle for a second.
const stickTime = 6 * time.Second

// A medium is a file system that may hold a seed.
type medium struct {
	name string // sda1
	path string // of the device
	file fat.File
}

// readSeed looks for a seed, only while nobody owns the box. The modules are
// freed here, since until then a stick may need one.
func (b *box) readSeed(ctx context.Context) error {
	defer b.freeModules()
	if b.keys == nil {
		return nil // said already
	}
	claimed := false
	if !b.fresh { // of new keys nothing is in the TPM before they are committed
		var err error
		if claimed, err = b.keys.Claimed(ctx); err != nil {
			return fmt.Errorf("reading whether the box has an owner: %w", err)
		}
	}
	m := disks.Machine{Root: "/"}
	if claimed {
		return b.wipeSeed(m)
	}
	b.awaitSticks(ctx)
	media, err := findMedia(m, "")
	if err != nil {
		return b.refuseSeed(err.Error())
	}
	s, from, err := readMedia(media)
	if err != nil {
		return b.refuseSeed(err.Error())
	}
	if from == nil {
		return nil
	}
	b.log.Info("a seed was found", "medium", from.name, "owner", s.Owner != nil, "network", s.Network != nil, "name", s.HostName)
	b.seed, b.medium = &s, from
	return nil
}

// refuseSeed notes why a seed does not count: nothing of it does.
func (b *box) refuseSeed(why string) error {
	b.seed, b.medium = nil, nil
	b.seedProblem = why
	return errors.New("the seed was refused, and the box is claimed with a code: " + why)
}

// readMedia reads the one seed of all media; nil: there is none to use.
func readMedia(media []medium) (seed.Seed, *medium, error) {
	var found *medium
	var out seed.Seed
	for _, m := range media {
		text, err := m.read()
		if err != nil {
			return out, nil, fmt.Errorf("%s on %s cannot be read: %w", seed.File, m.name, err)
		}
		s, err := seed.Parse(text)
		if errors.Is(err, seed.ErrUsed) {
			continue
		}
		if err == nil && s.Owner != nil {
			err = password.CheckHash(s.Owner.Password)
		}
		if err != nil {
			return out, nil, fmt.Errorf("%s on %s: %w", seed.File, m.name, err)
		}
		if found != nil {
			return out, nil, fmt.Errorf("there are two, on %s and on %s: take one out, which is meant cannot be told", found.name, m.name)
		}
		out, found = s, &m
	}
	return out, found, nil
}

// findMedia lists the file systems with the label of seeds that hold one: of
// all partitions and of disks without partitions, or of one disk alone.
func findMedia(m disks.Machine, only string) ([]medium, error) {
	all, err := m.List()
	if err != nil {
		return nil, err
	}
	var out []medium
	for _, d := range all {
		if only != "" && d.Name != only {
			continue
		}
		names := []string{d.Name}
		for _, p := range d.Parts {
			names = append(names, p.Name)
		}
		for i, name := range names {
			found, err := lookAt(name, filepath.Join(m.Root, "dev", name))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fat.ErrNone) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, found)
			if i == 0 {
				// The whole disk is one file system. What mtools makes has an entry of a
				// partition in its first sector besides, which leads to the same one.
				break
			}
		}
	}
	return out, nil
}

// lookAt says where the seed of a file system lies. A medium that cannot be
// read at all is nobody's seed.
func lookAt(name, path string) (medium, error) {
	f, err := os.Open(path)
	if err != nil {
		return medium{}, fs.ErrNotExist
	}
	defer f.Close()
	v, err := fat.Open(f)
	if err != nil || !strings.EqualFold(v.Label, seed.Label) {
		return medium{}, fs.ErrNotExist
	}
	file, err := v.Find(seed.File, seed.Size)
	if errors.Is(err, fs.ErrNotExist) {
		return medium{}, fmt.Errorf("%s has the label %s and no file %s", name, seed.Label, seed.File)
	}
	if err != nil {
		return medium{}, fmt.Errorf("%s on %s: %w", seed.File, name, err)
	}
	return medium{name, path, file}, nil
}

func (m medium) read() ([]byte, error) {
	f, err := os.Open(m.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return m.file.Read(f)
}

// forget overwrites the seed where it lies. Flash may keep the old blocks where
// only its maker reads them; the hash in it is not the password.
func (m medium) forget(box string) error {
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("overwriting the seed on %s: %w", m.name, err)
	}
	defer f.Close()
	if err := errors.Join(m.file.Overwrite(f, seed.Used(box, int(m.file.Size))), f.Sync()); err != nil {
		return fmt.Errorf("overwriting the seed on %s: %w", m.name, err)
	}
	return f.Close()
}

// wipeSeed overwrites what a power cut between the claim and the end of its
// seed left on our own disk. Nothing of it is obeyed, and no other disk is
// looked at.
func (b *box) wipeSeed(m disks.Machine) error {
	media, err := findMedia(m, b.disk.Name)
	if err != nil {
		return nil // it holds nothing that could be overwritten
	}
	for _, one := range media {
		text, err := one.read()
		if err != nil {
			return err
		}
		if _, err := seed.Parse(text); errors.Is(err, seed.ErrUsed) {
			continue
		}
		if err := one.forget(nameOf(b.keys.InstallID())); err != nil {
			return err
		}
		b.log.Warn("a seed was left on the disk of a box with an owner; it is overwritten", "medium", one.name)
	}
	return nil
}

// awaitSticks waits for USB storage that is there and is no disk yet.
func (b *box) awaitSticks(ctx context.Context) {
	if b.modules == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stickTime)
	defer cancel()
	sticks := false
	err := b.modules.Coldplug(ctx, func() bool {
		ready, any := sticksReady()
		sticks = any
		return ready
	})
	if err != nil {
		b.log.Warn("drivers of sticks", "err", err)
	}
	if sticks {
		time.Sleep(500 * time.Millisecond) // a disk is listed before its partitions
	}
}

// sticksReady says whether every interface of USB storage has its disk.
func sticksReady() (ready, any bool) {
	interfaces, _ := filepath.Glob("/sys/bus/usb/devices/*/bInterfaceClass")
	for _, i := range interfaces {
		text, err := os.ReadFile(i)
		if err != nil || strings.TrimSpace(string(text)) != "08" { // USB mass storage
			continue
		}
		if found, _ := filepath.Glob(filepath.Join(filepath.Dir(i), "host*/target*/*/block/*")); len(found) == 0 {
			return false, true
		}
		any = true
	}
	return true, any
}

func (b *box) freeModules() {
	if b.modules == nil {
		return
	}
	b.modules = nil
	freed, err := b.machine.FreeModules()
	b.log.Info("drivers freed", "bytes", freed, "err", err)
}

// seedNetwork keeps what the seed says of network and name, before the links
// are up. It is kept at once, as at the console: who set up the seed held the
// box in his hands. The cards are known here, so what no card fits ends the seed.
func (b *box) seedNetwork() error {
	if b.seed == nil || b.keys == nil || !b.mounted {
		return nil
	}
	if s := b.seed.Network; s != nil {
		own, err := b.machine.Own()
		if err != nil {
			return err
		}
		if p := netconf.Check(*s, own); len(p) > 0 {
			return b.refuseSeed("its network does not fit this machine: " + netconf.Sentence(p[0]))
		}
		if err := b.netStore().keep(*s); err != nil {
			return b.refuseSeed(err.Error())
		}
	}
	if b.seed.HostName != "" {
		if err := replaceFile(filepath.Join(dataPath, nameFile), []byte(b.seed.HostName)); err != nil {
			return b.refuseSeed("keeping the box's name: " + err.Error())
		}
	}
	return nil
}

// givenName is the name that a seed gave; "": none did.
func (b *box) givenName() string {
	if !b.mounted {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(dataPath, nameFile))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("the name of the box cannot be read", "err", err)
		}
		return ""
	}
	if err := (seed.Seed{HostName: string(text)}).Check(); err != nil {
		b.log.Warn("the name of the box cannot be used", "err", err)
		return ""
	}
	return string(text)
}

// monitorSeed is what the roles carry out of the seed.
func (b *box) monitorSeed(c *monitor.Config) {
	if b.seedProblem != "" {
		c.SeedProblem = "It was refused, and nothing of it counts: " + strings.TrimSuffix(b.seedProblem, ".") + "."
	}
	if b.seed == nil {
		return
	}
	s := &monitor.Seed{SecureBoot: b.seed.SecureBoot == seed.Enrol, Forget: func(box string) error {
		m := b.medium
		b.seed = nil // the roles may start anew in this life
		return m.forget(box)
	}}
	if o := b.seed.Owner; o != nil {
		s.Owner = &control.SeedOwner{Name: o.Name, Email: o.Email, Password: o.Password}
	}
	c.Seed = s
}
