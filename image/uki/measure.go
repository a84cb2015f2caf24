package uki

import (
	"crypto/sha256"
	"fmt"
	"unicode/utf8"

	"gatehouse/tpm/pcr"
)

// Path is a way in which firmware comes to start a UKI. The registers differ by
// it, so each needs an approval of its own.
type Path string

// The ways of systemd-boot 252.
const (
	Direct       Path = "direct"        // by the firmware itself: an entry Boot####, or as BOOTX64.EFI
	Loader       Path = "loader"        // by systemd-boot, Secure Boot off
	LoaderSecure Path = "loader-secure" // by systemd-boot, Secure Boot on
)

// Paths are all of them.
func Paths() []Path { return []Path{Direct, Loader, LoaderSecure} }

// measured are the sections that the stub of systemd 252 measures, in its
// order, if they are there. .uname is none of them, nor is .pcrsig, which could
// not be approved if it were.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}

// Registers are PCR 11, 12 and 13 after the kernel was started: the system, the
// command line that somebody gave, what was loaded beside the system.
//
//   - PCR 11: for each section the name with a NUL, then the content.
//   - PCR 12: systemd-boot before 255 hands the UKI's own command line over as if
//     somebody had given it, and measures it, UTF-16 with a NUL; the stub takes
//     what was handed over only with Secure Boot off, and measures it again.
//   - PCR 13: nothing lies beside our UKI.
//
// Credentials, extensions or another command line move 12 or 13, and then
// nothing that is approved fits.
func Registers(sections []Section, p Path) (pcr.Values, error) {
	content := make(map[string][]byte)
	for _, s := range sections {
		content[s.Name] = s.Content
	}
	for _, name := range []string{".linux", ".cmdline"} {
		if len(content[name]) == 0 {
			return nil, fmt.Errorf("foreseeing the registers of a UKI: it has no section %s", name)
		}
	}
	var system [pcr.Size]byte
	for _, name := range measured {
		if len(content[name]) == 0 {
			continue
		}
		system = pcr.Extend(system, sha256.Sum256([]byte(name+"\x00")))
		system = pcr.Extend(system, sha256.Sum256(content[name]))
	}
	line, err := wide(content[".cmdline"])
	if err != nil {
		return nil, err
	}
	var given [pcr.Size]byte
	switch p {
	case Direct:
	case LoaderSecure:
		given = pcr.Extend(given, sha256.Sum256(line))
	case Loader:
		given = pcr.Extend(given, sha256.Sum256(line))
		given = pcr.Extend(given, sha256.Sum256(line))
	default:
		return nil, fmt.Errorf("foreseeing the registers of a UKI: it is not known what it is to be started %q", p)
	}
	return pcr.Values{11: system, 12: given, 13: {}}, nil
}

// wide is a command line as systemd-boot hands it over. Lines that it would
// change on the way are refused, not imitated.
func wide(line []byte) ([]byte, error) {
	out := make([]byte, 0, 2*len(line)+2)
	for _, c := range line {
		if c < ' ' || c >= utf8.RuneSelf || c == 0x7f {
			return nil, fmt.Errorf("foreseeing the registers of a UKI: its command line has the byte %#02x: printable ASCII on one line is measured in a way that is known", c)
		}
		out = append(out, c, 0)
	}
	return append(out, 0, 0), nil
}
