package supervise

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// shared is a folder that other uids can reach, as /data is.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatehouse-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// find runs the row of one role as the supervisor does and gives what it
// found of itself. Root is needed: the box has it, and so has the test bed.
func find(t *testing.T, name control.Role, change func(*Spec, string)) (facts, *bed) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test has to run as root: it starts processes under other uids")
	}
	dir := shared(t)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil { // by its mode anyone may read it
		t.Fatal(err)
	}
	var spec Spec
	for _, s := range Table(Paths{Control: "/nowhere", Data: dir}, Options{Privileged: true, Version: "1"}) {
		if s.Role == name {
			spec = s
		}
	}
	spec.Files = nil
	spec.Env = append(spec.Env, "HELPER=facts:"+secret)
	if change != nil {
		change(&spec, dir)
	}
	b := start(t, Config{Specs: []Spec{spec}}, nil)
	b.ready(name, 1)
	var f facts
	for _, l := range b.lines() {
		if j, ok := strings.CutPrefix(l, string(name)+": {"); ok {
			if err := json.Unmarshal([]byte("{"+j), &f); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f, b
}

func TestBOX12_RolesAreConfined(t *testing.T) {
	const rawOnly, none = "0000000000002000", "0000000000000000" // CAP_NET_RAW is 13
	tries := map[string]string{
		"read /proc/self/status": "ok", "read NOFILE": "ok", "read CORE": "ok",
		"write own": "ok", "rename own": "ok", "list own": "ok", "read hosts": "ok",
		"write beside": "EACCES", "read other": "EACCES", "read environ of 1": "EACCES",
		"exec": "EPERM", "unshare": "EPERM", "executable memory": "EPERM",
		"socket AF_INET": "ok", "socket AF_NETLINK": "ok",
		"socket AF_PACKET": "EAFNOSUPPORT", "socket AF_VSOCK": "EAFNOSUPPORT", "socket AF_ALG": "EAFNOSUPPORT",
		"raw socket": "EPERM", "bind tcp": "EACCES", "signal the supervisor": "EPERM",
	}
	for name, row := range map[control.Role]struct {
		uid    int
		caps   string
		noFile uint64
		other  map[string]string
	}{
		control.Network: {uidNetwork, rawOnly, 1024, map[string]string{"socket AF_PACKET": "ok", "raw socket": "ok"}},
		control.Gateway: {uidGateway, none, 16384, nil},
		control.Console: {uidConsole, none, 16384, nil},
		control.Agent:   {uidAgent, none, 4096, nil},
	} {
		t.Run(string(name), func(t *testing.T) {
			f, b := find(t, name, nil)
			if f.UID != row.uid || f.GID != row.uid || len(f.Groups) > 0 {
				t.Errorf("%s: uid %d gid %d groups %v, want %d and no groups", name, f.UID, f.GID, f.Groups, row.uid)
			}
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				if f.Status[set] != row.caps {
					t.Errorf("%s: %s is %s, want %s", name, set, f.Status[set], row.caps)
				}
			}
			if f.Status["NoNewPrivs"] != "1" || f.Status["Seccomp"] != "2" || f.Umask != 0o077 || f.NoFile != row.noFile || f.Core != 0 {
				t.Errorf("%s: no_new_privs %s seccomp %s umask %03o NOFILE %d CORE %d", name, f.Status["NoNewPrivs"], f.Status["Seccomp"], f.Umask, f.NoFile, f.Core)
			}
			for what, want := range tries {
				if o, ok := row.other[what]; ok {
					want = o
				}
				if got := f.Tries[what]; got != want {
					t.Errorf("%s: %s: %s, want %s", name, what, got, want)
				}
			}
			if slices.ContainsFunc(f.Env, func(v string) bool { return strings.HasPrefix(v, envConfine+"=") }) {
				t.Errorf("%s still has %s in its environment", name, envConfine)
			}
			pid := b.status(name).PID
			sid, err := unix.Getsid(pid)
			if err != nil || sid != pid {
				t.Errorf("%s has session %d, not one of its own (%v)", name, sid, err)
			}
			score, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "oom_score_adj"))
			if err != nil || strings.TrimSpace(string(score)) == "0" {
				t.Errorf("%s has the out-of-memory score %q (%v)", name, score, err)
			}
			if _, ok := b.Identify(pid, uint32(row.uid)); !ok {
				t.Errorf("%s is not known by its uid", name)
			}
			if _, ok := b.Identify(pid, 0); ok {
				t.Errorf("%s is known as root", name)
			}
		})
	}
}

func TestConsoleReadsTheAuditLogAndCannotWriteIt(t *testing.T) {
	f, _ := find(t, control.Console, func(s *Spec, dir string) {
		audit := filepath.Join(dir, "audit")
		entry := filepath.Join(audit, "log")
		if err := s.Folders[1].prepare(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(entry, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		for i, e := range s.Env {
			if strings.HasPrefix(e, "HELPER=") {
				s.Env[i] = "HELPER=facts:" + entry
			}
			if strings.HasPrefix(e, control.EnvState) {
				s.Env[i] = control.EnvState + "=" + audit // it tries to write there
			}
		}
	})
	if f.Tries["read other"] != "ok" || f.Tries["write own"] != "EACCES" || f.Tries["list own"] != "ok" {
		t.Errorf("audit: read %s, list %s, write %s", f.Tries["read other"], f.Tries["list own"], f.Tries["write own"])
	}
}

func TestDeadlyCallsEndTheRole(t *testing.T) {
	for _, call := range []string{"ptrace", "mount", "bpf", "kexec", "setuid"} {
		t.Run(call, func(t *testing.T) { // the Reaper of each ends with it
			b := start(t, Config{Specs: []Spec{plain(control.Agent, "deadly:"+call)}}, nil)
			b.wait("it has ended", func() bool { return b.status(control.Agent).LastEnd != "" })
			if got := b.status(control.Agent).LastEnd; got != "killed by SIGSYS" {
				t.Errorf("it ended otherwise: %s", got)
			}
		})
	}
}

func TestConfineRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"nothing":          {"", "started by the supervisor, not by hand"},
		"garbage":          {"{", "reading " + envConfine},
		"another's":        {`{"role":"agent"}`, `is for "agent"`},
		"an unknown limit": {`{"role":"console","limits":{"LUCK":7}}`, `no limit "LUCK"`},
	} {
		t.Setenv(envConfine, test.text)
		mask := unix.Umask(0)
		_, err := Confine(control.Console)
		unix.Umask(mask)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := (Confinement{Read: []string{"relative"}}).encode(); err == nil {
		t.Error("a relative path was taken")
	}
	if _, err := program([]string{"AF_NONE"}, nil); err == nil {
		t.Error("an unknown socket family was taken")
	}
}

func TestFolderRefusesWhatItIsNot(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for _, path := range []string{file, link} {
		if err := (Folder{path, uid, gid, 0o700}).prepare(); err == nil {
			t.Errorf("%s was taken for a folder", path)
		}
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := (Folder{open, uid, gid, 0o750}).prepare(); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(open); err != nil || fi.Mode().Perm() != 0o750 {
			t.Errorf("mode is %v (%v), want 0750", fi.Mode(), err)
		}
	}
}

// call runs the filter on one system call. The kernel reads its data in the
// byte order of the machine, the VM in network order: so it gets that.
func call(t *testing.T, vm *bpf.VM, archID uint32, nr int, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	put := func(at int, v uint32) {
		data[at], data[at+1], data[at+2], data[at+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
	}
	put(0, uint32(nr))
	put(4, archID)
	for i, a := range args {
		put(16+8*i, uint32(a)) // little-endian machine: low word first
		put(20+8*i, uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func TestFilterOfSystemCalls(t *testing.T) {
	insts, err := program([]string{"AF_UNIX", "AF_INET"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(insts)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	id := uint32(ours.ID)
	const allow, kill = uint32(seccomp.ActionAllow), uint32(seccomp.ActionKillProcess)
	errno := func(e unix.Errno) uint32 { return uint32(seccomp.ActionErrno) | uint32(e) }
	kills, denies := slices.Clone(deadly), slices.Clone(refused)
	if runtime.GOARCH == "amd64" {
		kills, denies = append(kills, deadlyAMD64...), append(denies, refusedAMD64...)
	}
	for _, name := range kills {
		if got := call(t, vm, id, ours.SyscallNames[name]); got != kill {
			t.Errorf("%s: %#x, want the end of the process", name, got)
		}
	}
	for _, name := range denies {
		if got := call(t, vm, id, ours.SyscallNames[name]); got != errno(unix.EPERM) {
			t.Errorf("%s: %#x, want EPERM", name, got)
		}
	}
	for _, test := range []struct {
		name string
		nr   int
		args []uint64
		want uint32
	}{
		{"read", unix.SYS_READ, nil, allow},
		{"clone for a thread", unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allow},
		{"clone of users", unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, errno(unix.EPERM)},
		{"clone3", unix.SYS_CLONE3, nil, errno(unix.ENOSYS)},
		{"mmap of data", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allow},
		{"mmap of code", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, errno(unix.EPERM)},
		{"mprotect to code", unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_EXEC}, errno(unix.EPERM)},
		{"TLS in the kernel", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_ULP}, errno(unix.EPERM)},
		{"a group of IPv6", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP}, allow},
		{"a buffer", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_RCVBUF}, allow},
		{"no delay", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_NODELAY}, allow},
		{"typing into a terminal", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, errno(unix.EPERM)},
		{"another ioctl", unix.SYS_IOCTL, []uint64{0, unix.TIOCGWINSZ}, allow},
		{"socket of ours", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM}, allow},
		{"socket of none", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM}, errno(unix.EAFNOSUPPORT)},
		{"socketpair of none", unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC}, errno(unix.EAFNOSUPPORT)},
	} {
		if got := call(t, vm, id, test.nr, test.args...); got != test.want {
			t.Errorf("%s: %#x, want %#x", test.name, got, test.want)
		}
	}
	// int 0x80 on amd64: number 26 there is ptrace, here msync.
	if got := call(t, vm, uint32(arch.I386.ID), 26); got != kill {
		t.Errorf("a call of another architecture: %#x, want the end of the process", got)
	}
	if runtime.GOARCH == "amd64" {
		if got := call(t, vm, id, 0x40000000|unix.SYS_PTRACE); got != errno(unix.ENOSYS) {
			t.Errorf("a call of the x32 ABI: %#x, want ENOSYS", got)
		}
	}
}

func TestFilterNamesExistOnBothArchitectures(t *testing.T) {
	for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		for _, name := range slices.Concat(deadly, refused, []string{"clone", "clone3", "mmap", "mprotect", "ioctl", "socket", "socketpair"}) {
			if _, ok := info.SyscallNames[name]; !ok {
				t.Errorf("%s has no system call %q", info.Name, name)
			}
		}
	}
}
