package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device-mapper's ioctl interface (include/uapi/linux/dm-ioctl.h): one
// buffer holds a header of 312 bytes, then target specifications of 40 bytes
// each followed by their parameters.
const (
	dmHeader    = 312
	dmSpec      = 40
	dmNameMax   = 127
	dmCreate    = 3
	dmRemove    = 4
	dmSuspend   = 6 // without the suspend flag: resume
	dmTableLoad = 9

	dmFlagSecureData = 1 << 15 // the kernel wipes its copies of the buffer
)

// dmCommand is _IOWR(0xfd, number, struct dm_ioctl).
func dmCommand(number uintptr) uintptr { return 3<<30 | dmHeader<<16 | 0xfd<<8 | number }

// A target is one line of a mapping's table that covers all of it.
type target struct {
	kind    string
	sectors uint64
	params  []byte
}

// dmRequest builds the buffer of one command. The caller wipes it.
func dmRequest(name string, flags uint32, t *target) ([]byte, error) {
	if name == "" || len(name) > dmNameMax || bytes.ContainsAny([]byte(name), "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("%q is not a name for a mapping", name)
	}
	size := dmHeader
	if t != nil {
		if len(t.kind) == 0 || len(t.kind) > 15 {
			return nil, fmt.Errorf("%q is not a device-mapper target", t.kind)
		}
		if bytes.IndexByte(t.params, 0) >= 0 {
			return nil, errors.New("target parameters hold a zero byte")
		}
		size += dmSpec + (len(t.params)+1+7)&^7
	}
	buf := make([]byte, size)
	le := binary.NativeEndian
	le.PutUint32(buf[0:], 4) // interface version 4.0.0
	le.PutUint32(buf[12:], uint32(size))
	le.PutUint32(buf[16:], dmHeader) // where the specifications begin
	le.PutUint32(buf[28:], flags)
	copy(buf[48:], name)
	if t != nil {
		le.PutUint32(buf[20:], 1) // one target
		spec := buf[dmHeader:]
		le.PutUint64(spec[0:], 0)
		le.PutUint64(spec[8:], t.sectors)
		le.PutUint32(spec[20:], uint32(size-dmHeader))
		copy(spec[24:], t.kind)
		copy(spec[dmSpec:], t.params)
	}
	return buf, nil
}

// control is /dev/mapper/control.
type mapperControl struct{ *os.File }

func openControl() (mapperControl, error) {
	f, err := os.OpenFile(mapperFolder+"/control", os.O_RDWR, 0)
	if err != nil {
		return mapperControl{}, fmt.Errorf("opening the device-mapper (is the module dm_mod loaded?): %w", err)
	}
	return mapperControl{f}, nil
}

// do runs one command; the answer comes in the same buffer, which is wiped
// after answer has seen it.
func (c mapperControl) do(command uintptr, name string, flags uint32, t *target, answer func([]byte)) error {
	buf, err := dmRequest(name, flags, t)
	if err != nil {
		return err
	}
	defer clear(buf)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.Fd(), dmCommand(command), uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return errno
	}
	if answer != nil {
		answer(buf)
	}
	return nil
}

// mapTarget makes a mapping: create it empty, load its table, resume it. If
// a later step fails the empty mapping is removed again.
func (c mapperControl) mapTarget(name string, t target) (major, minor uint32, err error) {
	err = c.do(dmCreate, name, 0, nil, nil)
	if errors.Is(err, unix.EBUSY) {
		return 0, 0, fmt.Errorf("a mapping called %s is already there", name)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("creating the mapping: %w", err)
	}
	if err = c.do(dmTableLoad, name, dmFlagSecureData, &t, nil); err != nil {
		err = fmt.Errorf("loading its table (is the module dm_crypt loaded, and xts?): %w", err)
	} else if err = c.do(dmSuspend, name, 0, nil, func(buf []byte) {
		major, minor = deviceNumber(binary.NativeEndian.Uint64(buf[40:]))
	}); err != nil {
		err = fmt.Errorf("starting it: %w", err)
	}
	if err != nil {
		return 0, 0, errors.Join(err, c.remove(name))
	}
	return major, minor, nil
}

// deviceNumber takes the kernel's huge encoding apart (new_encode_dev).
func deviceNumber(dev uint64) (major, minor uint32) {
	return uint32(dev>>8) & 0xfff, uint32(dev&0xff) | uint32(dev>>12)&0xfff00
}

func (c mapperControl) remove(name string) error { return c.do(dmRemove, name, 0, nil, nil) }
