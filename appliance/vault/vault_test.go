package vault

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"gatehouse/tpm/hostid"
	"gatehouse/tpm/tpmtest"
)

// disk is META in memory. It can lose its power after so many bytes: what was
// written before stays, the rest of that write and all later ones fail.
type disk struct {
	data  []byte
	left  int // bytes until the power goes; negative: never
	total int // bytes written
	bad   error
}

var errPower = errors.New("the power is gone")

func newDisk() *disk { return &disk{data: make([]byte, 256<<10), left: -1} }

func (d *disk) ReadAt(b []byte, at int64) (int, error) {
	if d.bad != nil {
		return 0, d.bad
	}
	n := copy(b, d.data[min(at, int64(len(d.data))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	n := len(b)
	if d.left >= 0 {
		n = min(n, d.left)
		d.left -= n
	}
	d.total += copy(d.data[at:], b[:n])
	if n < len(b) {
		return n, errPower
	}
	return n, nil
}

func (d *disk) Sync() error {
	if d.left == 0 {
		return errPower
	}
	return nil
}

func (d *disk) clone() *disk { return &disk{data: slices.Clone(d.data), left: -1} }

var machine = hostid.ID{{Name: "machine-id", Value: "b08dfa6083e7567a1921a715000001fb"}, {Name: "dmi-uuid", Value: "x"}}

func hostID(id hostid.ID) func() (hostid.ID, error) {
	return func() (hostid.ID, error) { return id, nil }
}

func mustCreate(t testing.TB, c Config) *Vault {
	t.Helper()
	v, err := Create(t.Context(), c)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if err := v.Commit(t.Context()); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	t.Cleanup(v.Wipe)
	return v
}

func mustOpen(t testing.TB, c Config) *Vault {
	t.Helper()
	v, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(v.Wipe)
	return v
}

func wantLocked(t testing.TB, err error, rung string) *Locked {
	t.Helper()
	var l *Locked
	if !errors.As(err, &l) {
		t.Fatalf("error %v, want locked at %s", err, rung)
	}
	if l.Rung != rung || l.Cause == "" || l.Advice == "" {
		t.Fatalf("locked at %q (%v), want %q with cause and advice", l.Rung, l, rung)
	}
	return l
}

func subkey(t testing.TB, v *Vault) [32]byte {
	t.Helper()
	k, err := v.Subkey("test")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func same(t testing.TB, a, b *Vault) {
	t.Helper()
	ka, errA := a.VolumeKey()
	kb, errB := b.VolumeKey()
	if errA != nil || errB != nil || !bytes.Equal(ka, kb) || len(ka) != 64 {
		t.Errorf("volume keys differ: %v %v", errA, errB)
	}
	if subkey(t, a) != subkey(t, b) || a.InstallID() != b.InstallID() || !a.Public().Equal(b.Public()) {
		t.Error("the opened vault is not the one that was made")
	}
}

// forms are the ways to guard a key without a TPM.
func forms() map[string]Config {
	return map[string]Config{
		"host-id":    {HostID: hostID(machine), Form: Host},
		"passphrase": {Passphrase: []byte("correct horse battery"), Form: Container},
	}
}

func TestKEY2_SoftModesOpenWhatTheyMade(t *testing.T) {
	for name, c := range forms() {
		t.Run(name, func(t *testing.T) {
			c.Meta = newDisk()
			if _, err := Open(t.Context(), c); !errors.Is(err, ErrBlank) {
				t.Fatalf("Open of nothing = %v, want ErrBlank", err)
			}
			v := mustCreate(t, c)
			if v.Trust().Mechanism != name {
				t.Errorf("Trust = %+v", v.Trust())
			}
			w := mustOpen(t, c)
			same(t, v, w)
			if _, err := Create(t.Context(), c); err == nil {
				t.Error("Create over an existing header worked")
			}
			if n, err := w.LockoutCounter(t.Context()); n != 0 || err != nil {
				t.Errorf("LockoutCounter = %d, %v", n, err)
			}
			checkSign(t, w)
			checkClaim(t, c, w)
		})
	}
}

func checkSign(t *testing.T, v *Vault) {
	t.Helper()
	digest := sha256.Sum256([]byte("head of the log"))
	signature, err := v.Sign(t.Context(), digest)
	if err != nil || !ecdsa.VerifyASN1(v.Public(), digest[:], signature) {
		t.Errorf("Sign: %v", err)
	}
}

// checkClaim claims v and opens it anew by c.
func checkClaim(t *testing.T, c Config, v *Vault) {
	t.Helper()
	if claimed, err := v.Claimed(t.Context()); claimed || err != nil {
		t.Fatalf("Claimed = %v, %v before a claim", claimed, err)
	}
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Fatalf("SetClaimed: %v", err)
	}
	if err := v.SetClaimed(t.Context()); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second SetClaimed = %v, want ErrClaimed", err)
	}
	if claimed, err := v.Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v after a claim", claimed, err)
	}
	if c.TPM != nil {
		return
	}
	if claimed, err := mustOpen(t, c).Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v after a claim and a restart", claimed, err)
	}
}

func TestKEY2_WrongIdentityOpensNothing(t *testing.T) {
	c := forms()["host-id"]
	c.Meta = newDisk()
	v := mustCreate(t, c)
	other := c
	for name, f := range map[string]func() (hostid.ID, error){
		"another machine":             hostID(hostid.ID{{Name: "machine-id", Value: "ffdfa6083e7567a1921a715000001fb0"}}),
		"its value from other source": hostID(hostid.ID{{Name: "dmi-uuid", Value: machine[0].Value}}),
		"none":                        func() (hostid.ID, error) { return nil, hostid.ErrNone },
		"no reader":                   nil,
	} {
		other.HostID = f
		_, err := Open(t.Context(), other)
		if l := wantLocked(t, err, "host-id"); !strings.Contains(l.Cause, "machine-id") {
			t.Errorf("%s: %v does not name the source", name, l)
		}
	}
	other.HostID = hostID(append(hostid.ID{{Name: "better", Value: "appeared later"}}, machine...))
	same(t, v, mustOpen(t, other))

	p := forms()["passphrase"]
	p.Meta = newDisk()
	mustCreate(t, p)
	for _, wrong := range []string{"", "correct horse batterY"} {
		p.Passphrase = []byte(wrong)
		_, err := Open(t.Context(), p)
		if l := wantLocked(t, err, "passphrase"); !strings.Contains(l.Advice, "GATEHOUSE_KEY") {
			t.Errorf("advice %q does not name the variable", l.Advice)
		}
	}
}

func TestKEY2_OrderWhenSealingForTheFirstTime(t *testing.T) {
	pass := []byte("a passphrase that was given")
	for _, x := range []struct {
		name string
		c    Config
		want string // mechanism, or rung after "!"
	}{
		{"host with id", Config{Form: Host, HostID: hostID(machine)}, "host-id"},
		{"box without a TPM", Config{Form: Box, HostID: hostID(machine)}, "host-id"},
		{"a given passphrase is used", Config{Form: Host, HostID: hostID(machine), Passphrase: pass}, "passphrase"},
		{"host without anything", Config{Form: Host}, "!passphrase"},
		{"box without anything", Config{Form: Box, HostID: hostID(nil)}, "!passphrase"},
		{"box, typed", Config{Form: Box, Passphrase: pass}, "passphrase"},
		{"container", Config{Form: Container, HostID: hostID(machine)}, "!passphrase"},
		{"container with passphrase", Config{Form: Container, HostID: hostID(machine), Passphrase: pass}, "passphrase"},
		{"too short", Config{Form: Host, HostID: hostID(machine), Passphrase: pass[:11]}, "!passphrase"},
	} {
		x.c.Meta = newDisk()
		v, err := Create(t.Context(), x.c)
		if rung, refused := strings.CutPrefix(x.want, "!"); refused {
			wantLocked(t, err, rung)
			continue
		}
		if err != nil || v.Trust().Mechanism != x.want {
			t.Errorf("%s: %v, want %s", x.name, err, x.want)
			continue
		}
		v.Wipe()
	}
	_, err := Create(t.Context(), Config{Meta: newDisk(), Form: Container, Variable: "MY_SECRET"})
	if l := wantLocked(t, err, "passphrase"); !strings.Contains(l.Error(), "MY_SECRET") || strings.Contains(l.Error(), "GATEHOUSE_KEY") {
		t.Errorf("%v does not name the variable", l)
	}
}

func TestKEY3_TrustSaysWhatItIsWorth(t *testing.T) {
	for m, want := range map[mode][2]string{
		modeTPM: {"B", "not enforced"}, modeHostID: {"C", "not hardware-protected"}, modePassphrase: {"P", "passphrase"},
	} {
		for _, secureBoot := range []bool{false, true} {
			tr := trustOf(m, secureBoot, false)
			if tr.Grade != want[0] || !strings.Contains(tr.Sentence, want[1]) || tr.Raise == "" || tr.SecureBoot != secureBoot {
				t.Errorf("%v: %+v", m, tr)
			}
		}
	}
	for secureBoot, want := range map[bool]string{true: "A", false: "B"} {
		if tr := trustOf(modeTPM, secureBoot, true); tr.Grade != want || (tr.Raise == "") != secureBoot {
			t.Errorf("measured, Secure Boot %v: %+v", secureBoot, tr)
		}
	}
	if tr := trustOf(0, true, false); tr.Grade != "" || tr.Mechanism != "none" {
		t.Errorf("nothing: %+v", tr)
	}
}

func TestSubkeysDifferByPurposeAndInstall(t *testing.T) {
	c := forms()["host-id"]
	c.Meta = newDisk()
	v := mustCreate(t, c)
	c.Meta = newDisk()
	w := mustCreate(t, c)
	seen := map[[32]byte]string{}
	for name, x := range map[string]*Vault{"one": v, "two": w} {
		for _, purpose := range []string{"a", "b", internalMAC, internalCheckpoint} {
			k, err := x.Subkey(purpose)
			if err != nil {
				t.Fatal(err)
			}
			if was, twice := seen[k]; twice {
				t.Errorf("%s/%s and %s have one key", name, purpose, was)
			}
			seen[k] = name + "/" + purpose
			internal, err := x.derive(purpose, 32)
			if err != nil || bytes.Equal(internal, k[:]) {
				t.Errorf("a role can ask for the vault's own %s", purpose)
			}
		}
	}
	if _, err := v.Subkey(""); err == nil {
		t.Error("a key without a purpose was given")
	}
}

func TestKEY7_WipeEndsEverything(t *testing.T) {
	c := forms()["host-id"]
	c.Meta = newDisk()
	v := mustCreate(t, c)
	v.Wipe()
	v.Wipe()
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"Subkey":     func() error { _, err := v.Subkey("x"); return err },
		"VolumeKey":  func() error { _, err := v.VolumeKey(); return err },
		"Sign":       func() error { _, err := v.Sign(ctx, [32]byte{}); return err },
		"Claimed":    func() error { _, err := v.Claimed(ctx); return err },
		"SetClaimed": func() error { return v.SetClaimed(ctx) },
	} {
		if err := f(); !errors.Is(err, errWiped) {
			t.Errorf("%s after Wipe = %v", name, err)
		}
	}
}

func TestKEY7_ArenaIsZeroedAndClosed(t *testing.T) {
	data, volume, base := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 64), bytes.Repeat([]byte{3}, 32)
	a, err := newArena(data, volume, base)
	if err != nil {
		t.Fatal(err)
	}
	err = a.use(func(d, v, b []byte) error {
		if !bytes.Equal(b, base) || !bytes.Equal(d, data) || !bytes.Equal(v, volume) || cap(d) != 32 {
			t.Error("the arena gives back other keys")
		}
		return errPower
	})
	if !errors.Is(err, errPower) {
		t.Errorf("use = %v", err)
	}
	if !strings.Contains(protection(t, a.page), "---p") {
		t.Errorf("the keys can be read while not in use: %s", protection(t, a.page))
	}
	a.wipe()
	if err := a.use(func(_, _, _ []byte) error { return nil }); !errors.Is(err, errWiped) {
		t.Errorf("use after wipe = %v", err)
	}
}

func TestKEY2_ContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := forms()["host-id"]
	c.Meta = newDisk()
	if _, err := Open(ctx, c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Create(ctx, c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Erase(ctx, c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestMetaThatCannotBeReadIsLocked(t *testing.T) {
	c := forms()["host-id"]
	d := newDisk()
	d.bad = errors.New("input/output error")
	c.Meta = d
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "meta")
	_, err = Create(t.Context(), c)
	wantLocked(t, err, "meta")
	if _, err := Inspect(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// box is a Config of a box with this TPM and this disk.
func box(s *tpmtest.Server, d Device) Config {
	return Config{Meta: d, TPM: s.TPM(), HostID: hostID(machine), Form: Box}
}
