// Package nft is the one door to the kernel's packet filter: it fills sets, loads a rule set in one transaction and reads both back.
package nft

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// ErrNotInKernel says that this process or this kernel cannot hold the rules:
// no CAP_NET_ADMIN in the network namespace, or no nf_tables. A hosted system
// then enforces what it can itself and every face says "not in the kernel"; on
// a box it is a reason to keep the links down.
var ErrNotInKernel = errors.New("the packet filter is not in the kernel")

// Socket buffers: with the default ones a batch of many rules fails with
// EMSGSIZE and its acknowledgements with ENOBUFS.
const (
	readBuffer  = 16 << 20
	writeBuffer = 16 << 20
)

// transaction makes apply one at a time in this process; PID 1 is the only writer.
var transaction sync.Mutex

// Apply makes the table's chains, rules and counters those of the rule set, in
// one transaction: each packet is judged by the old rules or by the new ones,
// never by none. It reads the table back and fails when it is not what was
// asked. Applied twice it changes nothing; counters that stay keep their counts.
//
// The sets that the rules ask have to be filled before (Fill). Sets that the
// old rules asked and the new ones do not are deleted afterwards. Where the
// kernel cannot sample, the rules are loaded without samples.
func Apply(rs netfilter.RuleSet) error {
	transaction.Lock()
	defer transaction.Unlock()
	return apply(rs)
}

func apply(rs netfilter.RuleSet) error {
	err := load(rs)
	if plain := rs.Unsampled(); errors.Is(err, syscall.ENOENT) && !slices.EqualFunc(plain.Chains, rs.Chains, sameLength) {
		// No nft_log, or no nfnetlink_log behind it: who is refused counts, not who looks on.
		return load(plain)
	}
	return err
}

func sameLength(a, b netfilter.Chain) bool { return len(a.Rules) == len(b.Rules) }

func load(rs netfilter.RuleSet) error {
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	old, err := readTable(conn)
	if err != nil {
		return fmt.Errorf("reading the present packet filter: %w", sentinel(err))
	}
	for _, n := range rs.Sets() {
		if !slices.Contains(old.sets, n.String()) {
			return fmt.Errorf("loading the packet filter: %w", missing{n})
		}
	}
	batch(conn, rs, old)
	loadErr := conn.Flush()
	if loadErr != nil && !errors.Is(loadErr, syscall.ENOBUFS) {
		return fmt.Errorf("loading the packet filter: %w", sentinel(loadErr))
	}
	// ENOBUFS may follow a commit that took effect; what is there decides. The
	// socket of that error may still hold late answers, so a new one reads.
	if err := verify(rs); err != nil {
		return fmt.Errorf("the packet filter read back is not what was loaded: %w", errors.Join(err, loadErr))
	}
	// A power cut before this line leaves sets that no rule asks; so does a
	// failure here. The next Fill deletes them.
	unused := slices.DeleteFunc(old.used, func(name string) bool {
		n, ours := netfilter.ParseSetName(name)
		return ours && slices.Contains(rs.Sets(), n)
	})
	if err := deleteSets(unused); err != nil {
		return fmt.Errorf("the rules are loaded, but what they no longer ask stays until the next change: %w", err)
	}
	return nil
}

// Counters reads all named counters of our table, by name. Without the table
// there are none, and the error is fs.ErrNotExist.
func Counters() ([]control.Counter, error) {
	conn, err := open()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	there, err := tableExists(conn)
	if err != nil {
		return nil, fmt.Errorf("reading the counters of the packet filter: %w", sentinel(err))
	}
	if !there {
		return nil, fmt.Errorf("reading the counters of the packet filter: no table %s: %w", netfilter.Table, fs.ErrNotExist)
	}
	objs, err := conn.GetObjects(table())
	if err != nil {
		return nil, fmt.Errorf("reading the counters of the packet filter: %w", sentinel(err))
	}
	var counters []control.Counter
	for _, o := range objs {
		if c, ok := o.(*nftables.CounterObj); ok {
			counters = append(counters, control.Counter{Name: c.Name, Packets: c.Packets, Bytes: c.Bytes})
		}
	}
	slices.SortFunc(counters, func(a, b control.Counter) int { return cmp.Compare(a.Name, b.Name) })
	return counters, nil
}

// Remove deletes our table: for uninstalling a hosted system, never on exit.
// A table that is not there is no error.
func Remove() error {
	transaction.Lock()
	defer transaction.Unlock()
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	there, err := tableExists(conn)
	if err != nil || !there {
		return sentinel(err)
	}
	conn.DelTable(table())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("removing the packet filter: %w", sentinel(err))
	}
	return nil
}

func open() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(buffers))
	if err != nil {
		return nil, fmt.Errorf("opening the packet filter: %w", sentinel(err))
	}
	return conn, nil
}

// buffers asks for large socket buffers; the kernel caps them for those without
// CAP_NET_ADMIN, who will be refused at the first message anyway.
func buffers(c *netlink.Conn) error {
	return errors.Join(c.SetReadBuffer(readBuffer), c.SetWriteBuffer(writeBuffer))
}

// sentinel marks the errors that mean "never here" rather than "not this time".
func sentinel(err error) error {
	for _, e := range []error{syscall.EPERM, syscall.EACCES, syscall.EPROTONOSUPPORT, syscall.EAFNOSUPPORT, syscall.EOPNOTSUPP, syscall.EINVAL} {
		// EINVAL is what nfnetlink answers for a subsystem that is not there.
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNotInKernel, err)
		}
	}
	return err
}

func table() *nftables.Table {
	return &nftables.Table{Name: netfilter.Table, Family: nftables.TableFamilyINet}
}

func tableExists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == netfilter.Table }), nil
}

// content is what the kernel holds in our table.
type content struct {
	there    bool
	chains   []*nftables.Chain
	counters []string
	sets     []string
	used     []string // sets that rules ask
}

func readTable(conn *nftables.Conn) (content, error) {
	var c content
	var err error
	if c.there, err = tableExists(conn); err != nil || !c.there {
		return c, err
	}
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return c, err
	}
	for _, ch := range all {
		if ch.Table.Name == netfilter.Table {
			ch.Table = table()
			c.chains = append(c.chains, ch)
		}
	}
	objs, err := conn.GetObjects(table())
	if err != nil {
		return c, err
	}
	for _, o := range objs {
		if n, ok := o.(*nftables.CounterObj); ok {
			c.counters = append(c.counters, n.Name)
		}
	}
	sets, err := conn.GetSets(table())
	if err != nil {
		return c, err
	}
	for _, s := range sets {
		c.sets = append(c.sets, s.Name)
	}
	if len(c.sets) > 0 {
		c.used, err = usedSets(conn, c)
	}
	return c, err
}

// usedSets are the sets that rules ask, in the order of the rules.
func usedSets(conn *nftables.Conn, c content) ([]string, error) {
	var used []string
	for _, ch := range c.chains {
		rules, err := conn.GetRules(table(), ch)
		if err != nil {
			return nil, fmt.Errorf("reading the rules of chain %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if l, ok := e.(*expr.Lookup); ok && slices.Contains(c.sets, l.SetName) && !slices.Contains(used, l.SetName) {
					used = append(used, l.SetName)
				}
			}
		}
	}
	return used, nil
}

// batch queues the transaction. Counters and sets live on; so do the chains
// that are there, if they have the hooks that are wanted, else they are made
// anew in the same transaction.
func batch(conn *nftables.Conn, rs netfilter.RuleSet, old content) {
	t := conn.AddTable(table())
	if old.there {
		conn.FlushTable(t)
		if !sameChains(rs, old.chains) {
			for _, c := range old.chains {
				conn.DelChain(c)
			}
		}
	}
	for _, name := range rs.Counters() {
		if !slices.Contains(old.counters, name) {
			conn.AddObj(&nftables.CounterObj{Table: t, Name: name})
		}
	}
	chains := make([]*nftables.Chain, len(rs.Chains))
	for i, c := range rs.Chains {
		chains[i] = conn.AddChain(kernelChain(t, c))
	}
	for i, c := range rs.Chains {
		for _, r := range c.Rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: chains[i], Exprs: expressions(r)})
		}
	}
	for _, name := range old.counters {
		if !slices.Contains(rs.Counters(), name) {
			conn.DeleteObject(&nftables.CounterObj{Table: t, Name: name})
		}
	}
}

func sameChains(rs netfilter.RuleSet, have []*nftables.Chain) bool {
	if len(have) != len(rs.Chains) {
		return false
	}
	for i, c := range rs.Chains {
		if chainProblem(c, have[i]) != nil {
			return false
		}
	}
	return true
}

func kernelChain(t *nftables.Table, c netfilter.Chain) *nftables.Chain {
	k := &nftables.Chain{Name: c.Name, Table: t}
	if c.Hook == "" {
		return k
	}
	policy := nftables.ChainPolicyAccept
	if c.Drop {
		policy = nftables.ChainPolicyDrop
	}
	k.Type, k.Policy = nftables.ChainTypeFilter, &policy
	k.Hooknum = hooks[c.Hook]
	k.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	return k
}

var hooks = map[netfilter.Hook]*nftables.ChainHook{
	netfilter.Prerouting: nftables.ChainHookPrerouting,
	netfilter.Input:      nftables.ChainHookInput,
	netfilter.Forward:    nftables.ChainHookForward,
	netfilter.Output:     nftables.ChainHookOutput,
}

// verify reads the table back, chain by chain and rule by rule.
func verify(rs netfilter.RuleSet) error {
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	have, err := readTable(conn)
	switch {
	case err != nil:
		return err
	case !have.there:
		return fmt.Errorf("no table %s", netfilter.Table)
	case len(have.chains) != len(rs.Chains):
		return fmt.Errorf("%d chains, want %d", len(have.chains), len(rs.Chains))
	}
	want := rs.Counters()
	slices.Sort(want)
	slices.Sort(have.counters)
	if !slices.Equal(want, have.counters) {
		return fmt.Errorf("counters %q, want %q", have.counters, want)
	}
	for _, n := range rs.Sets() {
		if !slices.Contains(have.sets, n.String()) {
			return missing{n}
		}
	}
	for i, c := range rs.Chains {
		if err := chainProblem(c, have.chains[i]); err != nil {
			return err
		}
		if err := rulesProblem(conn, c, have.chains[i]); err != nil {
			return err
		}
	}
	return nil
}

func chainProblem(want netfilter.Chain, have *nftables.Chain) error {
	w := kernelChain(nil, want)
	switch {
	case have.Name != w.Name:
		return fmt.Errorf("chain %s where %s should be", have.Name, w.Name)
	case (have.Hooknum == nil) != (w.Hooknum == nil):
		return fmt.Errorf("chain %s has or lacks a hook", w.Name)
	case w.Hooknum == nil:
		return nil
	case *have.Hooknum != *w.Hooknum || have.Priority == nil || *have.Priority != *w.Priority || have.Type != w.Type:
		return fmt.Errorf("chain %s has another hook, priority or type", w.Name)
	case have.Policy == nil || *have.Policy != *w.Policy:
		return fmt.Errorf("chain %s has another policy", w.Name)
	}
	return nil
}

// rulesProblem compares the expressions of every rule as bytes, so that a rule
// that the kernel or a colliding writer has changed is found, not only counted.
func rulesProblem(conn *nftables.Conn, c netfilter.Chain, have *nftables.Chain) error {
	rules, err := conn.GetRules(table(), have)
	if err != nil {
		return fmt.Errorf("reading the rules of chain %s: %w", c.Name, err)
	}
	if len(rules) != len(c.Rules) {
		return fmt.Errorf("chain %s has %d rules, want %d", c.Name, len(rules), len(c.Rules))
	}
	for i, r := range c.Rules {
		same, err := sameExpressions(expressions(r), rules[i].Exprs)
		if err != nil {
			return fmt.Errorf("rule %d of chain %s (%s): %w", i+1, c.Name, r, err)
		}
		if !same {
			return fmt.Errorf("rule %d of chain %s is not %q", i+1, c.Name, r)
		}
	}
	return nil
}

func sameExpressions(want, have []expr.Any) (bool, error) {
	if len(want) != len(have) {
		return false, nil
	}
	for i := range want {
		w, err := expr.Marshal(byte(nftables.TableFamilyINet), want[i])
		if err != nil {
			return false, err
		}
		h, err := expr.Marshal(byte(nftables.TableFamilyINet), have[i])
		if err != nil {
			return false, err
		}
		if !slices.Equal(w, h) {
			return false, nil
		}
	}
	return true, nil
}
