package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/u-root/u-root/pkg/efivarfs"
	"github.com/u-root/u-root/pkg/kmodule"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/u-root/u-root/pkg/rtc"
	"golang.org/x/sys/unix"
)

// Calls are the system calls that change the machine. Package hosttest
// replaces them: a test that reboots its machine tells nothing more.
type Calls struct {
	Mount       func(dev, path, fsType, data string, flags uintptr) error
	LoadModule  func(path, parameters string) error
	InMemory    func(path string) (bool, error)
	Sethostname func([]byte) error
	Settime     func(time.Time) error
	ReadRTC     func() (time.Time, error)
	SetRTC      func(time.Time) error
	Getrandom   func(buf []byte, flags int) (int, error)
	Sync        func()
	Reboot      func(cmd int) error
	// Variables are the firmware's; fs.ErrNotExist: there are none.
	Variables func(path string) (Variables, error)
}

// Variables reads and writes firmware variables; u-root's efivarfs is one.
type Variables interface {
	Get(efivarfs.VariableDescriptor) (efivarfs.VariableAttributes, []byte, error)
	Set(efivarfs.VariableDescriptor, efivarfs.VariableAttributes, []byte) error
	Remove(efivarfs.VariableDescriptor) error
	List() ([]efivarfs.VariableDescriptor, error)
}

func kernelCalls() Calls {
	return Calls{
		Mount: func(dev, path, fsType, data string, flags uintptr) error {
			_, err := mount.Mount(dev, path, fsType, data, flags)
			return err
		},
		LoadModule: func(path, parameters string) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			return kmodule.FileInit(f, parameters, 0)
		},
		InMemory:    mount.IsTmpRamfs,
		Sethostname: unix.Sethostname,
		Settime: func(t time.Time) error {
			ts, err := unix.TimeToTimespec(t)
			if err != nil {
				return err
			}
			return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
		},
		ReadRTC: func() (time.Time, error) {
			r, err := rtc.OpenRTC()
			if err != nil {
				return time.Time{}, err
			}
			defer r.Close()
			return r.Read()
		},
		SetRTC: func(t time.Time) error {
			r, err := rtc.OpenRTC()
			if err != nil {
				return err
			}
			defer r.Close()
			return r.Set(t.UTC())
		},
		Getrandom: unix.Getrandom,
		Sync:      unix.Sync,
		Reboot:    unix.Reboot,
		Variables: func(path string) (Variables, error) {
			v, err := efivarfs.NewPath(path)
			if errors.Is(err, efivarfs.ErrNoFS) {
				return nil, fmt.Errorf("%w (no efivarfs is mounted)", fs.ErrNotExist)
			}
			if err != nil {
				return nil, err
			}
			return variables{v, path}, nil
		},
	}
}

// variables are those of u-root, with another Remove.
type variables struct {
	*efivarfs.EFIVarFS
	path string
}

// Remove removes a variable. The kernel has all but the ones that it knows
// immutable, against removal by mistake (its documentation of efivarfs), and
// u-root opens them for writing before it takes that off, which is refused.
func (v variables) Remove(d efivarfs.VariableDescriptor) error {
	f, err := os.Open(filepath.Join(v.path, d.Name+"-"+d.GUID.String()))
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&efivarfs.FS_IMMUTABLE_FL != 0 {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^efivarfs.FS_IMMUTABLE_FL)
	}
	if err != nil {
		return fmt.Errorf("making %s one that can be removed: %w", f.Name(), err)
	}
	return v.EFIVarFS.Remove(d)
}
