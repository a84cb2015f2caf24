package account

import (
	"bytes"
	"errors"
	"testing"

	"gatehouse/appliance/account/onetime"
)

// Whoever knows the password before there is a second factor could look at its
// secret, wait until the owner has verified it, and know it for ever.
func TestACC4_NobodyElseHasSeenTheSecretThatIsVerified(t *testing.T) {
	b, p := claimed(t)
	ctx := t.Context()
	thief, _, err := b.Start(ctx, p, StageEnrol, home, "")
	if err != nil {
		t.Fatal(err)
	}
	seen := factorOf(t, b, p)
	owner, _, err := b.Start(ctx, p, StageEnrol, home, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, thief, true); !errors.Is(err, ErrNoSession) {
		t.Errorf("two set up a second factor at once: %v", err)
	}
	if _, err := b.Session(ctx, owner, true); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(seen, factorOf(t, b, p)) {
		t.Error("the secret is one that another session was shown")
	}
}

// The same for a secret that was begun in an earlier session and left.
func TestACC4_ASecretThatWasLeftIsNotTakenUpAgain(t *testing.T) {
	b, p, _ := withFactor(t)
	seen := factorOf(t, b, p)
	if _, _, err := b.Start(t.Context(), p, StageFull, home, ""); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(seen, factorOf(t, b, p)) {
		t.Error("the secret is one that an earlier session was shown")
	}
}

// A session of the password alone opens the set-up of the first factor; once
// there is one it is worth nothing.
func TestACC4_PasswordSessionEndsWithTheFirstFactor(t *testing.T) {
	b, p := claimed(t)
	ctx := t.Context()
	old, _, err := b.Start(ctx, p, StageEnrol, home, "")
	if err != nil {
		t.Fatal(err)
	}
	secret := factorOf(t, b, p)
	if err := b.VerifyFactor(ctx, p, onetime.Code(secret, onetime.Step(b.wall)), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, old, true); !errors.Is(err, ErrNoSession) {
		t.Errorf("a session without a second factor goes on: %v", err)
	}
}
