package image

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/gzip"

	"gatehouse/firmware/approval"
	"gatehouse/firmware/slot"
	"gatehouse/image/authenticode"
	"gatehouse/image/disk"
	"gatehouse/image/target"
	"gatehouse/image/uki"
)

// CommandLine is what the kernel is started with; the UKI carries it, so the
// firmware measures it and nobody edits it at the boot menu.
//
//   - console: block and log on screen and on the serial port, /dev/console is
//     the latter; consoleblank=0 keeps the block readable on a screen;
//   - gpt: a disk whose second partition table is not at its end is still
//     read, as it is between the steps of growing it at first boot;
//   - panic=10: a box without people restarts; pstore keeps the reason;
//   - loglevel=4: warnings and worse on the console, where the block is;
//   - lockdown=integrity: root cannot change the running kernel; Secure Boot
//     implies it, boxes without Secure Boot get it too;
//   - slab_nomerge: a heap overflow in one kind of object stays in its kind;
//   - rdinit=/init: say so, instead of falling back to a root disk.
func CommandLine(t target.Target) string {
	return "console=tty0 console=" + t.Serial() + " consoleblank=0 gpt panic=10 loglevel=4 lockdown=integrity slab_nomerge rdinit=/init"
}

// unified writes the UKI of the kernel and initramfs just built.
func (b Build) unified(p payload) error {
	archive, err := os.ReadFile(b.result(Initramfs))
	if err != nil {
		return fmt.Errorf("reading the initramfs: %w", err)
	}
	release, ok := p.approver.Signer.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("the UKI: there is no key to approve it with")
	}
	public, err := approval.EncodeKey(&release.PublicKey)
	if err != nil {
		return err
	}
	// The stub of systemd 252 measures its sections in its own order; the
	// kernel comes last because it may grow in memory while it unpacks.
	sections := []uki.Section{
		{Name: ".osrel", Content: osRelease(b.Version)},
		{Name: ".cmdline", Content: []byte(CommandLine(b.target()))},
		{Name: ".uname", Content: []byte(p.release)},
		{Name: ".pcrpkey", Content: public},
		{Name: ".initrd", Content: archive},
		{Name: ".linux", Content: p.kernel},
	}
	signatures, err := approve(release, b.Epoch, sections)
	if err != nil {
		return err
	}
	whole, err := uki.Assemble(p.stub, append([]uki.Section{{Name: ".pcrsig", Content: signatures}}, sections...))
	if err != nil {
		return err
	}
	if whole, err = p.sign(whole); err != nil {
		return fmt.Errorf("the UKI: %w", err)
	}
	return b.write(UKI, func(f *os.File) error {
		_, err := f.Write(whole)
		return err
	})
}

// approve signs the registers that the sections lead to, for each way in which
// firmware may start them.
func approve(key *ecdsa.PrivateKey, epoch uint64, sections []uki.Section) ([]byte, error) {
	var starts []approval.Expected
	for _, p := range uki.Paths() {
		values, err := uki.Registers(sections, p)
		if err != nil {
			return nil, err
		}
		starts = append(starts, approval.Expected{Path: string(p), Registers: values})
	}
	return approval.Make(key, epoch, starts)
}

// sign signs what firmware starts, unless the image itself has firmware refuse it.
func (p payload) sign(program []byte) ([]byte, error) {
	sum, err := authenticode.Digest(program)
	if err != nil {
		return nil, err
	}
	if slices.Contains(p.revoked, sum) {
		return nil, fmt.Errorf("its SHA-256 %x is in the list of what is revoked: a box that keeps this image would never start again", sum)
	}
	return authenticode.Sign(program, p.signer.Certificate, p.signer.Signer)
}

// disks writes the disk image and the forms it is handed out in.
func (b Build) disks(p payload) error {
	whole, err := os.ReadFile(b.result(UKI))
	if err != nil {
		return fmt.Errorf("reading the UKI: %w", err)
	}
	loader, err := p.sign(p.loader)
	if err != nil {
		return fmt.Errorf("the loader: %w", err)
	}
	sum := sha256.Sum256(whole)
	err = b.write(Disk, func(f *os.File) error {
		return disk.Write(f, []disk.File{
			{Path: b.target().LoaderPath(), Content: loader},
			{Path: slot.A.Path(), Content: whole, Reserve: disk.SlotSize},
			{Path: slot.B.Path(), Reserve: disk.SlotSize},
			{Path: slot.ConfigPath, Content: slot.Config(slot.A)},
		}, sum[:])
	})
	if err != nil {
		return err
	}
	raw, err := os.Open(b.result(Disk))
	if err != nil {
		return fmt.Errorf("reading the disk image: %w", err)
	}
	defer raw.Close()
	err = b.write(DiskGzip, func(f *os.File) error {
		z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
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
	return b.write(DiskQcow2, func(f *os.File) error { return disk.WriteQcow2(f, raw, disk.Size) })
}
