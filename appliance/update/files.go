package update

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/durable"
	"gatehouse/firmware"
)

// Files of the folder on the data volume.
const (
	trustFile    = "trust.json"    // what the box goes by; with a MAC
	transferFile = "transfer.json" // the release on its way into the other slot
	beforeFile   = "before.json"   // what was seen of the box before it was started for a trial
	settingsFile = "settings.json"
)

// transfer is a release on its way, as it outlives a restart of the box. The
// bytes before Offset are on the disk; those after it may be.
type transfer struct {
	Manifest []byte    `json:"manifest"` // the signed note
	Version  string    `json:"version"`
	Size     int64     `json:"size"`
	Offset   int64     `json:"offset"`
	Digest   []byte    `json:"digest"` // state of the SHA-256 of what came so far
	Began    time.Time `json:"began"`
	Changed  time.Time `json:"changed"`
	Actor    string    `json:"actor"`
	From     string    `json:"from,omitempty"`
	Done     bool      `json:"done"` // the whole was read back from the disk and is right
	// Restart is when it starts by itself; nil: when asked.
	Restart *time.Time `json:"restart,omitempty"`
	// Later: that is so many minutes after a person said so, and no window's.
	Later bool `json:"later,omitempty"`
	// Again: a person insisted on a version that failed here.
	Again bool `json:"again,omitempty"`
}

// files is the folder. What cannot be read is no reason to do nothing: only the
// trust has to be right.
type files struct {
	dir string
	key [32]byte // of the MAC of the trust
}

func (f files) load(name string, v any) error {
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading %s of the updates: %w", name, err)
	}
	return nil
}

func (f files) store(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of the updates: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(f.dir, name), b, 0o600); err != nil {
		return fmt.Errorf("keeping %s of the updates: %w", name, err)
	}
	return nil
}

func (f files) remove(name string) error {
	err := durable.Remove(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sealed is the trust with its MAC. The data volume is encrypted and not
// authenticated: whoever holds the disk can spoil a block of it, and must not get
// keys of his own believed that way.
type sealed struct {
	Trust firmware.Trust `json:"trust"`
	MAC   []byte         `json:"mac"`
}

var errTrust = errors.New("what this box knows of who signs its releases was changed by something else: take no update until you know why, and erase the box to begin anew")

func (f files) mac(t firmware.Trust) ([]byte, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	m := hmac.New(sha256.New, f.key[:])
	m.Write(b)
	return m.Sum(nil), nil
}

// loadTrust returns fs.ErrNotExist if the box has not kept any yet.
func (f files) loadTrust() (firmware.Trust, error) {
	var s sealed
	if err := f.load(trustFile, &s); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return firmware.Trust{}, err
		}
		return firmware.Trust{}, errors.Join(errTrust, err)
	}
	want, err := f.mac(s.Trust)
	if err != nil {
		return firmware.Trust{}, err
	}
	if !hmac.Equal(want, s.MAC) {
		return firmware.Trust{}, errTrust
	}
	return s.Trust, nil
}

func (f files) storeTrust(t firmware.Trust) error {
	m, err := f.mac(t)
	if err != nil {
		return err
	}
	return f.store(trustFile, sealed{t, m})
}

func (f files) loadTransfer() (*transfer, error) {
	t := new(transfer)
	if err := f.load(transferFile, t); err != nil {
		return nil, err
	}
	return t, nil
}

func (f files) loadSettings() (s control.UpdateSettings, err error) {
	err = f.load(settingsFile, &s)
	return s, err
}
