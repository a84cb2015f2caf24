// Package xdp is the door to the early stage: a program at the links that drops what the packet filter would surely drop, before the kernel makes a packet of it.
//
// It decides nothing. nftables judges everything that it lets pass, so a stage
// that is not there, open or coarse costs time and never admits anybody; a
// closed one holds the same lists as nftables does, or it would keep out whom
// nftables lets in. Hence the order of a change: Fill, Open, swap nftables, Close.
//
// The kernel keeps the stage by files in a folder of a bpf file system, because
// a link that nobody holds is gone with the process that made it.
package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
)

// Possible says whether there is a place to keep a stage at.
func Possible() error {
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(Folder), &s); err != nil {
		return fmt.Errorf("looking for the bpf file system: %w", err)
	}
	if s.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is no bpf file system: this kernel has none", filepath.Dir(Folder))
	}
	return nil
}

// Folder is where our own image keeps the stage; `boot` mounts what is above it.
const Folder = "/sys/fs/bpf/gatehouse"

// MostPrefixes bounds the memory of the tries: a prefix takes one or two nodes
// of 64 bytes. Lists that need more are held coarser, and nftables is exact.
const MostPrefixes = 1 << 20

// The names of the files.
const (
	fileV4         = "tries_4" // one slot: the trie that judges; empty: the stage is open
	fileV6         = "tries_6"
	fileDrops      = "drops"
	fileGeneration = "generation"
	fileLink       = "link_" // and the index of the link
)

const batch = 4096 // elements in one call

// A Stage is a folder with what it holds.
type Stage struct {
	Dir     string
	Ports   []uint16
	Generic bool // never in the driver, for tests
}

// Filled is a stage with new tries that judge nobody yet.
type Filled struct {
	Exact bool // they hold the ranges and nothing else
	v4    *ebpf.Map
	v6    *ebpf.Map
}

// Release gives the tries back that Close did not take.
func (f *Filled) Release() error { return errors.Join(f.v4.Close(), f.v6.Close()) }

// Fill makes tries of the union of all enabled lists.
func Fill(p allowlist.Policy) (*Filled, error) {
	var v4, v6 []allowlist.Range
	for _, l := range p.Lists {
		if !l.Enabled {
			continue
		}
		n := 0
		for n < len(l.Ranges) && l.Ranges[n].First.Is4() {
			n++
		}
		v4, v6 = join(v4, l.Ranges[:n]), join(v6, l.Ranges[n:])
	}
	// Each family has the room that the other does not need.
	six, exact6 := allowlist.Prefixes(v6, MostPrefixes-min(len(v4), MostPrefixes/2))
	four, exact4 := allowlist.Prefixes(v4, MostPrefixes-len(six))
	f := &Filled{Exact: exact4 && exact6}
	var err error
	if f.v4, err = trie("gatehouse_4", four, 4, key4); err != nil {
		return nil, err
	}
	if f.v6, err = trie("gatehouse_6", six, 16, key6); err != nil {
		return nil, errors.Join(err, f.v4.Close())
	}
	return f, nil
}

// join leaves the first list as it is, without a copy.
func join(all, more []allowlist.Range) []allowlist.Range {
	if len(all) == 0 {
		return more
	}
	return allowlist.Merge(append(all[:len(all):len(all)], more...))
}

// The keys of struct bpf_lpm_trie_key.
type (
	lpm4 struct {
		Bits uint32
		Addr [4]byte
	}
	lpm6 struct {
		Bits uint32
		Addr [16]byte
	}
)

func key4(p netip.Prefix) lpm4 { return lpm4{uint32(p.Bits()), p.Addr().As4()} }
func key6(p netip.Prefix) lpm6 { return lpm6{uint32(p.Bits()), p.Addr().As16()} }

func trie[K any](name string, prefixes []netip.Prefix, address uint32, key func(netip.Prefix) K) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(trieSpec(name, address, uint32(max(len(prefixes), 1))))
	if err != nil {
		return nil, fmt.Errorf("making a trie of the early stage: %w", err)
	}
	keys, values := make([]K, 0, batch), make([]byte, batch)
	for len(prefixes) > 0 {
		n := min(len(prefixes), batch)
		keys = keys[:0]
		for _, p := range prefixes[:n] {
			keys = append(keys, key(p))
		}
		if done, err := m.BatchUpdate(keys, values[:n], nil); err != nil || done != n {
			return nil, errors.Join(fmt.Errorf("filling a trie of the early stage: %d of %d: %w", done, n, err), m.Close())
		}
		prefixes = prefixes[n:]
	}
	return m, nil
}

func trieSpec(name string, address, entries uint32) *ebpf.MapSpec {
	const noPreallocation = 1 // BPF_F_NO_PREALLOC: a trie must have it
	return &ebpf.MapSpec{Name: name, Type: ebpf.LPMTrie, KeySize: 4 + address, ValueSize: 1, MaxEntries: entries, Flags: noPreallocation}
}

// Open makes the stage pass everything on, unless what it holds is of the
// generation that nftables asks; 0 is never. A stage that is not there is open.
func Open(dir string, unless uint64) error {
	g, err := load(dir, fileGeneration)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	var now uint64
	if err := g.Lookup(uint32(0), &now); err != nil {
		return fmt.Errorf("reading the generation of the early stage: %w", err)
	}
	if now == 0 || now == unless {
		return nil
	}
	for _, file := range []string{fileV4, fileV6} {
		tries, err := load(dir, file)
		if err != nil {
			return err
		}
		err = tries.Delete(uint32(0))
		if tries.Close(); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("opening the early stage: %w", err)
		}
	}
	return g.Put(uint32(0), uint64(0))
}

// Links says where a stage is.
type Links struct {
	With    []string // names
	Without []string // names and why not: nftables alone judges there
}

// Close makes the filled tries judge, at every link that can have the stage, in
// their generation. nftables must ask the same lists already. When it fails, or
// no link can have it, the stage is left open.
func (s Stage) Close(f *Filled, generation uint64) (l Links, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, Open(s.Dir, 0))
		}
	}()
	maps, err := s.maps()
	if err != nil {
		return l, err
	}
	defer maps.close()
	if l, err = s.attach(maps); err != nil {
		return l, err
	}
	if len(l.With) == 0 {
		return l, fmt.Errorf("no link can have the early stage: %s", cmp.Or(strings.Join(l.Without, "; "), "there is none with Ethernet frames"))
	}
	// A cut of power or a kill between these leaves one family open.
	if err := maps.generation.Put(uint32(0), generation); err != nil {
		return l, fmt.Errorf("closing the early stage: %w", err)
	}
	if err := errors.Join(maps.v4.Put(uint32(0), f.v4), maps.v6.Put(uint32(0), f.v6)); err != nil {
		return l, fmt.Errorf("closing the early stage: %w", err)
	}
	return l, nil
}

type maps struct{ v4, v6, drops, generation *ebpf.Map }

func (m maps) close() {
	for _, x := range []*ebpf.Map{m.v4, m.v6, m.drops, m.generation} {
		if x != nil {
			x.Close()
		}
	}
}

// maps are those in the folder, made where there are none.
func (s Stage) maps() (m maps, err error) {
	for _, w := range []struct {
		to   **ebpf.Map
		file string
		spec *ebpf.MapSpec
	}{
		{&m.v4, fileV4, slot(4)},
		{&m.v6, fileV6, slot(16)},
		{&m.drops, fileDrops, &ebpf.MapSpec{Name: "gatehouse_drops", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 1}},
		{&m.generation, fileGeneration, &ebpf.MapSpec{Name: "gatehouse_gen", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
	} {
		if *w.to, err = load(s.Dir, w.file); err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if *w.to, err = ebpf.NewMap(w.spec); err == nil {
			err = (*w.to).Pin(filepath.Join(s.Dir, w.file))
		}
		if err != nil {
			err = fmt.Errorf("making the early stage: %s: %w", w.file, err)
			break
		}
	}
	if err != nil {
		m.close()
	}
	return m, err
}

// slot is a map that holds one trie, so that replacing it is one store.
func slot(address uint32) *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "gatehouse_slot", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: trieSpec("gatehouse_trie", address, 1)}
}

func load(dir, file string) (*ebpf.Map, error) {
	path := filepath.Join(dir, file)
	_, err := os.Lstat(path) // before the system call, which a kernel may not have
	var m *ebpf.Map
	if err == nil {
		m, err = ebpf.LoadPinnedMap(path, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the early stage: %s: %w", file, err)
	}
	return m, nil
}

// attach puts the program at the links, in the place of what an earlier version
// put there, and takes it from links that may not have it any more.
func (s Stage) attach(m maps) (Links, error) {
	var l Links
	links, err := ours()
	if err != nil {
		return l, err
	}
	wanted := make(map[string]bool)
	for _, one := range links {
		if err := s.attachTo(one, m); err != nil {
			l.Without = append(l.Without, fmt.Sprintf("%s (%v)", one.Name, err))
			continue
		}
		wanted[fileLink+strconv.Itoa(one.Index)] = true
		l.With = append(l.With, one.Name)
	}
	entries, err := os.ReadDir(s.Dir)
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fileLink) && !wanted[e.Name()] {
			errs = append(errs, detach(filepath.Join(s.Dir, e.Name())))
		}
	}
	return l, errors.Join(errs...)
}

func (s Stage) attachTo(l netlink.LinkAttrs, m maps) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "gatehouse", Type: ebpf.XDP, License: "BSD",
		Instructions: program([6]byte(l.HardwareAddr), s.Ports, m)})
	if err != nil {
		return fmt.Errorf("loading the program: %w", err)
	}
	defer p.Close()
	file := filepath.Join(s.Dir, fileLink+strconv.Itoa(l.Index))
	if old, err := link.LoadPinnedLink(file, nil); err == nil {
		defer old.Close()
		if err := old.Update(p); err == nil {
			return nil
		}
		// The link that had this index is gone.
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("forgetting a link that is gone: %w", err)
		}
	}
	modes := []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode}
	if s.Generic {
		modes = modes[1:]
	}
	var errs []error
	for _, mode := range modes {
		n, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: l.Index, Flags: mode})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return errors.Join(n.Pin(file), n.Close())
	}
	return errors.Join(errs...)
}

// ours are the links where packets come to this machine in Ethernet frames:
// not those that are a part of a bond or a bridge, which judges for them.
func ours() ([]netlink.LinkAttrs, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("reading the links for the early stage: %w", err)
	}
	var out []netlink.LinkAttrs
	for _, l := range all {
		a := l.Attrs()
		if a.EncapType == "ether" && a.MasterIndex == 0 && len(a.HardwareAddr) == 6 {
			out = append(out, *a)
		}
	}
	return out, nil
}

// Remove takes the stage away, links first.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fileLink) {
			errs = append(errs, detach(filepath.Join(dir, e.Name())))
		}
	}
	for _, name := range []string{fileV4, fileV6, fileDrops, fileGeneration} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// detach takes the program from a link at once; without its file alone the
// kernel would do so a little later.
func detach(file string) error {
	l, err := link.LoadPinnedLink(file, nil)
	if err != nil {
		return fmt.Errorf("taking the early stage away: %w", err)
	}
	defer l.Close()
	// A link that is gone has nothing to take away.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("taking the early stage away: %w", err)
	}
	return l.Unpin()
}

// Counter is what the stage has dropped since it was made, on all processors;
// without a stage the error is fs.ErrNotExist.
func Counter(dir string) (control.Counter, error) {
	c := control.Counter{Name: netfilter.WebEarly}
	m, err := load(dir, fileDrops)
	if err != nil {
		return c, err
	}
	defer m.Close()
	var each []struct{ Packets, Bytes uint64 }
	if err := m.Lookup(uint32(0), &each); err != nil {
		return c, fmt.Errorf("reading the counter of the early stage: %w", err)
	}
	for _, n := range each {
		c.Packets, c.Bytes = c.Packets+n.Packets, c.Bytes+n.Bytes
	}
	return c, nil
}
