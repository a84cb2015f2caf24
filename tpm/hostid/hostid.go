// Package hostid finds identifiers of the machine that are not placeholders.
//
// An identifier is no secret: whoever has the machine, and often whoever has
// an account on it, can read it. A key made from one is obfuscation, and every
// face says so. Serial numbers of disks are left out on purpose: they travel
// with the disk that they would protect.
package hostid

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Source is one identifier and where it came from.
type Source struct {
	Name  string // machine-id, dmi-uuid, …: recorded when a key is bound to it
	Value string // normalised: lower case, no white space at the ends
}

// Digest is what leaves this package's callers' hands: SHA-256 of name and value.
func (s Source) Digest() [32]byte {
	return sha256.Sum256([]byte("gatehouse host id\x00" + s.Name + "\x00" + s.Value))
}

// ID is every usable identifier of a machine, the best first. A name may occur
// more than once (a machine has several network cards).
type ID []Source

// ErrNone means that the machine has no usable identifier.
var ErrNone = errors.New("this machine has no identifier that could be used: no machine id, DMI UUID, serial number or built-in network card")

// maxFile is the longest file that is read; real ones have under 64 bytes.
const maxFile = 4096

// files are looked at in this order. The first three are what KEY2 promises;
// the vendors' files are how NAS systems without DMI tell their serial number.
var files = []struct{ name, path string }{
	{"machine-id", "etc/machine-id"},
	{"dbus-machine-id", "var/lib/dbus/machine-id"},
	{"dmi-uuid", "sys/class/dmi/id/product_uuid"},
	{"device-tree-serial", "proc/device-tree/serial-number"},
	{"device-tree-serial", "sys/firmware/devicetree/base/serial-number"},
	{"synology-serial", "proc/sys/kernel/syno_serial"},
	{"synology-custom-serial", "proc/sys/kernel/syno_custom_serial"},
	{"qnap-serial", "etc/hw_serial"},
	{"asustor-serial", "etc/nas_serial"},
	{"dmi-product-serial", "sys/class/dmi/id/product_serial"},
	{"dmi-board-serial", "sys/class/dmi/id/board_serial"},
	{"dmi-chassis-serial", "sys/class/dmi/id/chassis_serial"},
}

// Read collects the identifiers of the machine whose root file system is fsys.
// One that cannot be read counts as absent: which one a key was bound to is
// recorded, so its absence shows there.
func Read(fsys fs.FS) (ID, error) {
	var id ID
	for _, f := range files {
		value, err := readLine(fsys, f.path)
		if err != nil || reject(f.name, value) != nil {
			continue
		}
		if s := (Source{f.name, value}); !slices.Contains(id, s) {
			id = append(id, s)
		}
	}
	id = append(id, macs(fsys)...)
	if len(id) == 0 {
		return nil, ErrNone
	}
	return id, nil
}

func readLine(fsys fs.FS, name string) (string, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.ToLower(strings.Trim(line, " \t\r\x00")), nil
}

// dummies are values that vendors ship by the thousand. The UUIDs are those
// that inventory and fleet tools warn of; the words are the defaults of the
// SMBIOS code that board makers start from.
var dummies = []string{
	"00020003-0004-0005-0006-000700080009",
	"01020304-0506-0708-090a-0b0c0d0e0f10",
	"03000200-0400-0500-0006-000700080009",
	"03020100-0504-0706-0809-0a0b0c0d0e0f",
	"12345678-1234-5678-90ab-cddeefaabbcc",
	"12345678-1234-1234-1234-123456789abc",
	"fefefefe-fefe-fefe-fefe-fefefefefefe",
	"00112233-4455-6677-8899-aabbccddeeff",
	"10000000-0000-8000-0040-000000000000",
	"4c4c4544-0000-2010-8020-80c04f202020",
	"58585858-5858-5858-5858-585858585858",
	"uninitialized", "default", "default string", "system serial number", "base board serial number",
	"chassis serial number", "to be filled by o.e.m.", "to be filled by oem", "o.e.m.", "oem", "none", "null",
	"n/a", "na", "not specified", "not applicable", "not available", "not settable", "unknown", "invalid",
	"empty", "serial", "sernum", "serial number", "123456789", "1234567890", "0123456789", "0123456789abcdef",
	"123456789abcdef", "12345678", "abcdefgh", "xxxxxxxx", "test", "qemu", "vmware", "virtualbox", "virtual machine",
}

// minLength is the shortest serial number taken. Short ones are counters.
const minLength = 5

// reject says why a value identifies nothing.
func reject(name, value string) error {
	if len(value) < minLength {
		return fmt.Errorf("%s: %q is too short", name, value)
	}
	if slices.Contains(dummies, value) {
		return fmt.Errorf("%s: %q is a placeholder", name, value)
	}
	distinct := map[rune]bool{}
	for _, r := range value {
		if r < ' ' || r > '~' {
			return fmt.Errorf("%s: %q is not printable", name, value)
		}
		if !strings.ContainsRune("-.:_ /", r) {
			distinct[r] = true
		}
	}
	// All 0, all F, and what is nearly so.
	if len(distinct) < 3 {
		return fmt.Errorf("%s: %q repeats itself", name, value)
	}
	switch name {
	case "machine-id", "dbus-machine-id":
		if len(value) != 32 || strings.Trim(value, "0123456789abcdef") != "" {
			return fmt.Errorf("%s: %q is not 32 hexadecimal digits", name, value)
		}
	case "dmi-uuid":
		if len(value) != 36 || strings.Trim(value, "0123456789abcdef-") != "" {
			return fmt.Errorf("%s: %q is not a UUID", name, value)
		}
	}
	return nil
}

// macs lists the addresses burnt into network cards, in ascending order: the
// order of the kernel's names changes between starts. USB adapters move
// between machines and are left out where the link tells.
func macs(fsys fs.FS) []Source {
	const class = "sys/class/net"
	entries, err := fs.ReadDir(fsys, class)
	if err != nil {
		return nil
	}
	var out []Source
	for _, e := range entries {
		dir := path.Join(class, e.Name())
		if _, err := fs.Stat(fsys, path.Join(dir, "device")); err != nil {
			continue // not hardware
		}
		if target, err := fs.ReadLink(fsys, dir); err == nil && strings.Contains(target, "/usb") {
			continue
		}
		// 0 is NET_ADDR_PERM: the driver took it from the card.
		if kind, err := readLine(fsys, path.Join(dir, "addr_assign_type")); err != nil || kind != "0" {
			continue
		}
		mac, err := readLine(fsys, path.Join(dir, "address"))
		if err != nil || rejectMAC(mac) != nil {
			continue
		}
		out = append(out, Source{"network-card", mac})
	}
	slices.SortFunc(out, func(a, b Source) int { return strings.Compare(a.Value, b.Value) })
	return slices.Compact(out)
}

func rejectMAC(mac string) error {
	if len(mac) != 17 || strings.Trim(mac, "0123456789abcdef:") != "" {
		return fmt.Errorf("%q is not an Ethernet address", mac)
	}
	// What QEMU gives to cards that were given none.
	if strings.HasPrefix(mac, "52:54:00:12:34:") {
		return fmt.Errorf("%q is the default of an emulator", mac)
	}
	return reject("network-card", mac)
}
