//go:build !arm64

package boot

// loaderFile is where the boot loader is on the EFI system partition: where
// firmware looks without being told.
const loaderFile = `\EFI\BOOT\BOOTX64.EFI`
