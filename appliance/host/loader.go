package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"unicode/utf16"

	"github.com/u-root/u-root/pkg/efivarfs"

	"gatehouse/firmware/bootentry"
)

// settled are the attributes of a variable that outlives a restart.
const settled = efivarfs.AttributeNonVolatile | efivarfs.AttributeBootserviceAccess | efivarfs.AttributeRuntimeAccess

// Variables of the Boot Loader Interface (systemd's BOOT_LOADER_INTERFACE.md)
// that hold a text. OneShot is the entry of the next start alone; the loader
// removes it before it starts anything. Default is what a key at the boot menu
// sets: it counts more than loader.conf.
const (
	oneShot      = "LoaderEntryOneShot"
	defaultEntry = "LoaderEntryDefault"
	selected     = "LoaderEntrySelected"
	image        = "LoaderImageIdentifier"
)

// maxEntryName is more than the name of an entry or the path of a program needs.
const maxEntryName = 512

// Started is what the firmware and the boot loader say of how this system was started.
type Started struct {
	// Selected is the entry that the loader started, gatehouse-a.efi; "" if there was no
	// loader. It is also there if the entry did not start, and the firmware went on to
	// another.
	Selected string
	// Current is the entry of the firmware's boot menu; nil if it does not say, or has
	// none of this number any more.
	Current []byte
	// Image is the program that the firmware started first, \EFI\BOOT\BOOTX64.EFI.
	Image string
	// OneShot is what was armed and no loader has read; "": nothing.
	OneShot string
}

// Started reads it. Nothing there is no error: a kernel may be started without any of that.
func (h *Host) Started() (s Started, err error) {
	var errs []error
	if s.Selected, err = h.loaderText(selected); err != nil {
		errs = append(errs, err)
	}
	if s.Image, err = h.loaderText(image); err != nil {
		errs = append(errs, err)
	}
	if s.OneShot, err = h.loaderText(oneShot); err != nil {
		errs = append(errs, err)
	}
	data, err := h.variable("BootCurrent", efiGlobal)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		errs = append(errs, err)
	case len(data) != 2:
		errs = append(errs, fmt.Errorf("the firmware variable BootCurrent has %d bytes, not the number of an entry", len(data)))
	default:
		s.Current, err = h.variable(bootentry.Name(binary.LittleEndian.Uint16(data)), efiGlobal)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return s, errors.Join(errs...)
}

// loaderText reads a text of the loader's; "" if there is none.
func (h *Host) loaderText(name string) (string, error) {
	data, err := h.variable(name, efiLoader)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	text, ok := narrow(data, maxEntryName)
	if !ok {
		return "", fmt.Errorf("the firmware variable %s has %d bytes: not a text in UTF-16", name, len(data))
	}
	return text, nil
}

// ArmOneShot has the loader start an entry once, at the next start. What was
// written is read back: there are firmwares that take a variable and forget it.
func (h *Host) ArmOneShot(entry string) error {
	v, err := h.variables()
	if err != nil {
		return fmt.Errorf("having %s started once: the firmware's variables cannot be written: %w", entry, err)
	}
	var data []byte
	for _, u := range append(utf16.Encode([]rune(entry)), 0) {
		data = binary.LittleEndian.AppendUint16(data, u)
	}
	if err := v.Set(efivarfs.VariableDescriptor{Name: oneShot, GUID: efiLoader}, settled, data); err != nil {
		return fmt.Errorf("having %s started once: the firmware did not take it: %w", entry, err)
	}
	got, err := h.loaderText(oneShot)
	if err == nil && got != entry {
		err = fmt.Errorf("the firmware gives back %q", got)
	}
	if err != nil {
		return fmt.Errorf("having %s started once: %w", entry, err)
	}
	return nil
}

// DisarmOneShot takes that back; false: there was none.
func (h *Host) DisarmOneShot() (bool, error) { return h.forget(oneShot) }

// ForgetDefault removes what a key at the boot menu set; false: there was none.
func (h *Host) ForgetDefault() (bool, error) { return h.forget(defaultEntry) }

func (h *Host) forget(name string) (bool, error) {
	v, err := h.variables()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = v.Remove(efivarfs.VariableDescriptor{Name: name, GUID: efiLoader})
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("removing the firmware variable %s: %w", name, err)
	}
	return true, nil
}

// BootMenu reads the firmware's entries and their order. fs.ErrNotExist: this
// machine has no variables.
func (h *Host) BootMenu() (m bootentry.Menu, err error) {
	v, err := h.variables()
	if err != nil {
		return m, fmt.Errorf("reading the firmware's boot menu: %w", err)
	}
	all, err := v.List()
	if err != nil {
		return m, fmt.Errorf("reading the firmware's boot menu: %w", err)
	}
	m.Entries = make(map[uint16][]byte)
	for _, d := range all {
		n, ok := bootentry.Number(d.Name)
		if !ok || d.GUID != efiGlobal {
			continue
		}
		if m.Entries[n], err = h.variable(d.Name, efiGlobal); err != nil {
			return m, err
		}
	}
	data, err := h.variable("BootOrder", efiGlobal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	m.Order, err = bootentry.Order(data)
	return m, err
}

// ChangeBootMenu writes entries, then the order, then removes what is not named
// any more. The entry of the next start alone comes last: it is there by then.
func (h *Host) ChangeBootMenu(c bootentry.Change) error {
	v, err := h.variables()
	if err != nil {
		return fmt.Errorf("changing the firmware's boot menu: %w", err)
	}
	variable := func(name string) efivarfs.VariableDescriptor {
		return efivarfs.VariableDescriptor{Name: name, GUID: efiGlobal}
	}
	for n, b := range c.Write {
		if err := v.Set(variable(bootentry.Name(n)), settled, b); err != nil {
			return fmt.Errorf("writing the entry %s of the firmware's boot menu: %w", bootentry.Name(n), err)
		}
	}
	if c.Order != nil {
		if err := v.Set(variable("BootOrder"), settled, bootentry.EncodeOrder(c.Order)); err != nil {
			return fmt.Errorf("writing the firmware's boot order: %w", err)
		}
	}
	for _, n := range slices.Sorted(slices.Values(c.Remove)) {
		if err := v.Remove(variable(bootentry.Name(n))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the entry %s of the firmware's boot menu: %w", bootentry.Name(n), err)
		}
	}
	if c.Next != nil {
		if err := v.Set(variable("BootNext"), settled, binary.LittleEndian.AppendUint16(nil, *c.Next)); err != nil {
			return fmt.Errorf("having the firmware start %s next: %w", bootentry.Name(*c.Next), err)
		}
	}
	return nil
}
