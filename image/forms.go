package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"gatehouse/appliance/volume/installer"
	"gatehouse/firmware/slot"
	"gatehouse/image/bmap"
	"gatehouse/image/disk"
)

// Forms that the disk is handed out in, besides those of disks.
const (
	DiskZstd = Disk + ".zst"
	DiskMap  = Disk + ".bmap"
	DiskISO  = "gatehouse-amd64.iso"
)

// forms writes them. The compression of one processor is the same bytes on each
// machine; that of several is not.
func (b Build) forms(p payload) error {
	raw, err := os.Open(b.result(Disk))
	if err != nil {
		return fmt.Errorf("reading the disk image: %w", err)
	}
	defer raw.Close()
	err = b.write(DiskZstd, func(f *os.File) error {
		z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		if _, err := io.Copy(z, io.NewSectionReader(raw, 0, disk.Size)); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return err
	}
	m, err := b.diskMap(raw)
	if err != nil {
		return err
	}
	err = b.write(DiskMap, func(f *os.File) error {
		_, err := f.Write(m.Encode())
		return err
	})
	if err != nil {
		return err
	}
	return b.medium(p, raw)
}

// medium writes the one that installs: it starts the same loader and the same
// system as the disk that it carries.
func (b Build) medium(p payload, raw io.ReaderAt) error {
	system, err := os.ReadFile(b.result(UKI))
	if err != nil {
		return fmt.Errorf("reading the UKI: %w", err)
	}
	loader, err := p.sign(p.loader)
	if err != nil {
		return fmt.Errorf("the loader: %w", err)
	}
	packed, err := os.Open(b.result(DiskGzip))
	if err != nil {
		return fmt.Errorf("reading the packed disk image: %w", err)
	}
	defer packed.Close()
	info, err := packed.Stat()
	if err != nil {
		return fmt.Errorf("reading the packed disk image: %w", err)
	}
	head := installer.Head{Size: disk.Size, Packed: info.Size()}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(raw, 0, disk.Size)); err != nil {
		return fmt.Errorf("reading the disk image: %w", err)
	}
	sum.Sum(head.Sum[:0])
	id := sha256.Sum256(system)
	return b.write(DiskISO, func(f *os.File) error {
		return disk.WriteISO(f, []disk.File{
			{Path: b.target().LoaderPath(), Content: loader},
			{Path: slot.A.Path(), Content: system},
			{Path: slot.ConfigPath, Content: slot.Config(slot.A)},
		}, packed, head, id[:])
	})
}

// diskMap leaves out only what lies in the slots behind the beginning of each:
// everywhere else on the disk zeros mean something, and what an older box left
// there would be taken for its keys, its files or its system.
func (b Build) diskMap(raw io.ReaderAt) (bmap.Map, error) {
	system, err := os.ReadFile(b.result(UKI))
	if err != nil {
		return bmap.Map{}, fmt.Errorf("reading the UKI: %w", err)
	}
	first, err := locate(raw, system)
	if err != nil {
		return bmap.Map{}, err
	}
	const beginning = 1 << 20
	second := first + disk.SlotSize
	return bmap.Find(raw, disk.Size, []bmap.Range{
		{At: 0, Size: first},
		{At: second, Size: beginning},
		{At: second + disk.SlotSize, Size: disk.Size - second - disk.SlotSize},
	})
}

// locate finds a file that lies in one piece on a disk.
func locate(raw io.ReaderAt, content []byte) (int64, error) {
	const step = 512
	b := make([]byte, step)
	for at := int64(0); at+int64(len(content)) <= disk.Size; at += step {
		if _, err := raw.ReadAt(b, at); err != nil {
			return 0, fmt.Errorf("reading the disk image: %w", err)
		}
		if !bytes.HasPrefix(content, b) {
			continue
		}
		whole := make([]byte, len(content))
		if _, err := raw.ReadAt(whole, at); err != nil {
			return 0, fmt.Errorf("reading the disk image: %w", err)
		}
		if bytes.Equal(whole, content) {
			return at, nil
		}
	}
	return 0, errors.New("the disk image does not hold the system that was built")
}
