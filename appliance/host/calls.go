package host

import (
	"os"
	"time"

	"github.com/u-root/u-root/pkg/efivarfs"
	"github.com/u-root/u-root/pkg/kmodule"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/u-root/u-root/pkg/rtc"
	"golang.org/x/sys/unix"
)

// calls are the system calls that change the machine. Tests replace them: a
// test that reboots its machine or loads modules tells nothing more.
type calls struct {
	mount       func(dev, path, fsType, data string, flags uintptr) error
	loadModule  func(path string) error
	inMemory    func(path string) (bool, error)
	sethostname func([]byte) error
	settime     func(time.Time) error
	readRTC     func() (time.Time, error)
	setRTC      func(time.Time) error
	getrandom   func(buf []byte, flags int) (int, error)
	sync        func()
	reboot      func(cmd int) error
}

// variables reads firmware variables; u-root's efivarfs is one.
type variables interface {
	Get(efivarfs.VariableDescriptor) (efivarfs.VariableAttributes, []byte, error)
}

func kernelCalls() calls {
	return calls{
		mount: func(dev, path, fsType, data string, flags uintptr) error {
			_, err := mount.Mount(dev, path, fsType, data, flags)
			return err
		},
		loadModule: func(path string) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			return kmodule.FileInit(f, "", 0)
		},
		inMemory:    mount.IsTmpRamfs,
		sethostname: unix.Sethostname,
		settime: func(t time.Time) error {
			ts, err := unix.TimeToTimespec(t)
			if err != nil {
				return err
			}
			return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
		},
		readRTC: func() (time.Time, error) {
			r, err := rtc.OpenRTC()
			if err != nil {
				return time.Time{}, err
			}
			defer r.Close()
			return r.Read()
		},
		setRTC: func(t time.Time) error {
			r, err := rtc.OpenRTC()
			if err != nil {
				return err
			}
			defer r.Close()
			return r.Set(t.UTC())
		},
		getrandom: unix.Getrandom,
		sync:      unix.Sync,
		reboot:    unix.Reboot,
	}
}
