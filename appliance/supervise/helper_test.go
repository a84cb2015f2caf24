package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// The test binary is also every role: the supervisor starts it anew with
// "gatehoused" as its name and what to do in HELPER.
func TestMain(m *testing.M) {
	if os.Args[0] == "gatehoused" {
		os.Exit(helper(os.Getenv("HELPER")))
	}
	os.Exit(m.Run())
}

func helper(do string) int {
	word, arg, _ := strings.Cut(do, ":")
	switch word {
	case "init":
		return helperInit(arg)
	case "unconfined":
	default:
		said, err := Confine(control.Role(os.Args[1]))
		if err != nil {
			fmt.Println(err)
			return exitNoRestart
		}
		fmt.Println(said)
	}
	switch word {
	case "exit":
		n, _ := strconv.Atoi(arg)
		return n
	case "panic":
		fmt.Println("about to fall")
		panic("fell")
	case "stubborn":
		signal.Ignore(unix.SIGTERM)
	case "flood":
		for i := range 5000 {
			fmt.Println("line", i)
		}
		return exitNoRestart
	case "serve":
		return helperServe()
	case "facts":
		return helperFacts(arg)
	case "deadly":
		return helperDeadly(arg)
	}
	fmt.Println("ready")
	time.Sleep(time.Hour) // the supervisor ends it
	return 3
}

// helperServe answers one connection after the other on the inherited socket.
func helperServe() int {
	env, err := control.Inherit()
	if err != nil {
		fmt.Println(err)
		return exitNoRestart
	}
	ln, err := net.FileListener(env.Files[control.FileHTTPS])
	if err != nil {
		fmt.Println(err)
		return exitNoRestart
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Fprintf(c, "pid %d\n", os.Getpid())
		c.Close()
	}
}

// helperInit is PID 1 of a namespace: it reaps arg orphans.
func helperInit(arg string) int {
	if os.Getpid() != 1 {
		fmt.Println("not PID 1 but", os.Getpid())
		return 1
	}
	r := NewReaper(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	code, out, err := r.Command(ctx, "/bin/sh", "-c", orphanScript, "sh", arg)
	want, _ := strconv.ParseUint(arg, 10, 64)
	for end := time.Now().Add(2 * time.Minute); r.Orphans() < want && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
	// Nothing may be left to wait for, neither living nor dead.
	_, werr := unix.Wait4(-1, nil, unix.WNOHANG, nil)
	fmt.Printf("code %d out %q err %v orphans %d left %v\n", code, out, err, r.Orphans(), werr)
	return 0
}

// facts is what a confined role finds of itself.
type facts struct {
	UID, GID int
	Groups   []int
	Status   map[string]string // of /proc/self/status
	Umask    int
	NoFile   uint64
	Core     uint64
	Env      []string
	Tries    map[string]string // "ok", or the error
}

func helperFacts(arg string) int {
	f := facts{UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Tries: map[string]string{}, Env: os.Environ()}
	f.Groups, _ = os.Getgroups()
	b, err := os.ReadFile("/proc/self/status")
	f.try("read /proc/self/status", err)
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		f.Status[k] = strings.TrimSpace(v)
	}
	f.Umask = unix.Umask(0)
	var l unix.Rlimit
	f.try("read NOFILE", unix.Getrlimit(unix.RLIMIT_NOFILE, &l))
	f.NoFile = l.Max
	f.try("read CORE", unix.Getrlimit(unix.RLIMIT_CORE, &l))
	f.Core = l.Max

	own := os.Getenv(control.EnvState)
	f.try("write own", os.WriteFile(own+"/a", []byte("x"), 0o600))
	f.try("rename own", os.Rename(own+"/a", own+"/b"))
	_, err = os.ReadDir(own)
	f.try("list own", err)
	f.try("write beside", os.WriteFile(own+"/../beside", []byte("x"), 0o600))
	_, err = os.ReadFile(arg)
	f.try("read other", err)
	_, err = os.ReadFile("/etc/hosts")
	f.try("read hosts", err)
	_, err = os.ReadFile("/proc/1/environ")
	f.try("read environ of 1", err)
	_, err = syscall.ForkExec("/bin/true", []string{"true"}, nil)
	f.try("exec", err)
	for name, n := range map[string]int{"AF_INET": unix.AF_INET, "AF_NETLINK": unix.AF_NETLINK, "AF_PACKET": unix.AF_PACKET, "AF_VSOCK": unix.AF_VSOCK, "AF_ALG": unix.AF_ALG} {
		kind := unix.SOCK_DGRAM
		if n == unix.AF_NETLINK || n == unix.AF_PACKET {
			kind = unix.SOCK_RAW
		}
		_, err = unix.Socket(n, kind, 0)
		f.try("socket "+name, err)
	}
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	f.try("raw socket", err)
	f.try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	f.try("executable memory", err)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	f.try("bind tcp", err)
	f.try("signal the supervisor", unix.Kill(os.Getppid(), 0))
	json.NewEncoder(os.Stdout).Encode(f)
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return 0
}

func (f *facts) try(what string, err error) {
	var errno syscall.Errno
	switch {
	case err == nil:
		f.Tries[what] = "ok"
	case errors.As(err, &errno):
		f.Tries[what] = unix.ErrnoName(errno)
	default:
		f.Tries[what] = err.Error()
	}
}

func helperDeadly(call string) int {
	switch call {
	case "ptrace":
		unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	case "mount":
		unix.Mount("none", "/tmp", "tmpfs", 0, "")
	case "bpf":
		unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
	case "kexec":
		unix.RawSyscall(unix.SYS_KEXEC_LOAD, 0, 0, 0)
	case "setuid":
		unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0)
	}
	fmt.Println("survived", call)
	return exitNoRestart
}
