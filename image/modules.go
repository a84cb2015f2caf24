package image

import (
	"slices"
	"strings"

	"gatehouse/image/target"
)

// A moduleGroup is one reason to carry kernel modules.
type moduleGroup struct {
	why     string
	modules string
	// loaded by init whatever the machine is: nothing in the machine announces
	// a filter or a file system, and the kernel's own requests find no modprobe.
	always bool
	// for boards alone: Debian's kernels for virtual machines have none of them.
	board bool
}

// moduleGroups is what a NAS, an edge box or a virtual machine may need,
// whatever its processor. What a kernel has built in adds nothing: the UEFI
// framebuffer in all, on amd64 the TPM drivers (TIS, CRB), PS/2 keyboards and the
// CMOS clock, on arm64 CRB, PL011 and PL031.
var moduleGroups = []moduleGroup{
	{why: "disks", modules: "nvme sd_mod sr_mod"},
	{why: "disks of boards", board: true, modules: "ahci usb_storage uas mmc_block sdhci_pci sdhci_acpi rtsx_pci_sdmmc rtsx_pci"},
	{why: "USB controllers", board: true, modules: "xhci_pci ehci_pci ohci_pci"},
	{why: "virtual machines", modules: "virtio_pci virtio_blk virtio_scsi virtio_net virtio_rng virtio_console virtio_mmio"},
	{why: "wired network", board: true, modules: "e1000 e1000e igb igc ixgbe r8169 realtek atlantic"},
	{why: "USB network", board: true, modules: "cdc_ether cdc_ncm ax88179_178a asix ax88796b r8152"},
	{why: "filter", always: true, modules: "nf_tables nft_ct nft_limit nft_objref nft_log nfnetlink_log nf_conntrack nf_conntrack_netlink"},
	{why: "links over others", always: true, modules: "8021q bonding"},
	{why: "encrypted data volume", always: true, modules: "dm_mod dm_crypt xts essiv sha256_generic"},
	{why: "file systems", always: true, modules: "ext4 crc32c_generic vfat fat nls_cp437 nls_ascii nls_iso8859_1 nls_utf8 efivarfs"},
	{why: "crash records in firmware", always: true, modules: "efi_pstore"},
	{why: "watchdogs of all machines", modules: "softdog"},
	{why: "watchdogs of boards", board: true, modules: "i6300esb"},
	{why: "temperatures and fans", board: true, modules: "nct6775 drivetemp fan"},
	{why: "power button", modules: "evdev button"},
	{why: "keyboard", board: true, modules: "usbhid hid hid_generic atkbd"},
}

// processorGroups is what one processor or its boards have besides.
var processorGroups = map[string][]moduleGroup{
	target.AMD64.Arch: {
		{why: "disks of this processor's boards", board: true, modules: "ata_piix vmd"},
		{why: "USB controllers of this processor's boards", board: true, modules: "uhci_hcd"},
		{why: "encrypted data volume on this processor", always: true, modules: "cryptd"},
		{why: "ciphers of this processor", modules: "aesni_intel sha256_ssse3 crc32c_intel crct10dif_pclmul ghash_clmulni_intel"},
		{why: "watchdogs of this processor's boards", board: true, modules: "iTCO_wdt lpc_ich i2c_i801 sp5100_tco wdat_wdt"},
		{why: "temperatures of this processor's boards", board: true, modules: "coretemp k10temp it87"},
		{why: "PS/2", board: true, modules: "i8042"},
	},
	target.ARM64.Arch: {
		// As a device tree and as ACPI of SystemReady boards announce them.
		{why: "TPM behind SPI", board: true, modules: "tpm_tis_spi"},
		{why: "disks of this processor's boards", board: true, modules: "ahci_platform sdhci_iproc sdhci_of_arasan"},
		{why: "USB controllers of this processor's boards", board: true, modules: "xhci_plat_hcd ehci_platform dwc3"},
		{why: "network of this processor's boards", board: true, modules: "genet mvpp2 mvneta macb dwmac_generic smsc911x smsc95xx lan78xx"},
		{why: "network's other half on this processor's boards", board: true, modules: "broadcom marvell marvell10g"},
		{why: "ciphers of this processor", modules: "aes_ce_blk aes_neon_bs sha256_arm64 sha2_ce ghash_ce crct10dif_ce"},
		{why: "watchdogs of this processor's boards", modules: "sbsa_gwdt"},
		{why: "watchdogs of this processor's small boards", board: true, modules: "bcm2835_wdt dw_wdt"},
		{why: "power button of this processor's boards", board: true, modules: "gpio_keys"},
	},
}

// cloudGroups is what the kernel for virtual machines has and the other one lacks.
var cloudGroups = map[string][]moduleGroup{
	target.ARM64.Arch: {
		{why: "TPM of virtual machines", modules: "tpm_tis"},
		{why: "network of data centres", modules: "ena gve"},
	},
}

// groups are those of a target.
func groups(t target.Target) (out []moduleGroup) {
	for _, g := range slices.Concat(moduleGroups, processorGroups[t.Arch]) {
		if !g.board || !t.Virtual() {
			out = append(out, g)
		}
	}
	if t.Virtual() {
		out = append(out, cloudGroups[t.Arch]...)
	}
	return out
}

func wantedModules(t target.Target) []string {
	var names []string
	for _, g := range groups(t) {
		names = append(names, strings.Fields(g.modules)...)
	}
	return names
}

// loadList is the content of modules.load: the modules that init loads besides
// those the machine's devices ask for.
func loadList(t target.Target) []byte {
	var b strings.Builder
	for _, g := range groups(t) {
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
