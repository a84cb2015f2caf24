package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

var policy = pcr.Select(7, 15)

// sample is how far apart the places are that something is changed at: all of
// them in the long tests.
func sample(few int) int {
	if os.Getenv("GATEHOUSE_SOAK") == "1" {
		return 1
	}
	return few
}

type sealed struct {
	root   tpm.Root
	blob   tpm.Blob
	secret []byte
	values pcr.Values
}

func seal(t testing.TB, dev *tpm.TPM) sealed {
	t.Helper()
	root, err := dev.Root()
	if err != nil {
		t.Fatalf("Root: %v", err)
	}
	values, err := dev.PCRs(root, policy)
	if err != nil {
		t.Fatalf("PCRs: %v", err)
	}
	x := sealed{root: root, secret: bytes.Repeat([]byte{0x5A}, 32), values: values}
	if x.blob, err = dev.Seal(root, x.secret, values); err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return x
}

func (x sealed) unseal(dev *tpm.TPM) ([]byte, error) { return dev.Unseal(x.root, x.blob, policy) }

func TestKEY1_SealOpensUnderItsPolicyAlone(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	if got, err := x.unseal(s.TPM()); err != nil || !bytes.Equal(got, x.secret) {
		t.Fatalf("Unseal = %x, %v", got, err)
	}
	if err := s.TPM().Extend(x.root, 15, sha256.Sum256([]byte("cap"))); err != nil {
		t.Fatal(err)
	}
	if _, err := x.unseal(s.TPM()); !errors.Is(err, tpm.ErrPolicy) {
		t.Errorf("with PCR 15 extended: %v, want ErrPolicy", err)
	}
	s.PowerCut(t)
	if _, err := x.unseal(s.TPM()); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	s.Firmware = "secure boot on"
	s.PowerCut(t)
	if _, err := x.unseal(s.TPM()); !errors.Is(err, tpm.ErrPolicy) {
		t.Errorf("with PCR 7 changed: %v, want ErrPolicy", err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

func TestKEY1_SecretDoesNotCrossTheBus(t *testing.T) {
	s := tpmtest.Start(t)
	var bus bytes.Buffer
	dev := tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, cmd, resp []byte) ([]byte, error) {
		bus.Write(cmd)
		bus.Write(resp)
		return resp, nil
	}})
	x := seal(t, dev)
	if _, err := x.unseal(dev); err != nil {
		t.Fatal(err)
	}
	auth := bytes.Repeat([]byte{0xA7}, 32)
	key, err := dev.NewKey(x.root, auth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Sign(x.root, key, auth, sha256.Sum256(nil)); err != nil {
		t.Fatal(err)
	}
	index := tpm.Index{Handle: 0x01814701, Size: 4, Auth: auth}
	if err := dev.DefineNV(x.root, index); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"the sealed secret": x.secret, "an authorisation": auth} {
		if bytes.Contains(bus.Bytes(), b) {
			t.Errorf("%s was seen on the bus", name)
		}
	}
}

func TestKEY1_AnotherRootKeyIsRefused(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	other := tpmtest.Start(t)
	if _, err := x.unseal(other.TPM()); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("on another TPM: %v, want ErrForeign", err)
	}
	y := seal(t, other.TPM())
	y.blob = x.blob
	if _, err := y.unseal(other.TPM()); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("a blob of one TPM under the root of another: %v, want ErrForeign", err)
	}
	if n := other.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
	s.Clear(t)
	if _, err := x.unseal(s.TPM()); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("on a cleared TPM: %v, want ErrForeign", err)
	}
	x.root.Name = bytes.Clone(x.root.Name)
	x.root.Name[5] ^= 1
	if _, err := x.unseal(s.TPM()); err == nil {
		t.Error("a stored key and name that disagree were accepted")
	}
}

func TestRootSurvivesAnOwnerPassword(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	s.SetOwnerPassword(t, "somebody else's")
	if got, err := x.unseal(s.TPM()); err != nil || !bytes.Equal(got, x.secret) {
		t.Errorf("Unseal = %x, %v", got, err)
	}
	again, err := s.TPM().Root()
	if err != nil || !bytes.Equal(again.Name, x.root.Name) {
		t.Errorf("Root = %x, %v; want the key that was kept", again.Name, err)
	}
	if err := s.TPM().DefineNV(x.root, tpm.Index{Handle: 0x01814701, Size: 4}); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("DefineNV = %v, want ErrAuth", err)
	}
}

func TestKEY1_ForgedAnswersAreRefused(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	index := tpm.Index{Handle: 0x01814701, Size: 4}
	if err := s.TPM().DefineNV(x.root, index); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().WriteNV(x.root, index, []byte("true")); err != nil {
		t.Fatal(err)
	}
	public := tpm.Index{Handle: 0x01814704, Size: 4, Auth: []byte("authorisation"), Public: true}
	if err := s.TPM().DefineNV(x.root, public); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().WriteNV(x.root, public, []byte("true")); err != nil {
		t.Fatal(err)
	}
	anybody := public
	anybody.Auth = nil
	for name, c := range map[string]struct {
		code uint32
		run  func(*tpm.TPM) error
	}{
		"NV_Read of what is public": {0x14E, func(d *tpm.TPM) error { _, _, err := d.ReadNV(x.root, anybody); return err }},
		"NV_Write":                  {0x137, func(d *tpm.TPM) error { return d.WriteNV(x.root, public, []byte("true")) }},
		"GetRandom":                 {0x17B, func(d *tpm.TPM) error { _, err := d.Random(x.root, 32); return err }},
		"PCR_Read":                  {0x17E, func(d *tpm.TPM) error { _, err := d.PCRs(x.root, policy); return err }},
		"NV_Read":                   {0x14E, func(d *tpm.TPM) error { _, _, err := d.ReadNV(x.root, index); return err }},
		"Unseal":                    {0x15E, func(d *tpm.TPM) error { _, err := x.unseal(d); return err }},
		"GetCapability":             {0x17A, func(d *tpm.TPM) error { _, err := d.Lockout(x.root); return err }},
		"PCR_Extend":                {0x182, func(d *tpm.TPM) error { return d.Extend(x.root, 16, [32]byte{}) }},
	} {
		// Every byte of the answer after its head is changed once.
		size := 0
		for at := 10; at == 10 || at < size; at++ {
			dev := tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, cmd, resp []byte) ([]byte, error) {
				if binary.BigEndian.Uint32(cmd[6:]) == c.code {
					size = len(resp)
					resp = bytes.Clone(resp)
					resp[at] ^= 1
				}
				return resp, nil
			}})
			if err := c.run(dev); err == nil {
				t.Errorf("%s: an answer with byte %d of %d changed was accepted", name, at, size)
			}
		}
		if size == 0 {
			t.Errorf("%s was not sent", name)
		}
		s.PowerCut(t)
	}
}

func TestAbsenceIsNotBelievedUnauthenticated(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	index := tpm.Index{Handle: 0x01814701, Size: 4}
	if _, _, err := s.TPM().ReadNV(x.root, index); !errors.Is(err, tpm.ErrNoIndex) {
		t.Errorf("ReadNV of nothing = %v, want ErrNoIndex", err)
	}
	if err := s.TPM().DefineNV(x.root, index); err != nil {
		t.Fatal(err)
	}
	// Somebody on the bus says "no such handle".
	dev := tpm.New(&tpmtest.Fault{To: s.Transport(), Before: func(_ int, cmd []byte) ([]byte, error) {
		if binary.BigEndian.Uint32(cmd[6:]) == 0x169 { // NV_ReadPublic
			return tpmtest.Code(0x18B), nil
		}
		return nil, nil
	}})
	if _, _, err := dev.ReadNV(x.root, index); err == nil || errors.Is(err, tpm.ErrNoIndex) {
		t.Errorf("ReadNV = %v: a forged absence was believed", err)
	}
}

func TestNV(t *testing.T) {
	s := tpmtest.Start(t)
	d := s.TPM()
	x := seal(t, d)
	auth := bytes.Repeat([]byte{7, 0}, 16) // zeroes within and at the end
	for _, index := range []tpm.Index{{Handle: 0x01814701, Size: 4}, {Handle: 0x01814702, Size: 4, Auth: auth}} {
		if err := d.DefineNV(x.root, index); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.ReadNV(x.root, index); !errors.Is(err, tpm.ErrUnwritten) {
			t.Errorf("ReadNV before a write = %v, want ErrUnwritten", err)
		}
		if err := d.WriteNV(x.root, index, []byte("once")); err != nil {
			t.Fatal(err)
		}
		wrong := index
		wrong.Auth = bytes.Repeat([]byte{8}, 32)
		if _, _, err := d.ReadNV(x.root, wrong); err == nil {
			t.Errorf("%v was read with a wrong authorisation", index)
		}
		if err := d.LockNV(x.root, index); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteNV(x.root, index, []byte("more")); err == nil {
			t.Errorf("%v was written after it was locked", index)
		}
		s.PowerCut(t)
		if err := d.WriteNV(x.root, index, []byte("more")); err == nil {
			t.Errorf("%v was written after it was locked, and a restart", index)
		}
		data, locked, err := d.ReadNV(x.root, index)
		if err != nil || string(data) != "once" || !locked {
			t.Errorf("ReadNV = %q, locked %v, %v", data, locked, err)
		}
		for range 2 {
			if err := d.UndefineNV(x.root, index.Handle); err != nil {
				t.Errorf("UndefineNV = %v", err)
			}
		}
	}
	if n, err := d.Lockout(x.root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v: wrong guesses of these indices must not count", n, err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

func TestSign(t *testing.T) {
	s := tpmtest.Start(t)
	d := s.TPM()
	x := seal(t, d)
	auth := bytes.Repeat([]byte{7, 0}, 16)
	key, err := d.NewKey(x.root, auth)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("head"))
	if _, err := d.Sign(x.root, key, bytes.Repeat([]byte{8}, 32), digest); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("Sign with a wrong authorisation = %v, want ErrAuth", err)
	}
	signature, err := d.Sign(x.root, key, auth, digest)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Key()
	if err != nil || !ecdsa.VerifyASN1(public, digest[:], signature) {
		t.Errorf("the signature does not verify: %v", err)
	}
	if n, err := d.Lockout(x.root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v", n, err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

func TestRetryResendsTheSameBytes(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	var last []byte
	busy := 0
	dev := tpm.New(&tpmtest.Fault{To: s.Transport(), Before: func(_ int, cmd []byte) ([]byte, error) {
		if bytes.Equal(cmd, last) {
			return nil, nil
		}
		last = bytes.Clone(cmd)
		busy++
		return tpmtest.Code([]uint32{0x922, 0x908, 0x90A}[busy%3]), nil
	}})
	if got, err := x.unseal(dev); err != nil || !bytes.Equal(got, x.secret) || busy == 0 {
		t.Errorf("Unseal = %x, %v after %d refusals", got, err, busy)
	}
	synctest.Test(t, testAlwaysBusy)
}

func testAlwaysBusy(t *testing.T) {
	always := tpm.New(&tpmtest.Fault{Before: func(int, []byte) ([]byte, error) { return tpmtest.Code(0x922), nil }})
	if err := always.Shutdown(false); err == nil {
		t.Error("a TPM that is always busy worked")
	}
}

func TestPCRChangedMeanwhileBeginsAnew(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	times := 0
	dev := tpm.New(&tpmtest.Fault{To: s.Transport(), Before: func(_ int, cmd []byte) ([]byte, error) {
		if binary.BigEndian.Uint32(cmd[6:]) == 0x15E && times < 2 { // Unseal
			times++
			s.Measure(t, 9, "meanwhile")
		}
		return nil, nil
	}})
	if got, err := x.unseal(dev); err != nil || !bytes.Equal(got, x.secret) || times != 2 {
		t.Errorf("Unseal = %x, %v; disturbed %d times", got, err, times)
	}
}

func TestGarbledAnswersAreErrors(t *testing.T) {
	s := tpmtest.Start(t)
	x := seal(t, s.TPM())
	whole := &tpmtest.Fault{To: s.Transport()}
	if _, err := x.unseal(tpm.New(whole)); err != nil {
		t.Fatal(err)
	}
	spoil := map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return []byte{} },
		"short":     func(r []byte) []byte { return r[:len(r)-1] },
		"long":      func(r []byte) []byte { return append(bytes.Clone(r), 0) },
		"headless":  func(r []byte) []byte { return r[:4] },
		"all ones":  func(r []byte) []byte { return bytes.Repeat([]byte{0xFF}, len(r)) },
		"cut short": func([]byte) []byte { return tpmtest.Code(0) },
		"failure":   func([]byte) []byte { return tpmtest.Code(0x101) },
	}
	for name, f := range spoil {
		for at := range whole.N {
			harmless := false
			dev := tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(n int, cmd, resp []byte) ([]byte, error) {
				if n != at {
					return resp, nil
				}
				bad := f(resp)
				// The answer to a flush decides nothing; that to ReadPublic is
				// checked by name, and asked for in another way if it is wrong.
				harmless = cmd[9] == 0x65 || cmd[9] == 0x73 || bytes.Equal(bad, resp)
				return bad, nil
			}})
			got, err := x.unseal(dev)
			if err == nil && (!harmless || !bytes.Equal(got, x.secret)) {
				t.Errorf("%s answer to command %d: accepted", name, at)
			}
		}
		s.PowerCut(t)
	}
}

func TestFind(t *testing.T) {
	if tpm.Find(filepath.Join(t.TempDir(), "none")) != nil {
		t.Error("found a TPM where there is none")
	}
	// Something that is there and no TPM must not look like none.
	d := tpm.Find(t.TempDir())
	if d == nil {
		t.Fatal("a TPM that cannot be opened looks like none")
	}
	if _, err := d.Root(); err == nil {
		t.Error("a TPM that cannot be opened works")
	}
	if d := tpm.Find("/dev/null"); d == nil {
		t.Error("/dev/null is no TPM, and not the absence of one")
	} else if _, err := d.Root(); err == nil {
		t.Error("/dev/null works as a TPM")
	}
}

func TestClosedConnectionStaysClosed(t *testing.T) {
	s := tpmtest.Start(t)
	d := s.TPM()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Shutdown(true); err == nil {
		t.Error("a closed TPM works")
	}
}
