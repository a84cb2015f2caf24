package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"
	"github.com/u-root/u-root/pkg/efivarfs"
)

// Vendor GUIDs of the variables that are read: UEFI 2.10, 3.3, and the Boot
// Loader Interface of systemd-boot.
var (
	efiGlobal = uuid.MustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	efiLoader = uuid.MustParse("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	efiImage  = uuid.MustParse("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
)

// SecureBoot is what the firmware says of Secure Boot.
type SecureBoot struct {
	Known     bool // false: no UEFI, or a firmware that does not say
	Enabled   bool // the firmware checks signatures
	SetupMode bool // no platform key is enrolled: anyone can enrol one
}

// SecureBoot reads the firmware's variables; MountEFIVariables comes first.
func (h *Host) SecureBoot() (SecureBoot, error) {
	enabled, err := h.flag("SecureBoot")
	if errors.Is(err, fs.ErrNotExist) {
		return SecureBoot{}, nil
	}
	if err != nil {
		return SecureBoot{}, err
	}
	setup, err := h.flag("SetupMode")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return SecureBoot{}, err
	}
	return SecureBoot{Known: true, Enabled: enabled, SetupMode: setup}, nil
}

func (h *Host) flag(name string) (bool, error) {
	data, err := h.variable(name, efiGlobal)
	if err != nil {
		return false, err
	}
	if len(data) != 1 || data[0] > 1 {
		return false, fmt.Errorf("the firmware variable %s holds % x, not one byte of 0 or 1", name, data)
	}
	return data[0] == 1, nil
}

// LoaderPartition is the GPT partition id of the ESP that the boot loader was
// read from, in lower case; fs.ErrNotExist if the loader left none.
func (h *Host) LoaderPartition() (string, error) {
	data, err := h.variable("LoaderDevicePartUUID", efiLoader)
	if err != nil {
		return "", err
	}
	return parseLoaderPartition(data)
}

func parseLoaderPartition(data []byte) (string, error) {
	text, ok := narrow(data, 64)
	if !ok {
		return "", fmt.Errorf("LoaderDevicePartUUID has %d bytes: not a partition id in UTF-16", len(data))
	}
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return "", fmt.Errorf("LoaderDevicePartUUID holds %q: not a partition id", text)
	}
	return id.String(), nil
}

// narrow reads UTF-16 of at most so many units, without the NULs at its end.
func narrow(data []byte, limit int) (string, bool) {
	if len(data)%2 != 0 || len(data) > 2*limit {
		return "", false
	}
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(data[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00"), true
}

// signed are the attributes of a variable that only who signs may change.
const signed = efivarfs.AttributeNonVolatile | efivarfs.AttributeBootserviceAccess | efivarfs.AttributeRuntimeAccess |
	efivarfs.AttributeTimeBasedAuthenticatedWriteAccess

// keyVendor is whose variable a database of Secure Boot is.
func keyVendor(name string) (uuid.UUID, error) {
	switch name {
	case "PK", "KEK":
		return efiGlobal, nil
	case "db", "dbx":
		return efiImage, nil
	}
	return uuid.UUID{}, fmt.Errorf("%q is not a database of Secure Boot: PK, KEK, db and dbx are", name)
}

// SecureBootKeys is the content of PK, KEK, db or dbx, as UEFI's signature
// lists; nil if there is none.
func (h *Host) SecureBootKeys(name string) ([]byte, error) {
	vendor, err := keyVendor(name)
	if err != nil {
		return nil, err
	}
	data, err := h.variable(name, vendor)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// EnrolSecureBoot writes one database, signed as UEFI's
// EFI_VARIABLE_AUTHENTICATION_2, into a firmware in set-up mode. Writing PK ends
// that mode: it comes last. The write is one call of the firmware's, which has
// done it or not.
func (h *Host) EnrolSecureBoot(name string, change []byte) error {
	vendor, err := keyVendor(name)
	if err != nil {
		return err
	}
	state, err := h.SecureBoot()
	if err != nil {
		return fmt.Errorf("enrolling %s: %w", name, err)
	}
	if !state.SetupMode {
		return fmt.Errorf("enrolling %s: the firmware is not in set-up mode: clear the Secure Boot keys in its set-up screen first", name)
	}
	if err := h.vars.Set(efivarfs.VariableDescriptor{Name: name, GUID: vendor}, signed, change); err != nil {
		return fmt.Errorf("enrolling %s: the firmware did not take it: clear all Secure Boot keys in its set-up screen and try again: %w", name, err)
	}
	return nil
}

// ChangeSecureBoot writes one database of a firmware that has its keys, signed by the
// one that it knows for that. The firmware judges the signature, and that its time is
// later than the last one's.
func (h *Host) ChangeSecureBoot(name string, change []byte) error {
	vendor, err := keyVendor(name)
	if err != nil {
		return err
	}
	if err := h.vars.Set(efivarfs.VariableDescriptor{Name: name, GUID: vendor}, signed, change); err != nil {
		return fmt.Errorf("changing %s: the firmware did not take it: %w", name, err)
	}
	return nil
}

// variable reads one firmware variable. No variables at all (no UEFI, or
// efivarfs not mounted) is fs.ErrNotExist too.
func (h *Host) variable(name string, vendor uuid.UUID) ([]byte, error) {
	v, err := h.variables()
	if err != nil {
		return nil, fmt.Errorf("reading firmware variable %s: %w", name, err)
	}
	_, data, err := v.Get(efivarfs.VariableDescriptor{Name: name, GUID: vendor})
	if err != nil {
		return nil, fmt.Errorf("reading firmware variable %s: %w", name, err)
	}
	return data, nil
}

func (h *Host) variables() (Variables, error) {
	if h.vars == nil {
		if h.calls.Variables == nil {
			return nil, fs.ErrNotExist
		}
		v, err := h.calls.Variables(h.path(efivarfs.DefaultVarFS))
		if err != nil {
			return nil, fmt.Errorf("opening the firmware's variables: %w", err)
		}
		h.vars = v
	}
	return h.vars, nil
}
