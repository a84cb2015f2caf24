package boot

// loaderFile is as on the other processors, by the name that UEFI has for this one.
const loaderFile = `\EFI\BOOT\BOOTAA64.EFI`
