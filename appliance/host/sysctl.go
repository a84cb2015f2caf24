package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Sysctl is one kernel setting and why it has this value.
type Sysctl struct {
	Key, Value, Why string
	Must            bool // a kernel without it is refused
}

// Sysctls are the settings of the whole system. They are written once, after
// the modules are loaded and before the first link is up.
func Sysctls() []Sysctl {
	return []Sysctl{
		{"net.ipv4.ip_forward", "0", "the box is an end, never a router", true},
		{"net.ipv4.tcp_syncookies", "1", "a flood of SYN must not lock the owner out", true},
		{"net.ipv4.tcp_max_syn_backlog", "4096", "half-open connections that are kept without a cookie; the kernel gives a small box 128", true},
		{"net.core.somaxconn", "4096", "connections that wait for the gateway", true},
		{"net.core.rmem_max", "4194304", "what a direct way by UDP may have waiting; the kernel's 208 KiB overflow while one process waits for its turn", false},
		{"net.core.wmem_max", "4194304", "the same, on its way out", false},
		{"net.ipv4.tcp_abort_on_overflow", "0", "one of too many may try again", false},
		{"net.ipv4.tcp_rfc1337", "1", "a late RST must not end a connection in TIME-WAIT", false},
		{"net.ipv4.tcp_synack_retries", "3", "half-open connections end in 15 s", false},
		{"net.ipv4.icmp_echo_ignore_broadcasts", "1", "no amplifier", false},
		{"net.ipv4.icmp_ignore_bogus_error_responses", "1", "no log noise from routers", false},
		{"net.ipv4.ip_local_port_range", "32768 60999", "never below 1024", false},
		{"net.ipv4.ip_unprivileged_port_start", "1024", "only PID 1 opens low ports", true},
		{"net.ipv4.ping_group_range", "1 0", "no ICMP sockets for roles", false},
		{"net.core.bpf_jit_harden", "2", "constants in BPF programs are blinded", false},
		{"kernel.unprivileged_bpf_disabled", "1", "roles load no BPF, and this cannot be taken back", true},
		{"kernel.kptr_restrict", "2", "no kernel addresses", true},
		{"kernel.dmesg_restrict", "1", "only PID 1 reads the kernel's log", true},
		{"kernel.perf_event_paranoid", "3", "no performance counters", false},
		{"kernel.kexec_load_disabled", "1", "no other kernel is started from this one", false},
		{"kernel.sysrq", "0", "no keyboard commands to the kernel", false},
		{"kernel.yama.ptrace_scope", "3", "no process looks into another", false},
		{"kernel.randomize_va_space", "2", "full address randomisation", true},
		{"kernel.core_pattern", "|/bin/false", "memory with secrets is never written out", true},
		{"kernel.core_uses_pid", "0", "with the line above: nothing beside the pattern", false},
		{"fs.suid_dumpable", "0", "no dump of a process that changed its uid", true},
		{"kernel.panic", "10", "a dead kernel starts anew", true},
		{"kernel.panic_on_oops", "1", "a damaged kernel does not go on with keys in memory", true},
		{"kernel.hung_task_timeout_secs", "120", "a process stuck in the kernel is in the log", false},
		{"kernel.printk", "3 4 1 3", "the status block is not written over by kernel lines", false},
		{"fs.protected_hardlinks", "1", "against games with other people's files", true},
		{"fs.protected_symlinks", "1", "the same", true},
		{"fs.protected_fifos", "2", "the same", false},
		{"fs.protected_regular", "2", "the same", false},
		{"vm.mmap_min_addr", "65536", "null pointers stay faults", false},
		{"vm.overcommit_memory", "0", "Go reserves more than it uses", false},
		{"user.max_user_namespaces", "0", "roles make no namespaces of their own", false},
		{"dev.tty.ldisc_autoload", "0", "no line disciplines by themselves", false},
	}
}

// LinkSysctls are the settings of one interface, or of "all" and "default".
// They are written for each existing interface as well, because "default" is
// only copied when an interface appears.
func LinkSysctls(link string) []Sysctl {
	v4, v6 := "net.ipv4.conf."+link+".", "net.ipv6.conf."+link+"."
	return []Sysctl{
		{v4 + "rp_filter", "1", "a sender whose answer would leave by another link is not heard (RFC 3704, strict)", true},
		{v4 + "accept_redirects", "0", "nobody on the link bends our routes", true},
		{v4 + "secure_redirects", "0", "not even a router", true},
		{v4 + "send_redirects", "0", "the box is no router", true},
		{v4 + "accept_source_route", "0", "the sender does not choose the way", true},
		{v4 + "arp_ignore", "1", "an address answers on its own link alone", true},
		{v4 + "arp_announce", "2", "and asks from it", false},
		{v4 + "promote_secondaries", "1", "a new lease in the same net outlives the old address", true},
		{v4 + "log_martians", "0", "a flood must not fill the log", false},
		{v4 + "drop_gratuitous_arp", "0", "failover of routers relies on it", false},
		{v6 + "accept_ra", "1", "addresses and routes by router advertisement; 1 means: never while forwarding", true},
		{v6 + "accept_ra_rt_info_max_plen", "0", "default routes only, no route to a chosen net", false},
		{v6 + "accept_ra_rtr_pref", "1", "the preferred of several routers", false},
		{v6 + "autoconf", "1", "SLAAC", true},
		{v6 + "max_addresses", "8", "advertised prefixes cannot fill the table", true},
		{v6 + "use_tempaddr", "0", "a server has one address, and it stays", true},
		{v6 + "accept_redirects", "0", "nobody on the link bends our routes", true},
		{v6 + "accept_source_route", "-1", "no routing header at all", true},
		{v6 + "accept_dad", "1", "a double address is given up, the link is not", false},
		{v6 + "forwarding", "0", "the box is an end", true},
	}
}

// The most that one connection may have on its way: a share of the memory, and
// enough for 1 Gb/s at a round trip of 100 ms.
const (
	windowShare = 32
	leastWindow = 1 << 20
	mostWindow  = 16 << 20
)

// Windows are the settings of TCP's buffers for a machine with so much memory.
// The kernel gives a connection 1/128 of it and 4 MB at most, which is 235 Mb/s
// at 100 ms, whatever a session does; all connections together have tcp_mem.
func Windows(memory uint64) []Sysctl {
	most := min(max(memory/windowShare, leastWindow), mostWindow)
	return []Sysctl{
		{"net.ipv4.tcp_wmem", fmt.Sprintf("4096 16384 %d", most), "a session over a long way is not slowed down by this end", false},
		{"net.ipv4.tcp_rmem", fmt.Sprintf("4096 131072 %d", most), "the same, the other way", false},
	}
}

// SetSysctls writes the settings of the system and of all interfaces.
func (h *Host) SetSysctls() error {
	table := append(Sysctls(), LinkSysctls("all")...)
	table = append(table, LinkSysctls("default")...)
	if m, err := h.Memory(); err != nil {
		h.log.Info("TCP keeps the kernel's windows", "err", err)
	} else {
		table = append(table, Windows(m.Total)...)
	}
	return h.writeSysctls(table)
}

// writeSysctls writes a table to its end and reports everything that failed;
// what this kernel lacks is only logged unless it must be there. A setting
// that already has its value is not written: some can be written once.
func (h *Host) writeSysctls(table []Sysctl) error {
	var errs []error
	for _, s := range table {
		name := sysctlPath(s.Key)
		if old, err := h.readLine(name); err == nil && strings.Join(strings.Fields(old), " ") == s.Value {
			continue
		}
		err := writeExisting(h.path(name), s.Value)
		if err != nil && !s.Must && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid)) {
			h.log.Info("this kernel lacks a setting", "sysctl", s.Key)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("setting %s to %q (%s): %w", s.Key, s.Value, s.Why, err))
		}
	}
	return errors.Join(errs...)
}

// HasSYNCookies says whether the kernel answers a flood of SYNs without keeping
// anything of them; hosted, that is for the machine's owner to set.
func (h *Host) HasSYNCookies() (bool, error) {
	v, err := h.readLine(sysctlPath("net.ipv4.tcp_syncookies"))
	if err != nil {
		return false, fmt.Errorf("asking for SYN cookies: %w", err)
	}
	return strings.TrimSpace(v) != "0", nil
}

// sysctlPath turns dots into folders. Interface names may hold dots (eth0.5),
// so the name between "conf." and the last dot stays whole.
func sysctlPath(key string) string {
	if head, rest, ok := strings.Cut(key, ".conf."); ok {
		if i := strings.LastIndexByte(rest, '.'); i > 0 {
			return filepath.Join("/proc/sys", strings.ReplaceAll(head, ".", "/"), "conf", rest[:i], rest[i+1:])
		}
	}
	return filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
}

func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
