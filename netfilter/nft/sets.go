package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"

	"gatehouse/netfilter"
)

// missing is a set that rules ask and the kernel does not have.
type missing struct{ netfilter.SetName }

func (m missing) Error() string {
	return fmt.Sprintf("the set %s is not in the kernel: fill it before loading rules that ask it", m.SetName)
}

func (missing) Is(target error) bool { return target == fs.ErrNotExist }

// Install fills the sets and then makes the rules ask them: Fill, then Apply.
// If the filling fails the old rules stay, with the old sets.
func Install(rs netfilter.RuleSet, sets []netfilter.Set) error {
	transaction.Lock()
	defer transaction.Unlock()
	if err := fill(sets); err != nil {
		return err
	}
	return apply(rs)
}

// Fill makes new sets and reads them back. No rule asks them until Apply; until
// then it may be killed at any time: what it leaves, the next Fill deletes,
// with every other set that no rule asks. It refuses names that are in use.
//
// Filling and swapping are two transactions because a transaction that does
// both judges packets with a set that is not full on some kernels, and loses
// more the larger the set is.
func Fill(sets []netfilter.Set) error {
	transaction.Lock()
	defer transaction.Unlock()
	return fill(sets)
}

func fill(sets []netfilter.Set) error {
	if err := prepare(sets); err != nil {
		return fmt.Errorf("filling the sets of the packet filter: %w", err)
	}
	err := fillElements(sets)
	if err == nil {
		err = readBack(sets)
	}
	if err == nil {
		return nil
	}
	names := make([]string, len(sets))
	for i, s := range sets {
		names[i] = s.String()
	}
	return fmt.Errorf("filling the sets of the packet filter: %w", errors.Join(err, deleteSets(names)))
}

// prepare deletes every set that no rule asks and makes the new ones, empty.
func prepare(sets []netfilter.Set) error {
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	old, err := readTable(conn)
	if err != nil {
		return fmt.Errorf("reading what is there: %w", sentinel(err))
	}
	for _, s := range sets {
		if slices.Contains(old.used, s.String()) {
			return fmt.Errorf("rules ask the set %s already: take a generation that was not used", s.SetName)
		}
	}
	orphans := slices.DeleteFunc(old.sets, func(name string) bool { return slices.Contains(old.used, name) })
	if err := deleteSets(orphans); err != nil {
		return err
	}
	if len(sets) == 0 {
		return nil
	}
	t := conn.AddTable(table())
	for _, s := range sets {
		key := nftables.TypeIPAddr
		if s.V6 {
			key = nftables.TypeIP6Addr
		}
		if err := conn.AddSet(&nftables.Set{Table: t, Name: s.String(), Interval: true, KeyType: key}, nil); err != nil {
			return fmt.Errorf("making the set %s: %w", s.SetName, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("making %d sets: %w", len(sets), sentinel(err))
	}
	return nil
}

// deleteSets deletes those of our sets that are there, in one transaction.
func deleteSets(names []string) error {
	if len(names) == 0 {
		return nil
	}
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	there, err := conn.GetSets(table())
	if err != nil {
		return fmt.Errorf("reading the sets: %w", sentinel(err))
	}
	t, n := table(), 0
	for _, s := range there {
		if slices.Contains(names, s.Name) {
			conn.DelSet(&nftables.Set{Table: t, Name: s.Name})
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting %d sets: %w", n, sentinel(err))
	}
	return nil
}

// InForce is what the kernel's rules ask now: the lists in order and their
// generation, so that a program that starts anew goes on from there. Names is
// empty when no set is asked; whether that means all or nobody, this cannot say.
func InForce() (netfilter.Lists, error) {
	var lists netfilter.Lists
	conn, err := open()
	if err != nil {
		return lists, err
	}
	defer conn.CloseLasting()
	have, err := readTable(conn)
	if err != nil {
		return lists, fmt.Errorf("reading the lists in the packet filter: %w", sentinel(err))
	}
	for _, name := range have.used {
		n, ours := netfilter.ParseSetName(name)
		if !ours {
			continue
		}
		lists.Generation = max(lists.Generation, n.Generation)
		if !slices.Contains(lists.Names, n.List) {
			lists.Names = append(lists.Names, n.List)
		}
	}
	return lists, nil
}
