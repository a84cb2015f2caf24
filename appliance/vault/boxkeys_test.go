package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

func checkTunnel(t *testing.T, v *Vault) *ecdsa.PublicKey {
	t.Helper()
	k, err := v.Tunnel()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("this site, to this hub"))
	signature, err := k.Sign(t.Context(), digest)
	if err != nil || !ecdsa.VerifyASN1(k.Public, digest[:], signature) {
		t.Errorf("Sign: %v", err)
	}
	if k.Public.Equal(v.Public()) {
		t.Error("the tunnel key is the checkpoint key")
	}
	return k.Public
}

// Without the base secret, which only who has the data key gets at, the keys
// sign nothing: not for another system on the same machine, though it has
// the blobs and the TPM.
func TestKEY1_BoxKeysSignForTheDataKeyAlone(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	public := checkTunnel(t, v)
	k := v.h.tpm
	wrong := bytes.Repeat([]byte{9}, 32)
	for name, auth := range map[string][]byte{"nothing": nil, "a guess": wrong} {
		for what, key := range map[string]tpm.Blob{"checkpoint": k.checkpoint, "tunnel": k.tunnel} {
			if _, err := s.TPM().Sign(k.root, key, auth, [32]byte{}); !errors.Is(err, tpm.ErrAuth) {
				t.Errorf("%s key with %s: %v, want ErrAuth", what, name, err)
			}
		}
		if _, err := s.TPM().Certify(k.root, k.ak, auth, k.tunnel, auth, nil); !errors.Is(err, tpm.ErrAuth) {
			t.Errorf("attestation key with %s: %v, want ErrAuth", name, err)
		}
	}
	// The one's authorisation is not the other's, and the attestation key signs
	// nothing that comes from outside.
	for _, x := range []struct {
		key     tpm.Blob
		purpose string
	}{{k.tunnel, internalCheckpoint}, {k.checkpoint, internalTunnel}, {k.ak, internalTunnel}, {k.ak, internalAttest}} {
		auth, err := v.derive(x.purpose, 32)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.TPM().Sign(k.root, x.key, auth, [32]byte{}); err == nil {
			t.Errorf("with %s another key signed", x.purpose)
		}
	}
	noLockout(t, s, k.root)
	if err := v.Rotate(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	w := mustOpen(t, c)
	if !checkTunnel(t, w).Equal(public) {
		t.Error("another tunnel key after a rotation and a restart")
	}
	w.Wipe()
	if k, err := w.Tunnel(); err == nil {
		if _, err := k.Sign(t.Context(), [32]byte{}); err == nil {
			t.Error("the tunnel key signs when the keys are wiped")
		}
	}
}

func TestKEY1_BoxKeysAreCertified(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	certified := 0
	v.c.TPM = tpm.New(&tpmtest.Fault{To: s.Transport(), Before: func(_ int, cmd []byte) ([]byte, error) {
		if cmd[8] == 1 && cmd[9] == 0x48 { // Certify
			certified++
		}
		return nil, nil
	}})
	for range 2 {
		_, status, err := v.Registers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want, err := fingerprint(v.h.tpm.tunnel)
		if err != nil {
			t.Fatal(err)
		}
		if len(status.AK) != 64 || status.AK == status.EK || len(status.Keys) != 2 || status.Keys[0].Name != "checkpoint" || status.Keys[1].Fingerprint != want {
			t.Errorf("%+v", status)
		}
	}
	if certified != 2 {
		t.Errorf("certified %d times, want each key once in a run", certified)
	}

	// A key from somewhere else is not vouched for, and the page says so.
	other := mustCreate(t, box(tpmtest.Start(t), newDisk()))
	k := *v.h.tpm
	k.tunnel = other.h.tpm.tunnel
	v.h.tpm = &k
	if _, status, err := v.Registers(t.Context()); err == nil || len(status.Keys) > 0 {
		t.Errorf("a key of another TPM: %+v, %v", status, err)
	}

	for name, c := range forms() {
		c.Meta = newDisk()
		v := mustCreate(t, c)
		if ak, keys, err := v.vouch(); ak != "" || keys != nil || err != nil {
			t.Errorf("%s: %s, %v, %v without a TPM", name, ak, keys, err)
		}
		if !checkTunnel(t, v).Equal(checkTunnel(t, mustOpen(t, c))) {
			t.Errorf("%s: another tunnel key at the next start", name)
		}
	}
}

// A box whose header is of version 2 opens and signs as before; once a start
// proved itself it has all keys, and its log is still checked by the same one.
func TestKEY5_HeaderOfVersion2GetsItsKeys(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, err := Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	v.h.tpm = &tpmKeys{root: v.h.tpm.root, checkpoint: v.h.tpm.checkpoint}
	if err := v.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	version := func(want byte) {
		t.Helper()
		if got := c.Meta.(*disk).data[len(headerMagic)+1]; got != want {
			t.Fatalf("header of version %d, want %d", got, want)
		}
	}
	version(headerBefore)
	before := c.Meta.(*disk).clone()
	settle := func(d *disk, dev *tpm.TPM) (*Vault, error) {
		t.Helper()
		c := c
		c.Meta = d
		s.PowerCut(t)
		w := mustOpen(t, c)
		same(t, v, w)
		checkSign(t, w)
		if dev != nil {
			w.c.TPM = dev
		}
		return w, w.Settle(t.Context())
	}
	s.PowerCut(t)
	w := mustOpen(t, c)
	version(headerBefore)
	if _, err := w.Tunnel(); err == nil {
		t.Error("a tunnel key where none was made")
	}
	if _, status, err := w.Registers(t.Context()); err != nil || status.AK != "" {
		t.Errorf("%+v, %v", status, err)
	}
	eachFault(t, s, 8, func(t *testing.T, dev *tpm.TPM, what string) {
		d := before.clone()
		if _, err := settle(d, dev); err != nil {
			named(t, err, what)
		}
		w, err := settle(d, nil)
		if err != nil {
			t.Fatalf("%s: the next start: %v", what, err)
		}
		checkTunnel(t, w)
	})
	for _, at := range cutPoints(2 * copySize) {
		if at > 3*blockSize {
			break
		}
		d := before.clone()
		s.PowerCut(t)
		cut := c
		cut.Meta = d
		w := mustOpen(t, cut)
		d.left = at
		_ = w.Settle(t.Context())
		d.left = -1
		if w, err = settle(d, nil); err != nil {
			t.Fatalf("cut at byte %d: %v", at, err)
		}
		checkTunnel(t, w)
	}
	w, err = settle(c.Meta.(*disk), nil)
	if err != nil {
		t.Fatal(err)
	}
	version(headerVersion)
	public := checkTunnel(t, w)
	s.PowerCut(t)
	x := mustOpen(t, c)
	same(t, v, x)
	if !checkTunnel(t, x).Equal(public) {
		t.Error("another tunnel key at the next start")
	}
	generation := x.Generation()
	if err := x.Settle(t.Context()); err != nil || x.Generation() != generation {
		t.Errorf("Settle with nothing to do: %v, generation %d after %d", err, x.Generation(), generation)
	}
}
