package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/host/modalias"
)

// Needed are the modules that no device asks for. softdog is the watchdog of
// last resort: OpenWatchdog takes it only if there is no other.
func Needed() []string {
	return []string{
		"nf_tables", "nft_ct", "nft_limit", "nft_objref", "nft_log", "nfnetlink_log",
		"nf_conntrack", "nf_conntrack_netlink",
		"dm_mod", "dm_crypt", "xts", "ext4",
		"vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8",
		"efivarfs", "efi_pstore",
		"8021q", "bonding", // links that a person may set up later, when the modules are freed
		"af_packet", "softdog",
	}
}

// parameters are those of modules whose own choice is not ours.
var parameters = map[string]string{"bonding": "max_bonds=0"} // or it makes a bond0 that nobody asked for

// Modules loads kernel modules from /lib/modules/RELEASE until FreeModules.
// Its methods may run at the same time: the kernel checks signatures and
// relocates outside its locks, so two processors load nearly twice as fast.
type Modules struct {
	host  *Host
	index *modalias.Index
	dir   string

	mu      sync.Mutex
	tried   map[string]*attempt // by module name
	devices map[string]bool     // modaliases that were looked at
	loaded  int
	spent   time.Duration
}

// An attempt to load a module is made once; who comes later waits for it.
// Nobody waits while others wait for him: a plan's steps are in order.
type attempt struct {
	once sync.Once
	err  error
}

// OpenModules reads the module index. An image without modules (everything
// built in) has none: the result then finds nothing, and that is no error.
func (h *Host) OpenModules() (*Modules, error) {
	release, err := h.Release()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's release: %w", err)
	}
	m := &Modules{host: h, dir: filepath.Join("/lib/modules", release), tried: make(map[string]*attempt), devices: make(map[string]bool)}
	var files [3]io.Reader
	for i, name := range []string{"modules.dep", "modules.alias", "modules.softdep"} {
		data, err := os.ReadFile(h.path(filepath.Join(m.dir, name)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading the module index: %w", err)
		}
		files[i] = bytes.NewReader(data)
	}
	if m.index, err = modalias.Parse(files[0], files[1], files[2]); err != nil {
		return nil, fmt.Errorf("reading the module index of %s: %w", release, err)
	}
	return m, nil
}

// Loaded is how many modules were loaded, and the kernel's time for it, summed
// over processors.
func (m *Modules) Loaded() (int, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loaded, m.spent
}

// Load loads modules by name with all they need, in no order. One that is
// neither a file nor in the kernel already is skipped: what is a module on one
// kernel is built into another. So is one that finds its hardware missing
// (efivarfs without UEFI). The error joins those that the kernel refused.
func (m *Modules) Load(names ...string) error {
	var present []string
	for _, name := range names {
		if m.index.Has(name) {
			present = append(present, name)
			continue
		}
		m.host.log.Debug("no such module; built in, or not in this image", "module", name)
	}
	return m.loadAll(present)
}

// loadAll loads several modules at once, and one more than there are
// processors: drivers of disk controllers wait for their ports without work.
func (m *Modules) loadAll(names []string) error {
	var group errgroup.Group
	group.SetLimit(min(runtime.NumCPU()+1, 4))
	errs := make([]error, len(names))
	for i, name := range names {
		group.Go(func() error {
			errs[i] = m.loadOne(name)
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs, all of them
	return errors.Join(errs...)
}

func (m *Modules) loadOne(name string) error {
	plan, err := m.index.Plan(name)
	if err != nil {
		return fmt.Errorf("loading module %s: %w", name, err)
	}
	for _, step := range plan {
		switch err := m.step(step); {
		case err == nil:
		case step.Optional:
			m.host.log.Debug("a module that another wishes for was not loaded", "module", step.Name, "for", name, "error", err)
		case errors.Is(err, unix.ENODEV):
			m.host.log.Debug("a module found no hardware", "module", step.Name, "for", name)
			return nil
		default:
			return fmt.Errorf("loading module %s for %s: %w", step.Name, name, err)
		}
	}
	return nil
}

func (m *Modules) step(s modalias.Step) error {
	m.mu.Lock()
	a := m.tried[s.Name]
	if a == nil {
		a = new(attempt)
		m.tried[s.Name] = a
	}
	m.mu.Unlock()
	a.once.Do(func() { a.err = m.insert(s) })
	return a.err
}

func (m *Modules) insert(s modalias.Step) error {
	if _, err := os.Stat(m.host.path("/sys/module/" + s.Name)); err == nil {
		return nil
	}
	start := time.Now()
	err := m.host.calls.LoadModule(m.host.path(filepath.Join(m.dir, s.Path)), parameters[s.Name])
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spent += time.Since(start)
	if errors.Is(err, unix.EEXIST) { // the kernel asked for it itself in the meantime
		return nil
	}
	if err == nil {
		m.loaded++
	}
	return err
}

// Coldplug loads the modules of every device there is, and of the devices
// that appear by that, until nothing new has come for a while and enough says
// that what the caller waits for (its disk) is there; enough may be nil. It
// ends with ctx, without error: what is there by then is what the box has.
//
// PCI and virtio devices appear while their driver is loaded; USB devices come
// later, by a kernel thread (debounce 100 ms, reset, settle), so the pause
// without news is longer on machines with a USB controller.
func (m *Modules) Coldplug(ctx context.Context, enough func() bool) error {
	const poll = 25 * time.Millisecond
	var errs []error
	quiet := time.Now()
	for {
		news, err := m.round()
		if err != nil {
			errs = append(errs, err)
		}
		if news {
			quiet = time.Now()
			continue
		}
		pause := 2 * poll
		if controllers, _ := filepath.Glob(m.host.path("/sys/bus/usb/devices/usb*")); len(controllers) > 0 {
			pause = 800 * time.Millisecond
		}
		if time.Since(quiet) >= pause && (enough == nil || enough()) {
			return errors.Join(errs...)
		}
		select {
		case <-ctx.Done():
			return errors.Join(errs...)
		case <-time.After(poll):
		}
	}
}

// round looks at all devices once and says whether one was new. Modules that
// the kernel refuses are only logged: several often fit one device.
func (m *Modules) round() (news bool, err error) {
	devices, err := m.host.devices()
	var names []string
	for _, dir := range devices {
		// Devices come and go meanwhile; one that is gone is no error.
		data, err := os.ReadFile(filepath.Join(dir, "modalias"))
		if device := string(bytes.TrimSpace(data)); err == nil && m.newDevice(device) {
			names = append(names, m.index.Match(device)...)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	names = slices.DeleteFunc(names, m.wasTried)
	if err := m.loadAll(names); err != nil {
		m.host.log.Warn("modules of devices were not loaded", "error", err)
	}
	return len(names) > 0, err
}

// devices are the folders of sysfs that may have a modalias: those of every
// bus, the two classes whose devices are on none, and the processor. All of
// /sys/devices has thirty times as many files, and the kernel keeps what it
// makes for each that is looked at.
func (h *Host) devices() ([]string, error) {
	buses, err := os.ReadDir(h.path("/sys/bus"))
	if err != nil {
		return nil, fmt.Errorf("looking for devices (is /sys mounted?): %w", err)
	}
	folders := []string{"/sys/class/dmi", "/sys/class/input"}
	for _, b := range buses {
		folders = append(folders, filepath.Join("/sys/bus", b.Name(), "devices"))
	}
	found := []string{h.path("/sys/devices/system/cpu")}
	for _, folder := range folders {
		entries, err := os.ReadDir(h.path(folder))
		if err != nil {
			continue // a bus or class that this kernel has not
		}
		for _, e := range entries {
			found = append(found, h.path(filepath.Join(folder, e.Name())))
		}
	}
	return found, nil
}

func (m *Modules) newDevice(device string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := device == "" || m.devices[device]
	m.devices[device] = true
	return !known
}

func (m *Modules) wasTried(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tried[name] != nil
}

// FreeModules removes /lib/modules: the initramfs is memory, and after
// coldplug nothing in it is needed again. It returns the bytes freed.
func (h *Host) FreeModules() (int64, error) { return h.free("/lib/modules") }

// FreePrograms removes the programs that make and mend the data volume, and
// their libraries, when that is mounted: 3.5 MB that the next start unpacks anew.
func (h *Host) FreePrograms() (int64, error) { return h.free("/sbin", "/lib", "/lib64") }

// free removes folders of the initramfs. It refuses to touch one that is on a
// disk, which is somebody else's system.
func (h *Host) free(folders ...string) (freed int64, err error) {
	for _, name := range folders {
		dir := h.path(name)
		ram, err := h.calls.InMemory(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return freed, fmt.Errorf("asking what holds %s: %w", name, err)
		}
		if !ram {
			return freed, fmt.Errorf("freeing memory: %s is not in memory; it is not ours to remove", name)
		}
		var size int64
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					size += info.Size()
				}
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			return freed, fmt.Errorf("freeing %s: %w", name, err)
		}
		freed += size
	}
	return freed, nil
}
