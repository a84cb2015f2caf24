package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"gatehouse/firmware/approval"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// Approved is what the running system says of itself: the files that the stub of
// a UKI puts into the initramfs. nil: the kernel was not started from a UKI.
func (h *Host) Approved() (*approval.System, error) {
	signatures, err := h.readWhole(approval.SignatureFile, approval.MaxSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, keyErr := h.readWhole(approval.KeyFile, approval.MaxSize)
	if keyErr != nil && !errors.Is(keyErr, fs.ErrNotExist) {
		return nil, keyErr
	}
	switch {
	case err != nil && keyErr != nil:
		return nil, nil
	case err != nil || keyErr != nil:
		return nil, fmt.Errorf("reading what this release says of itself: one of two files is missing: %w", errors.Join(err, keyErr))
	}
	s, err := approval.Open(signatures, key)
	if err != nil {
		return nil, fmt.Errorf("reading what this release says of itself: %w", err)
	}
	return &s, nil
}

// EventLog is what the firmware says it measured. fs.ErrNotExist: there is no
// TPM, or its firmware keeps no log.
func (h *Host) EventLog() (*eventlog.Log, error) {
	b, err := h.readWhole("/sys/kernel/security/tpm0/binary_bios_measurements", eventlog.MaxSize)
	if err != nil {
		return nil, err
	}
	return eventlog.Parse(b)
}

// Registers reads registers of the TPM as the kernel shows them. They are good
// for showing and for foreseeing, and decide nothing: between the kernel and
// the TPM there is a bus, on which somebody may answer. fs.ErrNotExist: there is
// no TPM 2.0, or it has no SHA-256 bank.
func (h *Host) Registers(indices ...int) (pcr.Values, error) {
	out := make(pcr.Values)
	for _, i := range indices {
		name := fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", i)
		text, err := h.readLine(name)
		if err != nil {
			return nil, err
		}
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != pcr.Size {
			return nil, fmt.Errorf("%s holds %.80q: not the value of a register", name, text)
		}
		out[i] = [pcr.Size]byte(b)
	}
	return out, nil
}

// readWhole reads a file of at most limit bytes.
func (h *Host) readWhole(name string, limit int64) ([]byte, error) {
	f, err := os.Open(h.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %s: it is longer than %d bytes", name, limit)
	}
	return b, nil
}
