package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gatehouse/image"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
)

// runOptions are the flags of gatehouse run, a contract with scripts.
type runOptions struct {
	machine     qemu.Machine
	arch        string // by the name of a target
	output      string // of image build
	size        int64  // GiB of a new disk
	http, https string
	serial      string
	code        string
	keys        string // folder of the keys that the machine knows; "": Secure Boot is off
}

func runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run",
		Short: "Run a box in QEMU with UEFI and a TPM",
		Long: `Run one machine in the foreground: QEMU with UEFI, a TPM and a watchdog, from
the image that "gatehouse image build" made. It ends with this command.

The machine is its disk and its state folder; both are made when missing and
used again later. When its console shows an address, the address that reaches
it from here is printed, with the claim code while nobody owns the box.

Ctrl-C or SIGTERM presses the power button, a second one cuts the power.`,
		Example: `  gatehouse run
  gatehouse run --disk box.img --state box --https 127.0.0.1:8443 --serial box.log --memory 256
  gatehouse run --arch arm64-cloud
  gatehouse run --kernel build/vmlinuz --initramfs build/initramfs.cpio.zst`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o, cmd) },
	}
	f := c.Flags()
	f.StringVar(&o.machine.Disk, "disk", "", "disk image `FILE` (default run/disk.img in the output folder)")
	f.StringVar(&o.machine.State, "state", "", "`FOLDER` of the machine's firmware variables and TPM (default run/state in the output folder)")
	f.StringVar(&o.arch, "arch", target.AMD64.Name, "what `TARGET` the image was built for: "+target.Names())
	f.StringVar(&o.output, "output", "build", "`FOLDER` of the built image")
	f.Int64Var(&o.size, "size", 2, "size of a new disk in `GiB`")
	f.StringVar(&o.http, "http", "127.0.0.1:8080", "address on this host for the box's port 80; empty for none")
	f.StringVar(&o.https, "https", "127.0.0.1:8443", "address on this host for the box's port 443; empty for none")
	f.StringVar(&o.machine.Tap, "tap", "", "connect to this TAP interface `NAME` instead of forwarding ports")
	f.StringVar(&o.serial, "serial", "", "write the serial console to `FILE` instead of the terminal")
	f.IntVar(&o.machine.Memory, "memory", 512, "memory in `MB`")
	f.IntVar(&o.machine.CPUs, "cpus", 1, "number of processors")
	f.BoolVar(&o.machine.NoTPM, "no-tpm", false, "a machine without a TPM")
	f.StringVar(&o.keys, "secure-boot", "", "a machine that starts only what the keys of this `FOLDER` have signed (build/keys)")
	f.BoolVar(&o.machine.NVMe, "nvme", false, "attach the disk as NVMe instead of virtio")
	f.StringVar(&o.machine.QMP, "qmp", "", "open a QEMU control socket at `PATH`")
	f.StringVar(&o.code, "code", "", "set this claim `CODE` on the new disk, or read it with file:PATH or -")
	f.StringVar(&o.machine.Kernel, "kernel", "", "start this kernel `FILE` directly, without firmware")
	f.StringVar(&o.machine.Initramfs, "initramfs", "", "initramfs `FILE` for --kernel")
	f.StringVar(&o.machine.Append, "append", "", "kernel command line for --kernel (that of the image when empty)")
	return c
}

// run is one life of a machine.
func run(ctx context.Context, o runOptions, cmd *cobra.Command) error {
	log := progress(cmd.ErrOrStderr())
	if (o.machine.Kernel == "") != (o.machine.Initramfs == "") {
		return fail(exitUsage, "a direct boot needs both --kernel and --initramfs")
	}
	t, err := parseTarget(o.arch)
	if err != nil {
		return err
	}
	o.machine.Target = t
	if o.machine.Append == "" {
		o.machine.Append = image.CommandLine(t)
	}
	if o.keys != "" {
		set, err := keys.Load(o.keys)
		if err != nil {
			return err
		}
		o.machine.SecureBoot = &qemu.SecureBoot{
			Platform: set[keys.Platform].Certificate, Exchange: set[keys.Exchange].Certificate, Programs: set[keys.Programs].Certificate,
		}
	}
	fresh, err := o.prepareDisk(log)
	if err != nil {
		return err
	}
	if o.code != "" {
		if !fresh {
			return fail(exitConflict, "%s is there already: a claim code is set on a new disk only", o.machine.Disk)
		}
		if err := writeClaimCode(o.machine.Disk, o.code, cmd.InOrStdin()); err != nil {
			return errors.Join(err, os.Remove(o.machine.Disk))
		}
	}
	if o.machine.Tap == "" {
		o.machine.Forward = o.forward()
	}
	o.machine.Log = log
	end, err := o.openSerial(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	defer end()
	// The machine outlives the first signal: it gets time to shut down.
	life, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	guest, err := o.machine.Start(life)
	if err != nil {
		return err
	}
	if o.serial == "" {
		restore := typeThrough(guest)
		defer restore()
	}
	go announce(guest, cmd.ErrOrStderr())
	return errors.Join(steer(guest, signals, log), guest.Wait())
}

// shutdownTime is what a box gets to shut down in order: it stops its roles,
// unmounts and tells the TPM, in a few seconds; slow hosts take many times that.
const shutdownTime = 90 * time.Second

// steer turns signals into the power button, then the plug.
func steer(guest *qemu.Guest, signals <-chan os.Signal, log *slog.Logger) error {
	select {
	case <-guest.Ended():
		return nil
	case <-signals:
	}
	log.Info("shutting down; once more cuts the power")
	if err := guest.PowerButton(); err != nil {
		return errors.Join(err, guest.Kill())
	}
	select {
	case <-guest.Ended():
		return nil
	case <-signals:
		log.Info("power cut")
	case <-time.After(shutdownTime):
		log.Warn("it did not shut down, power cut", "waited", shutdownTime)
	}
	return guest.Kill()
}

func (o *runOptions) forward() map[int]string {
	ports := make(map[int]string)
	for port, addr := range map[int]string{80: o.http, 443: o.https} {
		if addr != "" {
			ports[port] = addr
		}
	}
	return ports
}

// openSerial sends the console to a file or to the terminal.
func (o *runOptions) openSerial(terminal io.Writer) (func(), error) {
	if o.serial == "" {
		o.machine.Serial = terminal
		return func() {}, nil
	}
	f, err := os.OpenFile(o.serial, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the file for the serial console: %w", err)
	}
	o.machine.Serial = f
	return func() { _ = f.Close() }, nil
}

// typeThrough gives the keys of a terminal to the console one by one, without
// echo; Ctrl-C stays ours. Without a terminal nothing is typed.
func typeThrough(guest *qemu.Guest) (restore func()) {
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	keys := *before
	keys.Lflag &^= unix.ICANON | unix.ECHO
	keys.Iflag &^= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &keys); err != nil {
		return func() {}
	}
	go func() {
		buffer := make([]byte, 64)
		for {
			n, err := os.Stdin.Read(buffer)
			if err != nil || guest.Type(string(buffer[:n])) != nil {
				return
			}
		}
	}()
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }
}

// stateLine is what the box's console prints when something in it changes.
var stateLine = regexp.MustCompile(`(?m)^gatehouse: (state=[^\r\n]*)\r?\n`)

// announce prints how to reach the box, each time its console says something new.
func announce(guest *qemu.Guest, w io.Writer) {
	for {
		match, err := guest.WaitSerial(stateLine, 24*time.Hour)
		if err != nil {
			select {
			case <-guest.Ended():
				return
			default:
				continue
			}
		}
		if line := announcement(fields(match[1]), guest.Addr(443)); line != "" {
			fmt.Fprintln(w, line)
		}
	}
}

// announcement is one line for a person: where to go and with what code. While
// the box has no address there is nothing to say.
func announcement(box map[string]string, forwarded string) string {
	url := box["url"]
	if url == "" || box["fingerprint"] == "" {
		return ""
	}
	if forwarded != "" {
		host, port, err := net.SplitHostPort(forwarded)
		if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		url = "https://" + net.JoinHostPort(host, port) + "/"
	}
	line := fmt.Sprintf("gatehouse run: %s, open %s", box["state"], url)
	if code := box["code"]; code != "" {
		line += " with code " + code
	}
	return line
}

// fields reads key=value pairs; "-" is no value.
func fields(line string) map[string]string {
	out := make(map[string]string)
	for pair := range strings.FieldsSeq(line) {
		if key, value, ok := strings.Cut(pair, "="); ok && value != "-" {
			out[key] = value
		}
	}
	return out
}
