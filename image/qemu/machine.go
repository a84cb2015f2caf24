// Package qemu runs one virtual machine with firmware, a TPM and a watchdog, and steers it as a person would: by
// cable, power button and power cut.
package qemu

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gatehouse/image/target"
)

// A Machine says what to start. Its identity (firmware variables, TPM, board
// UUID, network address) is its State folder: started again with the same
// folder it is the same machine, with another it is another one.
type Machine struct {
	Target target.Target // what processor and board it has; the zero value is amd64
	Disk   string        // raw disk image; written to
	Format string        // of the disk: raw when empty, or qcow2
	CD     string        // an image in a CD drive, which firmware tries first
	Stick  string        // a raw image on a USB stick; written to
	State  string        // folder; made when missing
	Memory int           // MB; 0 means 512
	CPUs   int           // 0 means 1

	// Forward opens ports of the guest on this host: guest TCP port → host
	// address. Port 0 on the host picks a free one; see Guest.Addr.
	Forward map[int]string
	Tap     string   // an existing TAP interface in the place of Forward
	TapFile *os.File // the same, opened, which may be in another network namespace

	NoTPM      bool
	SecureBoot *SecureBoot // on, with these certificates, from the first start on; nil: the firmware has none
	NVMe       bool        // the disk is an NVMe one instead of virtio
	SATA       bool        // or a SATA one
	Clock      string      // RTC at start, as 2020-01-01T00:00:00; "" is now
	WriteLog   string      // records every disk write in dm-log-writes format
	QMP        string      // a further control socket for others, by path

	// Direct boot: kernel and initramfs without firmware and without disk
	// loader. Append is the whole kernel command line.
	Kernel, Initramfs, Append string

	Serial io.Writer // receives what the serial port says; may be nil
	Log    *slog.Logger
}

const (
	defaultMemory = 512
	varsFile      = "uefi-vars.fd"
	identityFile  = "machine-id"
	tpmFolder     = "tpm"
	socketTPM     = "tpm.sock"
	socketQMP     = "qmp.sock"
	inheritedFile = 3 // what a program finds the first file at that it is given
)

// Prepare makes the state folder of a machine that was never started, as Start
// does: with fresh variables and an identity.
func (m Machine) Prepare() error {
	_, err := m.prepare()
	return err
}

// prepare makes the state folder complete and returns the machine's identity.
func (m Machine) prepare() (identity [16]byte, err error) {
	if err := os.MkdirAll(filepath.Join(m.State, tpmFolder), 0o700); err != nil {
		return identity, fmt.Errorf("making the machine's state folder: %w", err)
	}
	if m.Kernel == "" {
		if err := m.prepareVars(filepath.Join(m.State, varsFile)); err != nil {
			return identity, err
		}
	}
	return readIdentity(filepath.Join(m.State, identityFile))
}

// prepareVars gives a new machine fresh variables, and the keys of its owner if
// it has any; a machine that was started without them is another one.
func (m Machine) prepareVars(file string) error {
	content, err := os.ReadFile(file)
	switch {
	case err == nil:
		if m.SecureBoot != nil && m.SecureBoot.Platform != nil && !bytes.Contains(content, m.SecureBoot.Programs.Raw) {
			return fmt.Errorf("the machine in %s does not know these keys: choose another folder for its state", m.State)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("reading the machine's UEFI variables: %w", err)
	}
	if content, err = m.board().fresh(); err != nil {
		return err
	}
	if m.SecureBoot != nil {
		if content, err = m.SecureBoot.enrol(content); err != nil {
			return err
		}
	}
	return writeVars(file, content)
}

func readIdentity(file string) (id [16]byte, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := rand.Read(id[:]); err != nil {
			return id, err
		}
		return id, os.WriteFile(file, []byte(hex.EncodeToString(id[:])+"\n"), 0o600)
	}
	if err != nil {
		return id, fmt.Errorf("reading the machine's identity: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("%s does not hold a machine's identity: remove it for a new one", file)
	}
	return [16]byte(raw), nil
}

// arguments is QEMU's command line. sockets is a folder with a short path:
// Unix sockets have room for about 100 bytes.
//
// TCG on purpose: it behaves the same everywhere, KVM is not to be had in
// every container and hangs in some that offer it.
func (m Machine) arguments(identity [16]byte, sockets string, forward map[int]string) []string {
	memory, cpus := m.Memory, m.CPUs
	if memory == 0 {
		memory = defaultMemory
	}
	if cpus == 0 {
		cpus = 1
	}
	clock := m.Clock
	if clock == "" {
		clock = "utc"
	}
	id := hex.EncodeToString(identity[:])
	board := m.board()
	form := board.form(m.SecureBoot != nil)
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", form.machine, "-accel", "tcg", "-cpu", board.cpu,
		"-m", strconv.Itoa(memory), "-smp", strconv.Itoa(cpus), "-rtc", "base=" + clock,
		"-uuid", fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:]),
		"-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial",
		"-qmp", "unix:" + filepath.Join(sockets, socketQMP) + ",server=on,wait=off",
		"-device", "virtio-rng-pci",
		"-device", "i6300esb", "-action", "watchdog=reset",
	}
	args = append(args, board.screen...)
	if m.QMP != "" {
		args = append(args, "-qmp", "unix:"+escape(m.QMP)+",server=on,wait=off")
	}
	if m.Kernel == "" {
		args = append(args,
			"-drive", "if=pflash,format=raw,readonly=on,file="+form.code,
			"-drive", "if=pflash,format=raw,file="+escape(filepath.Join(m.State, varsFile)))
		args = append(args, form.more...)
	} else {
		args = append(args, "-kernel", m.Kernel, "-initrd", m.Initramfs, "-append", m.Append)
	}
	if !m.NoTPM {
		args = append(args,
			"-chardev", "socket,id=tpm,path="+filepath.Join(sockets, socketTPM),
			"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", board.tpm+",tpmdev=tpm0")
	}
	return slices.Concat(args, m.diskArguments(id), m.networkArguments(id, forward))
}

func (m Machine) diskArguments(id string) []string {
	var args []string
	first, order := "", ""
	if m.CD != "" && m.Kernel == "" { // which is first by itself
		first, order = ",bootindex=0", ",bootindex=1" // or the firmware would forget the disk, and not know it at the next start
	}
	if m.CD != "" {
		args = append(args, "-blockdev", "driver=raw,node-name=cd,read-only=on,file.driver=file,file.read-only=on,file.filename="+escape(m.CD))
		args = append(args, m.board().drive...)
		args[len(args)-1] += first
	}
	if m.Stick != "" {
		args = append(args, "-device", "qemu-xhci", "-blockdev", "driver=raw,node-name=stick,file.driver=file,file.filename="+escape(m.Stick),
			"-device", "usb-storage,drive=stick,removable=on")
	}
	if m.Disk == "" {
		return args
	}
	format := m.Format
	if format == "" {
		format = "raw"
	}
	args = append(args, "-blockdev", "driver="+format+",node-name=disk,discard=unmap,file.driver=file,file.filename="+escape(m.Disk))
	drive := "disk"
	if m.WriteLog != "" {
		args = append(args, "-blockdev", "driver=blklogwrites,node-name=logged,file=disk,log.driver=file,log.filename="+escape(m.WriteLog))
		drive = "logged"
	}
	if m.NVMe {
		return append(args, "-device", "nvme,drive="+drive+",serial="+id[:20]+order)
	}
	if m.SATA {
		return append(args, "-device", "ide-hd,drive="+drive+",serial="+id[:20]+order)
	}
	return append(args, "-device", "virtio-blk-pci,drive="+drive+",serial="+id[:20]+order)
}

func (m Machine) networkArguments(id string, forward map[int]string) []string {
	// 52:54:00 is QEMU's own range of locally administered addresses.
	card := fmt.Sprintf("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:%s:%s:%s", id[0:2], id[2:4], id[4:6])
	if m.TapFile != nil {
		return []string{"-netdev", fmt.Sprintf("tap,id=net,fd=%d", inheritedFile), "-device", card}
	}
	if m.Tap != "" {
		return []string{"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + m.Tap, "-device", card}
	}
	user := "user,id=net"
	ports := make([]int, 0, len(forward))
	for port := range forward {
		ports = append(ports, port)
	}
	slices.Sort(ports)
	for _, port := range ports {
		host, hostPort, _ := net.SplitHostPort(forward[port])
		user += fmt.Sprintf(",hostfwd=tcp:%s:%s-:%d", host, hostPort, port)
	}
	return []string{"-netdev", user, "-device", card}
}

// chooseForward turns port 0 into a free port. Another program may take it
// before QEMU does; QEMU then says so and ends.
func chooseForward(want map[int]string) (map[int]string, error) {
	out := make(map[int]string, len(want))
	for port, addr := range want {
		host, hostPort, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("forwarding port %d: %q is not host:port: %w", port, addr, err)
		}
		if net.ParseIP(host) == nil || strings.Contains(host, ":") {
			return nil, fmt.Errorf("forwarding port %d: %q is not an IPv4 address of this host (QEMU forwards no others)", port, host)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("forwarding port %d: %s cannot be opened: %w", port, addr, err)
		}
		if hostPort == "0" {
			addr = l.Addr().String()
		}
		out[port] = addr
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("forwarding port %d: %w", port, err)
		}
	}
	return out, nil
}

// escape doubles commas, which separate QEMU's options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
