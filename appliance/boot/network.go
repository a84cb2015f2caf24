package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/vault"
)

// networkFile is where settings are kept, in the data volume.
const networkFile = "network.json"

// netStore is where settings are kept: in the data volume, and a copy in META
// for a start that cannot open it.
type netStore struct {
	file string       // "" while locked
	meta vault.Device // nil: there is none
	log  *slog.Logger
	// standing is what the TPM says of META's copy; nil: nobody is asked.
	standing func() vault.Standing
	kept     func() // told after both were written; nil: nobody asks
}

// load reads what was kept last. The file counts while there is one; locked
// it is META's copy, unless the TPM says that it is another than was kept.
// Where no TPM can say, nothing vouches for it but its form (docs/threat-model.md).
// What cannot be read is as if nothing was ever set: DHCP brings the box back.
func (s netStore) load() control.NetworkSettings {
	kept, err := s.read()
	if err != nil {
		s.log.Error("the kept network settings cannot be used; all links are automatic until they are set anew", "err", err)
		return control.NetworkSettings{}
	}
	if s.file != "" && s.meta != nil {
		// A power cut between the two writes, or a change at the console of a
		// locked box: the file counts.
		if err := s.copy(kept); err != nil {
			s.log.Warn("the copy of the network settings for a locked start is old", "err", err)
		}
	}
	return kept
}

func (s netStore) read() (control.NetworkSettings, error) {
	var b []byte
	var err error
	switch {
	case s.file != "":
		if b, err = os.ReadFile(s.file); errors.Is(err, os.ErrNotExist) {
			return control.NetworkSettings{}, nil
		}
	case s.meta != nil:
		b, err = vault.ReadNetwork(s.meta)
	}
	if err != nil {
		return control.NetworkSettings{}, fmt.Errorf("reading the network settings: %w", err)
	}
	if len(b) == 0 && s.file == "" {
		return control.NetworkSettings{}, nil
	}
	if s.file == "" && s.standing != nil && s.standing() == vault.Other {
		return control.NetworkSettings{}, errors.New("those in META are not those that were kept last: the TPM remembers others")
	}
	return netconf.Decode(b)
}

// copy brings META's copy up to date; nothing is written where nothing was
// ever set.
func (s netStore) copy(kept control.NetworkSettings) error {
	if netconf.Equal(kept, control.NetworkSettings{}) {
		if b, err := vault.ReadNetwork(s.meta); err == nil && b == nil {
			return nil
		}
	}
	b, err := netconf.Encode(kept)
	if err != nil {
		return err
	}
	return vault.WriteNetwork(s.meta, b)
}

// keep makes settings those of the next start. The commit point is the rename
// of the file: a cut before it brings what was kept before, one between it and
// the copy is mended by the next load. Locked the copy is all there is, and
// counts until the box opens.
func (s netStore) keep(settings control.NetworkSettings) error {
	b, err := netconf.Encode(settings)
	if err != nil {
		return err
	}
	if s.file == "" && s.meta == nil {
		return errors.New("there is no disk of this box to keep network settings on")
	}
	if s.file == "" {
		return s.copy(settings)
	}
	if err := replaceFile(s.file, b); err != nil {
		return fmt.Errorf("keeping the network settings: %w", err)
	}
	if s.meta != nil {
		if err := s.copy(settings); err != nil {
			s.log.Error("the network settings are kept; a locked start would come up with those of before", "err", err)
		}
	}
	if s.kept != nil {
		s.kept()
	}
	return nil
}

func (b *box) netStore() netStore {
	s := netStore{log: b.log}
	if b.meta != nil {
		s.meta = b.meta
	}
	if b.mounted && b.keys != nil {
		s.file = filepath.Join(dataPath, networkFile)
		s.kept = func() { b.rememberKept(nil) }
	} else if b.keys == nil && b.config.Meta != nil {
		s.standing = func() vault.Standing { return b.judgeKept(context.Background()) }
	}
	return s
}

// learnt is what was learnt on one link besides addresses.
type learnt struct {
	resolvers []netip.Addr
	search    []string
}

// network hands the settings to the monitor.
func (b *box) network() *monitor.Network {
	store := b.netStore()
	return &monitor.Network{
		Kept: store.load(), Apply: b.configure, Keep: store.keep, Names: b.names, Taken: b.machine.Taken,
		Own: func() []control.Link {
			own, err := b.machine.Own()
			if err != nil {
				b.log.Warn("reading the links", "err", err)
			}
			return own
		},
	}
}

// raiseLinks brings the network up as it was kept. Addresses set by hand are
// there with it: a box that has them needs no role to be reached.
func (b *box) raiseLinks(ctx context.Context) error {
	seeded := b.seedNetwork()
	return errors.Join(seeded, b.configure(ctx, b.netStore().load()))
}

// configure applies settings to links and resolvers.
func (b *box) configure(_ context.Context, s control.NetworkSettings) error {
	if b.filtered != nil {
		return fmt.Errorf("the links stay down, because the filter is not in the kernel: %w", b.filtered)
	}
	own, err := b.machine.Own()
	if err != nil {
		return err
	}
	err = b.machine.Configure(s)
	b.mu.Lock()
	b.wanted = netconf.Named(s, own)
	if err == nil { // else what was before may come back, and what was learnt with it
		maps.DeleteFunc(b.learnt, func(link string, _ learnt) bool { return netconf.Mode(b.wanted, link) != netconf.Automatic })
	}
	b.mu.Unlock()
	return errors.Join(err, b.writeResolvers())
}

// applyNetwork sets addresses and resolvers of what was learnt for a link.
func (b *box) applyNetwork(_ context.Context, n control.NetworkApply) error {
	if err := b.machine.Apply(n); err != nil {
		return err
	}
	b.setSource(n.Interface, n.Source)
	b.mu.Lock()
	if b.learnt == nil {
		b.learnt = make(map[string]learnt)
	}
	if len(n.Resolvers)+len(n.Search) == 0 {
		delete(b.learnt, n.Interface)
	} else {
		b.learnt[n.Interface] = learnt{slices.Clone(n.Resolvers), slices.Clone(n.Search)}
	}
	b.mu.Unlock()
	return b.writeResolvers()
}

const mostNames = 8 // host.CheckApply

// names are resolvers and search domains in effect: those that a person set,
// then those learnt, link by link.
func (b *box) names() (resolvers []netip.Addr, search []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	resolvers, search = slices.Clone(b.wanted.Resolvers), slices.Clone(b.wanted.Search)
	for _, link := range slices.Sorted(maps.Keys(b.learnt)) {
		if netconf.Mode(b.wanted, link) != netconf.Automatic {
			continue
		}
		resolvers = merge(resolvers, b.learnt[link].resolvers)
		search = merge(search, b.learnt[link].search)
	}
	return resolvers, search
}

func merge[T comparable](list, more []T) []T {
	for _, v := range more {
		if !slices.Contains(list, v) && len(list) < mostNames {
			list = append(list, v)
		}
	}
	return list
}

// writeResolvers writes them for every process, if they changed.
func (b *box) writeResolvers() error {
	resolvers, search := b.names()
	b.mu.Lock()
	same := slices.Equal(resolvers, b.written.resolvers) && slices.Equal(search, b.written.search)
	b.mu.Unlock()
	if same {
		return nil
	}
	if err := b.machine.SetResolvers(resolvers, search); err != nil {
		return err
	}
	b.mu.Lock()
	b.written = learnt{resolvers, search}
	b.mu.Unlock()
	return nil
}
