package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/panel"
	"gatehouse/appliance/volume"
	"gatehouse/appliance/volume/disks"
	"gatehouse/appliance/volume/gpt"
	"gatehouse/appliance/volume/installer"
	"gatehouse/firmware/bootentry"
)

// cdTime is how long a start without a disk of its own waits for a CD drive.
const cdTime = 8 * time.Second

const installerWords = "this is the medium that installs: choose 'Install to a disk' at the console. Nothing is kept on it"

// install is the medium that this system was started from, if it installs.
type install struct {
	box    *box
	name   string // sr0, sda
	device string
	medium *installer.Medium

	begun chan struct{} // holds one while something is being written

	afterwards string // what a person does with the medium once it is installed
}

// findInstaller looks whether this system was started from the medium that
// installs: the disk that the loader was read from, or a CD where firmware
// names no partition. No other disk is taken for one: what starts decides.
func (b *box) findInstaller(ctx context.Context, own string) {
	if own != "" {
		b.tryInstaller(own)
		return
	}
	if b.modules == nil {
		return
	}
	if _, err := b.machine.LoaderPartition(); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cdTime)
	defer cancel()
	err := b.modules.Coldplug(ctx, func() bool {
		found, _ := filepath.Glob("/sys/class/block/sr*")
		for _, f := range found {
			if b.tryInstaller(filepath.Base(f)) {
				return true
			}
		}
		return false
	})
	if err != nil {
		b.log.Warn("drivers of CD drives", "err", err)
	}
}

func (b *box) tryInstaller(name string) bool {
	f, err := os.Open(filepath.Join("/dev", name))
	if err != nil {
		return false
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		var m *installer.Medium
		if m, err = installer.Open(f, size); err == nil {
			b.install = &install{box: b, name: name, device: "/dev/" + name, medium: m, begun: make(chan struct{}, 1), afterwards: "Take the medium out."}
			b.log.Info("started from the medium that installs", "medium", name)
			return true
		}
	}
	if !errors.Is(err, installer.ErrNone) {
		b.log.Warn("a medium that installs cannot be used", "medium", name, "err", err)
	}
	f.Close()
	return false
}

// Targets are the disks of the machine, but for the medium itself.
func (i *install) Targets() ([]panel.Target, error) {
	all, err := disks.Machine{Root: "/"}.List()
	if err != nil {
		return nil, err
	}
	var out []panel.Target
	for _, d := range all {
		if d.Name != i.name {
			out = append(out, panel.Target{Name: d.Name, Words: d.String(), Holds: d.Holds(), Refused: d.Refusal(i.medium.Size)})
		}
	}
	return out, nil
}

// Install begins to write.
func (i *install) Install(_ context.Context, name string) error {
	d, err := disks.Machine{Root: "/"}.Find(name)
	if err != nil {
		return err
	}
	if why := d.Refusal(i.medium.Size); why != "" || name == i.name {
		return fmt.Errorf("%s is not written to: %s", name, why)
	}
	select {
	case i.begun <- struct{}{}:
	default:
		return errors.New("something is being written already")
	}
	go func() { // ends with the machine's life: there is no other work on this medium
		defer func() { <-i.begun }()
		i.write(d)
	}()
	return nil
}

func (i *install) write(d disks.Disk) {
	consoles := i.box.terminals()
	err := i.copy(d, func(text string) { tell(consoles, text) })
	if err != nil {
		i.box.log.Error("installing failed", "disk", d.Name, "err", err)
		tell(consoles, "Installing to "+d.Name+" failed: "+err.Error()+". It holds nothing whole now.")
		return
	}
	if err := i.startNext(d); err != nil {
		i.box.log.Warn("the firmware decides what starts next", "err", err)
		tell(consoles, "The firmware was not told to start the disk ("+err.Error()+"): it decides what starts next.")
	}
	tell(consoles, "Installed to "+d.Name+", and compared. The machine restarts from the disk. "+i.afterwards)
	time.Sleep(readTime)
	i.box.power("restart")
}

// startNext has the firmware start the disk, now and later: the medium may stay
// in the machine, with the seed for the first start, and firmware that finds it
// first would begin here again.
func (i *install) startNext(d disks.Disk) error {
	place, err := volume.Named(d.Name).ESPPlace()
	if err != nil {
		return err
	}
	menu, err := i.box.machine.BootMenu()
	if err != nil {
		return err
	}
	o := bootentry.Option{Active: true, Description: loaderEntry, Partition: place, File: loaderFile}
	return i.box.machine.ChangeBootMenu(bootentry.Begin(menu, o))
}

func (i *install) copy(d disks.Disk, say func(string)) error {
	out, err := os.OpenFile(d.Device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("opening %s for ourselves: %w", d.Device, err)
	}
	defer out.Close()
	in, err := i.medium.Image()
	if err != nil {
		return err
	}
	// It may take minutes: the watchdog is kicked by a task of its own.
	ctx := context.Background()
	w, err := disks.Write(ctx, out, in, i.medium.Size, nil, tenths("Writing", i.medium.Size, say))
	if err != nil {
		return err
	}
	_, err = w.Compare(ctx, d.Device, tenths("Comparing", i.medium.Size, say))
	return err
}

// tenths says each tenth of the way.
func tenths(what string, all int64, say func(string)) func(int64) {
	last := int64(0)
	return func(done int64) {
		if t := 10 * done / max(all, 1); t > last {
			last = t
			say(fmt.Sprintf("%s: %d %%", what, 10*t))
		}
	}
}

// installBySeed installs without asking to the one disk whose serial number the
// seed says, unless it holds a Gatehouse: a medium that stays in the machine
// would erase the box at each restart.
func (b *box) installBySeed(ctx context.Context) error {
	b.awaitSticks(ctx)
	m := disks.Machine{Root: "/"}
	media, err := findMedia(m, "")
	if err != nil {
		return b.refuseInstall(err)
	}
	s, _, err := readMedia(media)
	if err != nil {
		return b.refuseInstall(err)
	}
	if s.Install == nil {
		return nil
	}
	all, err := m.List()
	if err != nil {
		return b.refuseInstall(err)
	}
	d, err := b.install.choose(all, s.Install.Serial)
	if err != nil {
		return b.refuseInstall(err)
	}
	if why := d.Refusal(b.install.medium.Size); why != "" {
		return b.refuseInstall(fmt.Errorf("%s is not written to: %s", d.Name, why))
	}
	tell(b.terminals(), "Installing, as the seed says, to "+d.String())
	b.install.afterwards = "Leave the medium with the seed in until the box has its owner."
	return b.install.Install(ctx, d.Name)
}

// refuseInstall notes why the seed has nothing written.
func (b *box) refuseInstall(why error) error {
	b.seedProblem = why.Error()
	return fmt.Errorf("nothing was written by the seed: %w", why)
}

// choose finds the disk that a seed means. None and two are refused: which one is
// meant is not guessed, since what is on it is lost.
func (i *install) choose(all []disks.Disk, serial string) (disks.Disk, error) {
	var found []disks.Disk
	var others []string
	for _, d := range all {
		switch {
		case d.Name == i.name:
		case d.Serial == serial:
			found = append(found, d)
		default:
			others = append(others, d.String())
		}
	}
	switch {
	case len(found) == 0 && len(others) == 0:
		return disks.Disk{}, fmt.Errorf("no disk has the serial number %s, and there is none besides the medium", serial)
	case len(found) == 0:
		return disks.Disk{}, fmt.Errorf("no disk has the serial number %s; there is %s", serial, strings.Join(others, "; "))
	case len(found) > 1:
		return disks.Disk{}, fmt.Errorf("%d disks have the serial number %s: choose one at the console", len(found), serial)
	}
	d := found[0]
	holds, err := holdsGatehouse(d)
	if err != nil {
		return disks.Disk{}, fmt.Errorf("whether %s holds a Gatehouse cannot be told (%w): it is written to only at the console", d.Name, err)
	}
	if holds {
		return disks.Disk{}, fmt.Errorf("%s holds a Gatehouse already: it is written to only at the console. Take the medium out", d.Name)
	}
	return d, nil
}

// holdsGatehouse says whether a disk has a partition of one. A table that is broken
// may be a box's: that is for a person to say.
func holdsGatehouse(d disks.Disk) (bool, error) {
	f, err := os.Open(d.Device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	t, _, err := gpt.Read(f, gpt.Geometry{SectorSize: d.Sector, Sectors: uint64(d.Size) / uint64(max(d.Sector, 1))})
	if errors.Is(err, gpt.ErrNone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(t.Entries[:], func(p gpt.Partition) bool { return p.Name == "gatehouse-meta" }), nil
}
