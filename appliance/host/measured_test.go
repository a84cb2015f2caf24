package host_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"gatehouse/appliance/host/hosttest"
	"gatehouse/firmware/approval"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

const logFile = "/sys/kernel/security/tpm0/binary_bios_measurements"

func TestKEY10_ReleaseIsReadStrictly(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signatures, err := approval.Make(key, 5, []approval.Expected{{Path: "direct", Registers: pcr.Values{11: {1}, 12: {}, 13: {}}}})
	if err != nil {
		t.Fatal(err)
	}
	public, err := approval.EncodeKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const sig, pub = "/" + approval.SignatureFile, "/" + approval.KeyFile
	for name, files := range map[string]map[string]string{
		"no key":        {sig: string(signatures)},
		"no signatures": {pub: string(public)},
		"empty":         {sig: "", pub: ""},
		"another epoch": {sig: strings.Replace(string(signatures), `"epoch": 5`, `"epoch": 6`, 1), pub: string(public)},
		"endless":       {sig: string(signatures) + strings.Repeat(" ", approval.MaxSize), pub: string(public)},
	} {
		if s, err := hosttest.New(t, files).Approved(); err == nil || s != nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s, err := hosttest.New(t, nil).Approved(); err != nil || s != nil {
		t.Errorf("a kernel that was started alone: %+v, %v", s, err)
	}
	s, err := hosttest.New(t, map[string]string{sig: string(signatures), pub: string(public)}).Approved()
	if err != nil || s.Epoch != 5 || !s.Key.Equal(&key.PublicKey) || len(s.Approvals()) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestRegistersAndLog(t *testing.T) {
	const seven = "/sys/class/tpm/tpm0/pcr-sha256/7"
	for _, bad := range []string{"", "00", strings.Repeat("0", 63), strings.Repeat("0", 66), strings.Repeat("x", 64)} {
		if v, err := hosttest.New(t, map[string]string{seven: bad + "\n"}).Registers(7); err == nil {
			t.Errorf("%q: %v", bad, v)
		}
	}
	none := hosttest.New(t, nil)
	if _, err := none.Registers(7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no TPM: %v", err)
	}
	if _, err := none.EventLog(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	if _, err := hosttest.New(t, map[string]string{logFile: "x"}).EventLog(); !errors.Is(err, eventlog.ErrFormat) {
		t.Errorf("a log that is none: %v", err)
	}
	if _, err := hosttest.New(t, map[string]string{logFile: strings.Repeat("x", eventlog.MaxSize+1)}).EventLog(); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("a log without end: %v", err)
	}
	raw, err := os.ReadFile("../../tpm/eventlog/testdata/ovmf-setup.log")
	if err != nil {
		t.Fatal(err)
	}
	m := hosttest.New(t, map[string]string{logFile: string(raw), seven: "65CAF8DD1E0EA7A6347B635D2B379C93B9A1351EDC2AFC3ECDA700E534EB3068\n"})
	now, err := m.Registers(7)
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.EventLog()
	if err != nil || l.Differ(now, 7) != nil {
		t.Errorf("the log does not lead to PCR 7 of the same start: %v", err)
	}
}
