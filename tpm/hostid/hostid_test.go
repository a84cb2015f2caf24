package hostid

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

const uuid = "4c4c4544-0042-3310-8051-b4c04f564d32"

func machine(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestKEY2_PlaceholdersAreRejected(t *testing.T) {
	for _, value := range []string{
		"", "\n", "0", "1234", "uninitialized\n", "Default string", "To Be Filled By O.E.M.", "NONE", "Not Specified",
		"00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "FFFFFFFF-FFFF-FFFF-0000-000000000000",
		"03000200-0400-0500-0006-000700080009", "00000000000000000000000000000000", "ffffffffffffffffffffffffffffffff",
		"System Serial Number", "123456789", "xxxxxxxxxxxx", "........", "serial\x01number", "sérial-number-1",
	} {
		for _, f := range files {
			if id, err := Read(machine(map[string]string{f.path: value})); !errors.Is(err, ErrNone) {
				t.Errorf("%s = %q was taken: %v", f.path, value, id)
			}
		}
	}
	for path, value := range map[string]string{
		"etc/machine-id":                   "b08dfa6083e7567a1921a715000001f",   // a digit short
		"var/lib/dbus/machine-id":          "b08dfa6083e7567a1921a715000001fbz", // a letter long
		"sys/class/dmi/id/product_uuid":    "not-a-uuid-but-long-enough-to-be-one",
		"sys/class/dmi/id/product_serial ": "no such file",
	} {
		if id, err := Read(machine(map[string]string{path: value})); !errors.Is(err, ErrNone) {
			t.Errorf("%s = %q was taken: %v", path, value, id)
		}
	}
}

func TestKEY2_OrderOfSources(t *testing.T) {
	id, err := Read(machine(map[string]string{
		"etc/machine-id":                 "b08dfa6083e7567a1921a715000001fb\n",
		"var/lib/dbus/machine-id":        "b08dfa6083e7567a1921a715000001fb\n",
		"sys/class/dmi/id/product_uuid":  strings.ToUpper(uuid) + "\n",
		"proc/device-tree/serial-number": "10000000abcd1234\x00",
		"proc/sys/kernel/syno_serial":    "1780PDN123456\n",
		"etc/hw_serial":                  "Q19AB12345\n",
		"sys/class/dmi/id/board_serial":  "  MB-7731-A \n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := ID{
		{"machine-id", "b08dfa6083e7567a1921a715000001fb"},
		{"dbus-machine-id", "b08dfa6083e7567a1921a715000001fb"},
		{"dmi-uuid", uuid},
		{"device-tree-serial", "10000000abcd1234"},
		{"synology-serial", "1780pdn123456"},
		{"qnap-serial", "q19ab12345"},
		{"dmi-board-serial", "mb-7731-a"},
	}
	if len(id) != len(want) {
		t.Fatalf("Read = %v, want %v", id, want)
	}
	for i := range want {
		if id[i] != want[i] {
			t.Errorf("%d: %v, want %v", i, id[i], want[i])
		}
	}
	if id[0].Digest() == id[1].Digest() {
		t.Error("the same value from two sources has one digest")
	}
}

func TestNetworkCards(t *testing.T) {
	m := machine(map[string]string{
		// A card, its address burnt in; written with the higher one first.
		"sys/devices/pci/a/net/eth0/device":           "",
		"sys/devices/pci/a/net/eth0/address":          "3c:ec:ef:12:34:57\n",
		"sys/devices/pci/a/net/eth0/addr_assign_type": "0\n",
		"sys/devices/pci/b/net/eth1/device":           "",
		"sys/devices/pci/b/net/eth1/address":          "3c:ec:ef:12:34:56\n",
		"sys/devices/pci/b/net/eth1/addr_assign_type": "0\n",
		// An adapter that moves.
		"sys/devices/usb1/net/usb0/device":           "",
		"sys/devices/usb1/net/usb0/address":          "a0:ce:c8:11:22:33\n",
		"sys/devices/usb1/net/usb0/addr_assign_type": "0\n",
		// An address that somebody made up, no hardware, an emulator's default, nothing.
		"sys/class/net/eth2/device": "", "sys/class/net/eth2/address": "3c:ec:ef:00:11:22", "sys/class/net/eth2/addr_assign_type": "3",
		"sys/class/net/veth/address": "3c:ec:ef:00:11:23", "sys/class/net/veth/addr_assign_type": "0",
		"sys/class/net/eth3/device": "", "sys/class/net/eth3/address": "52:54:00:12:34:56", "sys/class/net/eth3/addr_assign_type": "0",
		"sys/class/net/eth4/device": "", "sys/class/net/eth4/address": "00:00:00:00:00:00", "sys/class/net/eth4/addr_assign_type": "0",
	})
	for name, target := range map[string]string{
		"eth0": "../../devices/pci/a/net/eth0", "eth1": "../../devices/pci/b/net/eth1", "usb0": "../../devices/usb1/net/usb0",
	} {
		m["sys/class/net/"+name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
	}
	id, err := Read(m)
	if err != nil || len(id) != 2 || id[0].Value != "3c:ec:ef:12:34:56" || id[1].Value != "3c:ec:ef:12:34:57" || id[0].Name != "network-card" {
		t.Errorf("Read = %v, %v", id, err)
	}
}

func TestReadOfThisMachineDoesNotFailOddly(t *testing.T) {
	id, err := Read(os.DirFS("/"))
	if err != nil && !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	for _, s := range id {
		if s.Value != strings.TrimSpace(s.Value) || len(s.Value) < minLength {
			t.Errorf("%s: %q", s.Name, s.Value)
		}
	}
}
