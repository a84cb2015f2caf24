package image

import (
	"slices"
	"strings"
)

// A moduleGroup is one reason to carry kernel modules.
type moduleGroup struct {
	why     string
	modules string
	// loaded by init whatever the machine is: nothing in the machine announces
	// a filter or a file system, and the kernel's own requests find no modprobe.
	always bool
}

// moduleGroups is what a NAS, an edge box or a virtual machine may need. The
// TPM drivers (TIS, CRB), the UEFI framebuffer, PS/2 keyboards and the CMOS
// clock are built into Debian's amd64 kernel.
var moduleGroups = []moduleGroup{
	{why: "disks", modules: "nvme ahci ata_piix vmd sd_mod sr_mod usb_storage uas mmc_block sdhci_pci sdhci_acpi rtsx_pci_sdmmc rtsx_pci"},
	{why: "USB controllers", modules: "xhci_pci ehci_pci uhci_hcd ohci_pci"},
	{why: "virtual machines", modules: "virtio_pci virtio_blk virtio_scsi virtio_net virtio_rng virtio_console virtio_mmio"},
	{why: "wired network", modules: "e1000 e1000e igb igc ixgbe r8169 realtek atlantic"},
	{why: "USB network", modules: "cdc_ether cdc_ncm ax88179_178a asix ax88796b r8152"},
	{why: "filter", always: true, modules: "nf_tables nft_ct nft_limit nft_objref nft_log nfnetlink_log nf_conntrack nf_conntrack_netlink"},
	{why: "links over others", always: true, modules: "8021q bonding"},
	{why: "encrypted data volume", always: true, modules: "dm_mod dm_crypt xts essiv cryptd sha256_generic"},
	{why: "ciphers of this processor", modules: "aesni_intel sha256_ssse3 crc32c_intel crct10dif_pclmul ghash_clmulni_intel"},
	{why: "file systems", always: true, modules: "ext4 crc32c_generic vfat fat nls_cp437 nls_ascii nls_iso8859_1 nls_utf8 efivarfs"},
	{why: "crash records in firmware", always: true, modules: "efi_pstore"},
	{why: "watchdogs", modules: "iTCO_wdt lpc_ich i2c_i801 i6300esb sp5100_tco wdat_wdt softdog"},
	{why: "temperatures and fans", modules: "coretemp k10temp nct6775 it87 drivetemp fan"},
	{why: "keyboard and power button", modules: "usbhid hid hid_generic atkbd i8042 evdev button"},
}

func wantedModules() []string {
	var names []string
	for _, g := range moduleGroups {
		names = append(names, strings.Fields(g.modules)...)
	}
	return names
}

// loadList is the content of modules.load: the modules that init loads besides
// those the machine's devices ask for.
func loadList() []byte {
	var b strings.Builder
	for _, g := range moduleGroups {
		if !g.always {
			continue
		}
		b.WriteString("# " + g.why + "\n")
		for _, name := range slices.Sorted(slices.Values(strings.Fields(g.modules))) {
			b.WriteString(name + "\n")
		}
	}
	return []byte(b.String())
}
