package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/account/right"
)

// Claim is what the database says about an owner.
type Claim string

// The sides of a claim: a pending owner is written before the commit point and
// is nobody until it.
const (
	Unclaimed Claim = "unclaimed"
	Pending   Claim = "pending"
	Claimed   Claim = "claimed"
)

// Claim tells whether there is an owner, and who.
func (a *Accounts) Claim(ctx context.Context) (c Claim, owner Person, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "role", string(right.Owner))
		switch {
		case errors.Is(err, errUnknown):
			c = Unclaimed
			return nil
		case err != nil:
			return err
		}
		owner, c = r.Person, Pending
		if r.claimed {
			c = Claimed
		}
		return nil
	})
	return c, owner, err
}

// AddPendingOwner writes the owner of a claim that is not committed yet, in
// the place of one that was begun and not finished. It refuses when there is
// an owner.
//
// A power cut before the commit point leaves a pending owner that the next
// start discards; one after it leaves a pending owner that the next start
// makes claimed.
func (a *Accounts) AddPendingOwner(ctx context.Context, o Owner) (Person, error) {
	hash, err := a.hasher.Make(ctx, o.Password)
	if err != nil {
		return Person{}, fmt.Errorf("hashing the password: %w", err)
	}
	return a.addPending(ctx, o, hash)
}

// AddSeededOwner does the same for an owner whose password was hashed
// elsewhere, in this program's one form: nobody here can tell how good it is,
// and who hashed it had it judged (gatehouse image customize).
func (a *Accounts) AddSeededOwner(ctx context.Context, name, email, hash string) (Person, error) {
	o := Owner{Name: name, Email: email}
	if err := o.checkName(); err != nil {
		return Person{}, err
	}
	if err := password.CheckHash(hash); err != nil {
		return Person{}, refuse("The owner's password cannot be used: %v.", err)
	}
	return a.addPending(ctx, o, hash)
}

func (a *Accounts) addPending(ctx context.Context, o Owner, hash string) (Person, error) {
	var p Person
	err := a.db.Update(ctx, func(tx *sql.Tx) error {
		var people int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM person WHERE claim = 'claimed'").Scan(&people); err != nil {
			return fmt.Errorf("counting people: %w", err)
		}
		if people > 0 {
			return refuse("This box has an owner.")
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM person"); err != nil {
			return fmt.Errorf("discarding an owner who was not finished: %w", err)
		}
		const id = 1
		now := a.wall()
		_, err := tx.ExecContext(ctx, `INSERT INTO person (id, lookup, email, name, role, claim, password, created) VALUES (?, ?, ?, ?, ?, 'pending', ?, ?)`,
			id, a.lookup(o.Email), a.db.Seal(emailCell(id), []byte(normalEmail(o.Email))), a.db.Seal(nameCell(id), []byte(o.Name)),
			string(right.Owner), a.db.Seal(passwordCell(id), []byte(hash)), now.Unix())
		if err != nil {
			return fmt.Errorf("storing the owner: %w", err)
		}
		r, err := a.load(ctx, tx, "id", id)
		p = r.Person
		return err
	})
	return p, err
}

// FinishClaim makes the pending owner the owner, after the commit point.
func (a *Accounts) FinishClaim(ctx context.Context) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "UPDATE person SET claim = 'claimed' WHERE claim = 'pending'")
		if err != nil {
			return fmt.Errorf("finishing the claim: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("finishing the claim: %d pending owners, want 1 (%v)", n, err)
		}
		return nil
	})
}

// DiscardPending removes an owner whose claim was not committed.
func (a *Accounts) DiscardPending(ctx context.Context) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM person WHERE claim = 'pending'")
		return err
	})
}
