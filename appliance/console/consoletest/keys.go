package consoletest

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/keytext"
)

// RecoveryKind is how the double writes recovery keys; the vault's are of the same form.
var RecoveryKind = keytext.Kind{Name: "recovery key", Label: "consoletest recovery"}

// keys is what guards the data of a double.
type keys struct {
	now     control.Keys
	waiting string // the recovery key that is not confirmed
	asked   []string
	secret  string // passphrase of the start
	fails   error
}

// Guarded is a box with a TPM as it is after its first start.
func Guarded(started time.Time) control.Keys {
	return control.Keys{
		Trust: control.Trust{Mechanism: "tpm", Grade: "B", Sentence: "Sealed to the TPM, boot chain not enforced.", Raise: "Secure Boot would raise this: switch it on in the firmware"},
		Rungs: []control.Rung{
			{Name: "firmware", State: control.RungUnchecked, Sentence: "Secure Boot is off: the firmware starts whatever it finds"},
			{Name: "loader", State: control.RungUnchecked, Sentence: "systemd-boot 252 was started; nobody checked who signed it"},
			{Name: "system", State: control.RungChecked, Sentence: "PCR 11, 12 and 13 are those that the release key approves for epoch 1"},
			{Name: "keys", State: control.RungChecked, Sentence: "The TPM opened the data key, over a session salted to the stored root key"},
			{Name: "data", State: control.RungChecked, Sentence: "The volume opened under the volume key, and is as new as the TPM remembers"},
		},
		Slots: []control.KeySlot{{Kind: "tpm", Made: started, InUse: true}},
		Registers: []control.Register{
			{Index: 7, Name: "Secure Boot: state and keys", Value: strings.Repeat("3d458cfe", 8), Sealed: strings.Repeat("3d458cfe", 8)},
			{Index: 11, Name: "the system: kernel, initramfs, command line", Value: strings.Repeat("91f2a7c0", 8), Sealed: strings.Repeat("5b1c33d8", 8), Approved: true},
			{Index: 12, Name: "command lines from outside", Value: strings.Repeat("00000000", 8), Sealed: strings.Repeat("00000000", 8), Approved: true},
			{Index: 15, Name: "the cap, after the key was asked for", Value: strings.Repeat("c4e8810a", 8)},
		},
		SecureBoot: control.SecureBootStatus{Known: true, SetupMode: true, CanEnrol: true, Sentence: "Secure Boot is off, and the firmware has no platform key: the keys of this image can be written into it"},
		TPM: &control.TPMStatus{Maker: "IBM", Version: "8217.4131.22.13878", EK: strings.Repeat("a1b2c3d4", 8), AK: strings.Repeat("0badcafe", 8),
			Keys: []control.BoxKey{{Name: "checkpoint", Fingerprint: strings.Repeat("11223344", 8)}, {Name: "tunnel", Fingerprint: strings.Repeat("55667788", 8)}}},
		Recovery: "none", Epoch: 1, Generation: 3,
	}
}

// SetKeys makes them other ones than those of Guarded.
func (b *Box) SetKeys(k control.Keys) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys.now, b.keys.waiting = k, ""
}

// KeysAsked is what was asked to be done with the keys: the operation, a colon, its object.
func (b *Box) KeysAsked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.keys.asked)
}

// Passphrase is the one that is asked for at the start.
func (b *Box) Passphrase() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys.secret
}

// FailKeys makes each change of the keys fail, nil not.
func (b *Box) FailKeys(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys.fails = err
}

// setSlot puts one in the place of those of its kind.
func (k *keys) setSlot(s control.KeySlot) {
	k.now.Slots = append(slices.DeleteFunc(slices.Clone(k.now.Slots), func(o control.KeySlot) bool { return o.Kind == s.Kind }), s)
	k.now.Generation++
}

// change does what the monitor does around each change.
func (b *Box) change(ctx context.Context, by control.By, action, object string, f func(*keys) error) error {
	if s := b.State(); s != control.StateReady {
		return refused(control.CodeState, "keys are changed on a box that has an owner and is open")
	}
	if _, err := b.append(ctx, control.Event{Actor: by.Actor, From: by.From, Action: action, Object: object}); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys.asked = append(b.keys.asked, action+":"+object)
	if b.keys.fails != nil {
		return refused(control.CodeFailed, "%v", b.keys.fails)
	}
	return f(&b.keys)
}

func (b *Box) handleKeys(s *control.Server) {
	control.Handle(s, control.OpKeys, func(context.Context, control.Role, control.None) (control.Keys, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.keys.now, nil
	})
	control.Handle(s, control.OpRecoveryMake, func(ctx context.Context, _ control.Role, by control.By) (key control.RecoveryKey, err error) {
		err = b.change(ctx, by, "recovery key made", "", func(k *keys) error {
			var raw [32]byte
			rand.Read(raw[:])
			key.Text = RecoveryKind.Format(raw)
			k.waiting = key.Text
			k.now.Slots = slices.DeleteFunc(slices.Clone(k.now.Slots), func(s control.KeySlot) bool { return s.Kind == "recovery" && !s.Confirmed })
			k.now.Slots = append(k.now.Slots, control.KeySlot{Kind: "recovery", Made: time.Now()})
			k.now.Generation++
			if k.now.Recovery != "confirmed" {
				k.now.Recovery = "unconfirmed"
			}
			return nil
		})
		return key, err
	})
	control.Handle(s, control.OpRecoveryConfirm, func(ctx context.Context, _ control.Role, q control.RecoveryConfirm) (control.None, error) {
		return control.None{}, b.change(ctx, q.By, "recovery key confirmed", "", func(k *keys) error {
			typed, err := RecoveryKind.Normal(q.Text)
			if err != nil || len(typed) != keytext.Group || !strings.HasSuffix(k.waiting, "-"+typed) {
				return refused(control.CodeInvalid, "that is not the last group of the new recovery key")
			}
			k.waiting, k.now.Recovery = "", "confirmed"
			k.setSlot(control.KeySlot{Kind: "recovery", Made: time.Now(), Confirmed: true})
			return nil
		})
	})
	control.Handle(s, control.OpKeyRotate, func(ctx context.Context, _ control.Role, q control.KeyRotate) (control.None, error) {
		return control.None{}, b.change(ctx, q.By, "key rotated", q.What, func(k *keys) error {
			i := slices.IndexFunc(k.now.Slots, func(s control.KeySlot) bool { return s.Kind == q.What })
			switch {
			case q.What == "data":
				k.now.Generation++
			case i < 0:
				return refused(control.CodeInvalid, "there is no %s slot to rotate", q.What)
			default:
				k.setSlot(control.KeySlot{Kind: q.What, Made: time.Now(), InUse: k.now.Slots[i].InUse})
			}
			return nil
		})
	})
	control.Handle(s, control.OpPassphraseSet, func(ctx context.Context, _ control.Role, q control.PassphraseSet) (control.None, error) {
		action := "passphrase of the start set"
		if len(q.Passphrase) == 0 {
			action = "passphrase of the start removed"
		}
		return control.None{}, b.change(ctx, q.By, action, "", func(k *keys) error {
			k.secret = string(q.Passphrase)
			if k.secret == "" {
				k.now.Slots = slices.DeleteFunc(slices.Clone(k.now.Slots), func(s control.KeySlot) bool { return s.Kind == "passphrase" })
				k.now.Generation++
				return nil
			}
			k.setSlot(control.KeySlot{Kind: "passphrase", Made: time.Now()})
			return nil
		})
	})
	control.Handle(s, control.OpTPMTake, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, b.change(ctx, by, "TPM taken", "", func(k *keys) error {
			if k.now.Offered == "" {
				return refused(control.CodeState, "there is no TPM that waits to be used")
			}
			k.now.Offered = ""
			k.setSlot(control.KeySlot{Kind: "tpm", Made: time.Now()})
			return nil
		})
	})
	control.Handle(s, control.OpSecureBootEnrol, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, b.change(ctx, by, "Secure Boot keys enrolled", "", func(k *keys) error {
			if !k.now.SecureBoot.CanEnrol {
				return refused(control.CodeState, "the firmware is not in set-up mode")
			}
			k.now.SecureBoot = control.SecureBootStatus{Known: true, Ours: true, Sentence: "The keys of this image are in the firmware; Secure Boot is on from the next start"}
			k.now.Slots = append(slices.Clone(k.now.Slots), control.KeySlot{Kind: "tpm", Made: time.Now(), Note: "for the next start, with Secure Boot on"})
			return nil
		})
	})
}
