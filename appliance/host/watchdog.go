package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/watchdog"
	"golang.org/x/sys/unix"
)

// A Watchdog resets the machine when nobody kicks it for Timeout. It guards
// PID 1 and the kernel alone: a role that hangs is the supervisor's affair.
type Watchdog struct {
	device  watchdogDevice
	name    string
	timeout time.Duration
	healthy func() bool
	last    watchdog.Status
}

// watchdogDevice is *watchdog.Watchdog of u-root.
type watchdogDevice interface {
	KeepAlive() error
	MagicClose() error
}

// OpenWatchdog opens, and so arms, the first watchdog; nil without an error
// if the machine has none. Each kick asks healthy first; while it says no the
// machine runs towards its reset. Hardware comes before softdog, which shares
// the fate of the kernel that it guards.
func (h *Host) OpenWatchdog(timeout time.Duration, healthy func() bool) (*Watchdog, error) {
	names, err := filepath.Glob(h.path("/dev/watchdog[0-9]*"))
	if err != nil || len(names) == 0 {
		return nil, err
	}
	slices.SortStableFunc(names, func(a, b string) int { return h.softness(a) - h.softness(b) })
	dev, err := watchdog.Open(names[0])
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the watchdog %s: %w", names[0], err)
	}
	w := &Watchdog{device: dev, name: filepath.Base(names[0]), timeout: timeout, healthy: healthy}
	if status, err := dev.BootStatus(); err == nil {
		w.last = status
	}
	w.timeout = setTimeout(dev.File, dev, timeout)
	return w, nil
}

// softness is 1 for the kernel's software watchdog, 0 for all others.
func (h *Host) softness(device string) int {
	identity, err := h.readLine(filepath.Join("/sys/class/watchdog", filepath.Base(device), "identity"))
	if err == nil && identity == "Software Watchdog" {
		return 1
	}
	return 0
}

// setTimeout asks for a timeout and returns the one in force: drivers round,
// and some have a fixed one. (u-root's SetTimeout hands the kernel
// nanoseconds where it expects seconds.)
func setTimeout(f *os.File, dev *watchdog.Watchdog, want time.Duration) time.Duration {
	// A refusal shows in the answer of Timeout.
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(want/time.Second))
	if got, err := dev.Timeout(); err == nil && got >= time.Second {
		return got
	}
	return want
}

// Timeout is the time without a kick after which the machine resets.
func (w *Watchdog) Timeout() time.Duration { return w.timeout }

// String names the task and its device.
func (w *Watchdog) String() string { return "watchdog " + w.name }

// Run kicks the watchdog until ctx ends. It leaves it armed: a shutdown that
// hangs then ends in a reset. Disarm comes when everything is unmounted.
func (w *Watchdog) Run(ctx context.Context) error {
	tick := time.NewTicker(max(w.timeout/4, time.Second/4))
	defer tick.Stop()
	for {
		if w.healthy == nil || w.healthy() {
			if err := w.device.KeepAlive(); err != nil {
				return fmt.Errorf("kicking %s: %w", w.name, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Disarm stops the watchdog (magic close). A driver built to be unstoppable
// goes on and resets the machine Timeout later, if it is still on by then.
func (w *Watchdog) Disarm() error {
	if err := w.device.MagicClose(); err != nil {
		return fmt.Errorf("disarming %s: %w", w.name, err)
	}
	return nil
}

// LastReset names what the hardware says of the previous reset; "" if nothing
// unusual, or if it does not say.
func (w *Watchdog) LastReset() string {
	var causes []string
	for _, c := range []struct {
		bit  watchdog.Status
		text string
	}{
		{watchdog.StatusCardReset, "the watchdog reset the machine"},
		{watchdog.StatusOverheat, "the processor was too hot"},
		{watchdog.StatusFanFault, "a fan failed"},
		{watchdog.StatusPowerUnder, "the supply voltage was too low"},
		{watchdog.StatusPowerOver, "the supply voltage was too high"},
	} {
		if w.last&c.bit != 0 {
			causes = append(causes, c.text)
		}
	}
	return strings.Join(causes, "; ")
}
