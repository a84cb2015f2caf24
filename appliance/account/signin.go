package account

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/account/password"
	"gatehouse/appliance/account/right"
)

// wrongPassword does not say which of the two it was.
const wrongPassword = "The e-mail address or the password is not right. Check both and try again."

func newToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// digest is how tokens are stored. They are 256 random bits, so a plain hash
// cannot be turned around.
func digest(token string) []byte {
	d := sha256.Sum256([]byte(token))
	return d[:]
}

// CheckPassword returns the person with this e-mail address and password. The
// work is the same whether there is such a person or not. The person is not
// signed in by this: see Start.
//
// recovery may be empty: a recovery code lets a browser that the account does
// not know pass the limit on strangers. It is not used up here.
func (a *Accounts) CheckPassword(ctx context.Context, email, pw, recovery string, o Origin) (p Person, err error) {
	defer func() { a.countWrong(err) }()
	lookup := a.lookup(email)
	var r row
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		var err error
		r, err = a.load(ctx, tx, "lookup", lookup)
		return err
	})
	if err != nil && !errors.Is(err, errUnknown) {
		return Person{}, err
	}
	if !r.claimed {
		r = row{}
	}
	known, err := a.admit(ctx, lookup, r.ID, recovery, o)
	if err != nil {
		return Person{}, err
	}
	ok, err := a.hasher.Check(ctx, pw, r.hash, known)
	if errors.Is(err, password.ErrBusy) {
		return Person{}, refuse("Too many people are signing in at once. Try again in a moment; browsers you used before are not held up by this.")
	}
	if err != nil {
		return Person{}, fmt.Errorf("checking a password: %w", err)
	}
	if !ok {
		return Person{}, wrong(wrongPassword)
	}
	if !r.Factor { // nothing more is asked; with a factor CheckCode does this
		if err := a.succeeded(ctx, lookup, o); err != nil {
			return Person{}, err
		}
	}
	return r.Person, nil
}

func (a *Accounts) countWrong(err error) {
	var r *Refusal
	if errors.As(err, &r) && r.Wrong {
		a.failures.Add(1)
	}
}

// Failures is how many passwords and codes were wrong since the start.
func (a *Accounts) Failures() uint64 { return a.failures.Load() }

// Proof says by what a person passed the second step.
type Proof struct {
	Recovery bool // by a recovery code, which is used up now
	Left     int  // recovery codes that are left
}

// CheckCode takes a six-digit code or a recovery code as the second step of a
// sign-in, or to confirm a change.
func (a *Accounts) CheckCode(ctx context.Context, p Person, typed string, o Origin) (proof Proof, err error) {
	defer func() { a.countWrong(err) }()
	lookup := a.lookup(p.Email)
	if _, err := a.admit(ctx, lookup, p.ID, typed, o); err != nil {
		return Proof{}, err
	}
	if code, parseErr := onetime.ParseRecoveryCode(typed); parseErr == nil {
		proof.Recovery = true
		err = a.useRecoveryCode(ctx, p, code)
	} else {
		err = a.useStep(ctx, p, typed)
	}
	if err != nil {
		return Proof{}, err
	}
	if proof.Left, err = a.RecoveryLeft(ctx, p); err != nil {
		return Proof{}, err
	}
	return proof, a.succeeded(ctx, lookup, o)
}

// useStep judges and stores in one transaction: of two requests with one code
// the second finds its step used.
func (a *Accounts) useStep(ctx context.Context, p Person, typed string) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "id", p.ID)
		if err != nil {
			return err
		}
		if r.secret == nil {
			return refuse("There is no second factor to check.")
		}
		step, ok := onetime.Match(r.secret, typed, a.wall(), r.step)
		if !ok {
			return wrong("The code is not right, or was used before. Wait for the next one in your app; if it never fits, the clock of the box or of your phone is wrong (the box says %s UTC). A recovery code works too.", a.wall().UTC().Format("15:04:05"))
		}
		_, err = tx.ExecContext(ctx, "UPDATE person SET totp_step = ? WHERE id = ? AND totp_step < ?", step, p.ID, step)
		return err
	})
}

// Factor is a second factor that is being set up.
type Factor struct {
	Manual string // the secret, to be typed
	URI    string // the secret, for the QR code
}

// BeginFactor makes a secret, or returns the one that was begun, so that going
// back a page does not make the scanned one wrong.
func (a *Accounts) BeginFactor(ctx context.Context, p Person, box string, anew bool) (f Factor, err error) {
	err = a.db.Update(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "id", p.ID)
		if err != nil {
			return err
		}
		if r.pending == nil || anew {
			r.pending = onetime.NewSecret()
			if _, err := tx.ExecContext(ctx, "UPDATE person SET totp_pending = ? WHERE id = ?", a.db.Seal(totpCell(p.ID), r.pending), p.ID); err != nil {
				return fmt.Errorf("storing the new secret: %w", err)
			}
		}
		f = Factor{onetime.Manual(r.pending), onetime.URI(r.pending, box, r.Email)}
		return nil
	})
	return f, err
}

// VerifyFactor makes the secret that was begun the person's second factor when
// the code is right for it. The old one, and the steps used with it, end here.
func (a *Accounts) VerifyFactor(ctx context.Context, p Person, typed string, commit func() error) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "id", p.ID)
		if err != nil {
			return err
		}
		if r.pending == nil {
			return refuse("There is no new second factor to verify. Begin again.")
		}
		step, ok := onetime.Match(r.pending, typed, a.wall(), 0)
		if !ok {
			return refuse("The code does not fit. Type the six digits that the app shows now; if they never fit, compare the clocks: the box says %s UTC.", a.wall().UTC().Format("15:04:05"))
		}
		if err := commit(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE person SET totp = ?, totp_step = ?, totp_pending = NULL WHERE id = ?", a.db.Seal(totpCell(p.ID), r.pending), step, p.ID)
		return err
	})
}

// ResetFactor removes the owner's second factor with all that hangs on it:
// recovery codes, sessions, known browsers, and the count of failures that may
// have kept the owner out. The password stays, and the next sign-in with it
// sets up a new factor. Doing it twice is doing it once.
func (a *Accounts) ResetFactor(ctx context.Context) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "role", string(right.Owner))
		if err != nil {
			return fmt.Errorf("looking for the owner: %w", err)
		}
		for _, q := range []string{
			"UPDATE person SET totp = NULL, totp_step = 0, totp_pending = NULL WHERE id = ?",
			"DELETE FROM recovery WHERE person = ?", "DELETE FROM session WHERE person = ?", "DELETE FROM device WHERE person = ?",
		} {
			if _, err := tx.ExecContext(ctx, q, r.ID); err != nil {
				return fmt.Errorf("removing the second factor: %w", err)
			}
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM guess WHERE lookup = ?", a.lookup(r.Email))
		return err
	})
}

// NewRecoveryCodes makes ten codes in the place of all before.
func (a *Accounts) NewRecoveryCodes(ctx context.Context, p Person) (codes []string, err error) {
	for range onetime.RecoveryCodes {
		codes = append(codes, onetime.NewRecoveryCode())
	}
	err = a.db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM recovery WHERE person = ?", p.ID); err != nil {
			return fmt.Errorf("removing the old recovery codes: %w", err)
		}
		for _, c := range codes {
			if _, err := tx.ExecContext(ctx, "INSERT INTO recovery (person, hash) VALUES (?, ?)", p.ID, digest(c)); err != nil {
				return fmt.Errorf("storing the recovery codes: %w", err)
			}
		}
		return nil
	})
	return codes, err
}

// useRecoveryCode uses a code up: one statement finds and marks it, so that of
// any number of tries at once one wins.
func (a *Accounts) useRecoveryCode(ctx context.Context, p Person, code string) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "UPDATE recovery SET used = ? WHERE person = ? AND hash = ? AND used IS NULL", a.wall().Unix(), p.ID, digest(code))
		if err != nil {
			return fmt.Errorf("using a recovery code: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return wrong("This recovery code is not one of yours, or was used before.")
		}
		return nil
	})
}

// IsRecoveryCode says whether a typed code is one of the person's, without using it up.
func (a *Accounts) IsRecoveryCode(ctx context.Context, p Person, typed string) (ok bool, err error) {
	if _, err := onetime.ParseRecoveryCode(typed); err != nil {
		return false, refuse("That is not a recovery code: %v.", err)
	}
	return a.holdsRecoveryCode(ctx, p.ID, typed)
}

func (a *Accounts) holdsRecoveryCode(ctx context.Context, person int64, typed string) (ok bool, err error) {
	code, err := onetime.ParseRecoveryCode(typed)
	if err != nil {
		return false, nil
	}
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT count(*) FROM recovery WHERE person = ? AND hash = ? AND used IS NULL", person, digest(code)).Scan(&ok)
	})
	return ok, err
}

// RecoveryLeft counts the codes that are not used.
func (a *Accounts) RecoveryLeft(ctx context.Context, p Person) (n int, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT count(*) FROM recovery WHERE person = ? AND used IS NULL", p.ID).Scan(&n)
	})
	return n, err
}
