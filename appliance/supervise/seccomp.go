package supervise

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// No role has a use for these in any state; one that tries is in other hands
// and ends at once, with a crash report.
var deadly = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "kcmp",
	"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
	"reboot", "swapon", "swapoff", "sethostname", "setdomainname",
	"setns", "acct", "quotactl", "lookup_dcookie",
	"bpf", "userfaultfd", "perf_event_open", "add_key", "request_key", "keyctl",
	"settimeofday", "clock_settime", "adjtimex", "clock_adjtime",
	"open_by_handle_at", "name_to_handle_at", "vhangup", "syslog", "personality",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
}

// These are refused, because a library may try one and go on without it.
var refused = []string{
	"execve", "execveat", "unshare", "pidfd_getfd", "process_madvise",
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"mknodat", "fanotify_init", "migrate_pages", "move_pages", "mbind", "set_mempolicy",
	"remap_file_pages", "pkey_mprotect", "seccomp",
}

// amd64 has these besides.
var (
	deadlyAMD64  = []string{"iopl", "ioperm", "modify_ldt", "uselib", "create_module", "_sysctl"}
	refusedAMD64 = []string{"mknod", "fork", "vfork"}
)

// policy is a list of what is denied, not of what is allowed: the Go runtime
// and SQLite change which calls they use with a release, and a call missing
// from an allowlist shows in the field, not in a test.
func policy(families, allowed []string) (seccomp.Policy, error) {
	numbers := map[string]uint64{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK, "AF_PACKET": unix.AF_PACKET}
	var other seccomp.ArgumentConditions
	for _, f := range families {
		n, ok := numbers[f]
		if !ok {
			return seccomp.Policy{}, fmt.Errorf("there is no socket family %q", f)
		}
		other = append(other, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: n})
	}
	eperm := seccomp.ActionErrno | seccomp.Action(unix.EPERM)
	has := func(arg uint32, bits uint64) seccomp.ArgumentConditions {
		return seccomp.ArgumentConditions{{Argument: arg, Operation: seccomp.BitsSet, Value: bits}}
	}
	kill, deny := deadly, refused
	if runtime.GOARCH == "amd64" {
		kill, deny = append(kill[:len(kill):len(kill)], deadlyAMD64...), append(deny[:len(deny):len(deny)], refusedAMD64...)
	}
	for _, name := range allowed {
		if !slices.Contains(kill, name) {
			return seccomp.Policy{}, fmt.Errorf("the system call %q is not one that roles are killed for", name)
		}
	}
	kill = slices.DeleteFunc(slices.Clone(kill), func(name string) bool { return slices.Contains(allowed, name) })
	return seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionKillProcess, Names: kill},
			{Action: eperm, Names: deny},
			// clone3 hides its flags behind a pointer: the runtime then uses clone.
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
			{Action: eperm, NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "clone", Conditions: has(0, unix.CLONE_NEWUSER)},
				// Memory that can be executed is mapped before we come here.
				{Name: "mmap", Conditions: has(2, unix.PROT_EXEC)},
				{Name: "mprotect", Conditions: has(2, unix.PROT_EXEC)},
				{Name: "ioctl", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.Equal, Value: unix.TIOCSTI}}},
				// TLS in the kernel is there because bonding needs its module. Of one
				// call the library judges one argument right, so this is the option of
				// that number at every level; at no other does a role set one.
				{Name: "setsockopt", Conditions: seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.Equal, Value: unix.TCP_ULP}}},
			}},
			{Action: seccomp.ActionErrno | seccomp.Action(unix.EAFNOSUPPORT), NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "socket", Conditions: other},
				{Name: "socketpair", Conditions: other},
			}},
		},
	}, nil
}

// program is the filter as the kernel takes it. The library lets calls of a
// foreign architecture through to the default action, which here is to allow:
// int 0x80 would go around the whole list. So the architecture comes first.
func program(families, allowed []string) ([]bpf.Instruction, error) {
	p, err := policy(families, allowed)
	if err != nil {
		return nil, err
	}
	insts, err := p.Assemble()
	if err != nil {
		return nil, fmt.Errorf("assembling the system call filter: %w", err)
	}
	ours, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("assembling the system call filter: %w", err)
	}
	const archOffset = 4 // of struct seccomp_data
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(ours.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionKillProcess)},
	}, insts...), nil
}

// restrictCalls sets no_new_privs and the filter on all threads.
func restrictCalls(families, allowed []string) error {
	insts, err := program(families, allowed)
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(insts)
	if err != nil {
		return fmt.Errorf("assembling the system call filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// no_new_privs belongs to a thread; TSYNC gives the others this one's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("installing the system call filter: %w", errno)
	}
	runtime.KeepAlive(filter)
	return nil
}
