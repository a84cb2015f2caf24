package monitor

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
)

var here = bytes.Repeat([]byte{9}, 32)

// certificateOf is one that the console tells.
func certificateOf(n byte) control.Certificate {
	return control.Certificate{SPKI: hex.EncodeToString(bytes.Repeat([]byte{n}, 32)), Words: "words of the console's own making"}
}

func newLocked(t *testing.T, k *keyring, change func(*Config)) *box {
	t.Helper()
	return newBox(t, func(c *Config) {
		c.Keys, c.Locked, c.Vault, c.Audit = k, "the TPM is another", nil, nil
		if change != nil {
			change(c)
		}
	})
}

// show tells of a certificate, and gives what tools encrypt to.
func (b *box) show(t *testing.T, c control.Certificate) []byte {
	t.Helper()
	if _, err := b.consoleReady(t.Context(), control.Console, control.ConsoleReady{Database: control.DatabaseUnclaimed, Certificate: c}); err != nil {
		t.Fatal(err)
	}
	if b.unlocking.key == nil {
		return nil
	}
	return b.unlocking.key.Public()
}

func (b *box) send(t *testing.T, public []byte, s unlock.Secret) error {
	t.Helper()
	sealed, err := unlock.Seal(public, here, s)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.unlockFromAfar(t.Context(), control.Console, control.Unlock{Sealed: sealed, Binding: here, From: "192.0.2.9"})
	return err
}

// TestKEY8_NothingIsOpenedThatWasNotMadeForThisStart: another connection, the key of
// an earlier certificate, another kind of secret, an open box.
func TestKEY8_NothingIsOpenedThatWasNotMadeForThisStart(t *testing.T) {
	k := &keyring{takes: []string{control.TakesRecovery}}
	b := newLocked(t, k, nil)
	key := unlock.Secret{Kind: unlock.Recovery, Text: []byte("A-B")}
	if _, err := b.unlockFromAfar(t.Context(), control.Console, control.Unlock{}); !control.IsCode(err, control.CodeState) {
		t.Errorf("before the certificate is known: %v", err)
	}
	first := b.show(t, certificateOf(1))
	words := b.Status().Unlocking.Words
	if words != unlock.Words([32]byte(bytes.Repeat([]byte{1}, 32)), first) {
		t.Errorf("the words %q are not those of certificate and key", words)
	}
	second := b.show(t, certificateOf(1))
	if bytes.Equal(first, second) || b.Status().Unlocking.Words == words {
		t.Error("a console that was started anew chose from the same words again")
	}
	sealed, err := unlock.Seal(second, here, key)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"the key of an earlier certificate": b.send(t, first, key),
		"a passphrase that is not asked":    b.send(t, second, unlock.Secret{Kind: unlock.Passphrase, Text: []byte("A-B")}),
		"neither of the two":                b.send(t, second, unlock.Secret{Text: []byte("A-B")}),
		"another connection": func() error {
			_, err := b.unlockFromAfar(t.Context(), control.Console, control.Unlock{Sealed: sealed, Binding: make([]byte, 32)})
			return err
		}(),
	} {
		if err == nil || k.done != nil {
			t.Errorf("%s: %v, done %q", what, err, k.done)
		}
	}
	if err := b.send(t, second, key); err != nil || strings.Join(k.done, ",") != "unlock 1 A-B" {
		t.Fatalf("%v, %q", err, k.done)
	}
	if err := b.send(t, second, key); err == nil {
		t.Error("the key of a start that is over is still there")
	}
	if s := b.Status().Unlocking; s.Words != "" || s.Takes != nil {
		t.Errorf("it still shows %+v", s)
	}
}

// Where nothing opens the box there are no words either, nor where the console
// does not say which certificate it shows.
func TestKEY8_NoWordsWhereNothingOpens(t *testing.T) {
	ready := newBox(t, func(c *Config) { c.Keys = &keyring{takes: []string{control.TakesRecovery}} })
	ready.vault.claimed = true
	for name, b := range map[string]*box{"no way": newLocked(t, &keyring{}, nil), "data that are open and disagree": ready} {
		if b.show(t, certificateOf(1)) != nil || b.Status().Unlocking.Words != "" {
			t.Errorf("%s: there are words", name)
		}
	}
	b := newLocked(t, &keyring{takes: []string{control.TakesRecovery}}, nil)
	for _, spki := range []string{"", "zz", "00"} {
		if b.show(t, control.Certificate{SPKI: spki}) != nil {
			t.Errorf("certificate %q: there are words", spki)
		}
	}
}

// One at a time; passphrases are counted, at first many and then one each half minute.
func TestKEY8_TriesAreBraked(t *testing.T) {
	k := &keyring{takes: []string{control.TakesPassphrase, control.TakesRecovery}, err: errors.New("this is not it")}
	now := built.Add(time.Hour)
	b := newLocked(t, k, func(c *Config) { c.Now = func() time.Time { return now } })
	public := b.show(t, certificateOf(1))
	guess := unlock.Secret{Kind: unlock.Passphrase, Text: []byte("a guess")}
	tried := 0
	for range 3 * passphraseBurst {
		if err := b.send(t, public, guess); control.IsCode(err, control.CodeFailed) {
			tried++
		} else if !strings.Contains(err.Error(), "too many") {
			t.Fatal(err)
		}
	}
	if tried != passphraseBurst {
		t.Errorf("%d guesses were tried, want %d", tried, passphraseBurst)
	}
	now = now.Add(passphraseEach)
	if err := b.send(t, public, guess); !control.IsCode(err, control.CodeFailed) {
		t.Errorf("half a minute later: %v", err)
	}
	if err := b.send(t, public, unlock.Secret{Kind: unlock.Recovery, Text: []byte("A-B")}); !control.IsCode(err, control.CodeFailed) {
		t.Errorf("guesses at the passphrase keep the recovery key out: %v", err)
	}
	b.unlocking.busy = true
	if err := b.send(t, public, guess); err == nil || !strings.Contains(err.Error(), "tried at this moment") {
		t.Errorf("two at a time: %v", err)
	}
	if err := b.Unlock(context.Background(), []byte("A-B")); err == nil || !strings.Contains(err.Error(), "tried at this moment") {
		t.Errorf("two at a time, at the console: %v", err)
	}
}
