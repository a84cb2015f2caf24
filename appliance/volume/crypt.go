package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// KeySize is the length of a volume key: two AES-256 keys for XTS.
const KeySize = 64

// cryptSector is the unit that dm-crypt encrypts. It is part of the format: a
// volume written with one cannot be read with another, so it is the same for
// every disk. 4096 is ext4's block, and costs an eighth of the work of 512. A
// power cut may tear it on disks with 512-byte sectors; XTS decrypts each 16
// bytes for themselves, so the tear looks as it would without encryption:
// some old bytes, some new, which ext4's journal is made for.
const cryptSector = 4096

// OpenCrypt maps dev, encrypted under key, as /dev/mapper/NAME and returns
// that path. The mapping is dm-crypt in plain mode, aes-xts-plain64: slots and
// headers are the vault's, in META. The key is wiped from every buffer that is
// made here; the caller's stays the caller's.
func OpenCrypt(dev, name string, key []byte) (string, error) {
	sectors, number, err := blockDevice(dev)
	if err != nil {
		return "", fmt.Errorf("opening the encrypted volume on %s: %w", dev, err)
	}
	params, err := cryptParameters(key, number, sectors)
	if err != nil {
		return "", err
	}
	defer clear(params)
	c, err := openControl()
	if err != nil {
		return "", fmt.Errorf("opening the encrypted volume on %s: %w", dev, err)
	}
	defer c.Close()
	major, minor, err := c.mapTarget(name, target{kind: "crypt", sectors: sectors, params: params})
	if err != nil {
		return "", fmt.Errorf("mapping %s as %s: %w", dev, name, err)
	}
	return mapperNode(name, major, minor)
}

// CloseCrypt removes a mapping; the kernel wipes its key. What is mounted or
// open keeps it busy: that is tried for two seconds, then an error.
func CloseCrypt(name string) error {
	c, err := openControl()
	if err != nil {
		return fmt.Errorf("closing the encrypted volume %s: %w", name, err)
	}
	defer c.Close()
	for range 20 {
		if err = c.remove(name); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: there is none
		return fmt.Errorf("closing the encrypted volume %s: %w", name, err)
	}
	if err := os.Remove(filepath.Join(mapperFolder, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("closing the encrypted volume %s: %w", name, err)
	}
	return nil
}

const mapperFolder = "/dev/mapper"

// mapperNode makes /dev/mapper/NAME, which udev would make elsewhere.
func mapperNode(name string, major, minor uint32) (string, error) {
	path := filepath.Join(mapperFolder, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("replacing %s: %w", path, err)
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return "", fmt.Errorf("making %s: %w", path, err)
	}
	return path, nil
}

// blockDevice gives the size in 512-byte sectors and the number "MAJOR:MINOR".
func blockDevice(dev string) (sectors uint64, number string, err error) {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, "", fmt.Errorf("%s is not a block device", dev)
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return 0, "", err
	}
	return uint64(size) / 512, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// cryptParameters builds the table line of the crypt target (kernel:
// Documentation/admin-guide/device-mapper/dm-crypt.rst):
//
//	CIPHER KEY IV_OFFSET DEVICE OFFSET COUNT OPTIONS
//
// Discards are not let through. They would tell whoever holds the disk which
// blocks are in use, and the volume writes little: flash lives without them.
func cryptParameters(key []byte, device string, sectors uint64) ([]byte, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("the volume key has %d bytes, not %d", len(key), KeySize)
	}
	if sectors == 0 || sectors%(cryptSector/512) != 0 {
		return nil, fmt.Errorf("the data partition has %d sectors: not a whole number of %d bytes", sectors, cryptSector)
	}
	tail := fmt.Sprintf(" 0 %s 0 2 sector_size:%d iv_large_sectors", device, cryptSector)
	const head = "aes-xts-plain64 "
	const hexDigits = "0123456789abcdef"
	// One allocation of the final size: growing would leave the key behind.
	out := make([]byte, 0, len(head)+2*KeySize+len(tail))
	out = append(out, head...)
	for _, b := range key {
		out = append(out, hexDigits[b>>4], hexDigits[b&15])
	}
	return append(out, tail...), nil
}
