package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A mountPoint is one of the kernel's file systems that PID 1 mounts.
type mountPoint struct {
	fsType, path, data string
	flags              uintptr
	mode               os.FileMode // of the folder, if it has to be made
	optional           bool        // kernels and boards without it are fine
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// earlyMounts is the fixed list, in order. /tmp and /dev/shm are not there:
// nothing on the box uses them.
func earlyMounts() []mountPoint {
	return []mountPoint{
		{fsType: "proc", path: "/proc", flags: quiet, mode: 0o555},
		{fsType: "sysfs", path: "/sys", flags: quiet, mode: 0o555},
		{fsType: "devtmpfs", path: "/dev", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0755", mode: 0o755},
		{fsType: "devpts", path: "/dev/pts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0600,ptmxmode=0600", mode: 0o755, optional: true},
		{fsType: "tmpfs", path: "/run", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, data: "mode=0755,size=16m", mode: 0o755},
		{fsType: "securityfs", path: "/sys/kernel/security", flags: quiet, optional: true},
		{fsType: "pstore", path: "/sys/fs/pstore", flags: quiet, optional: true},
		{fsType: "bpf", path: "/sys/fs/bpf", flags: quiet, data: "mode=0711", optional: true}, // the filter role has a folder there
	}
}

// MountEarly mounts the kernel's file systems, once.
func (h *Host) MountEarly() error {
	for _, m := range earlyMounts() {
		if err := h.mountOne(m); err != nil {
			return err
		}
	}
	return nil
}

// MountEFIVariables mounts efivarfs; its module must be loaded, so it comes
// after LoadModules. A machine started without UEFI has none: false.
func (h *Host) MountEFIVariables() (bool, error) {
	if _, err := os.Stat(h.path("/sys/firmware/efi")); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, h.mountOne(mountPoint{fsType: "efivarfs", path: "/sys/firmware/efi/efivars", flags: quiet})
}

func (h *Host) mountOne(m mountPoint) error {
	path := h.path(m.path)
	if m.mode != 0 {
		if err := os.MkdirAll(path, m.mode); err != nil {
			return fmt.Errorf("making the folder to mount %s on: %w", m.fsType, err)
		}
	}
	err := h.calls.Mount(m.fsType, path, m.fsType, m.data, m.flags)
	switch {
	case err == nil, errors.Is(err, unix.EBUSY): // EBUSY: the same is mounted there (the kernel's own devtmpfs)
		return nil
	case m.optional && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)):
		h.log.Info("this kernel has no such file system", "type", m.fsType)
		return nil
	}
	return fmt.Errorf("mounting %s on %s: %w", m.fsType, m.path, err)
}
