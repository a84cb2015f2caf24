package account

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/account/password"
	"gatehouse/appliance/account/right"
)

// Moved is a person on the way to another box: what a person knows and has stays
// good there. Sessions, known browsers and the count of guesses stay behind.
type Moved struct {
	Name     string     `json:"name"`
	Email    string     `json:"email"`
	Role     right.Role `json:"role"`
	Password string     `json:"password"`           // argon2id, as it is stored
	Factor   []byte     `json:"factor,omitempty"`   // secret of TOTP
	Step     int64      `json:"step,omitempty"`     // newest code that was used
	Recovery [][]byte   `json:"recovery,omitempty"` // SHA-256 of the codes that are not used
	Created  time.Time  `json:"created"`
}

// factorSize is what onetime.NewSecret makes, in bytes.
const factorSize = 20

// maxMoved is far more people than a box has.
const maxMoved = 1000

// Export returns everybody who may sign in.
func (a *Accounts) Export(ctx context.Context) (list []Moved, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		ids, err := column[int64](ctx, tx, "SELECT id FROM person WHERE claim = 'claimed' ORDER BY id")
		if err != nil {
			return err
		}
		for _, id := range ids {
			r, err := a.load(ctx, tx, "id", id)
			if err != nil {
				return err
			}
			m := Moved{Name: r.Name, Email: r.Email, Role: r.Role, Password: r.hash, Factor: r.secret, Step: r.step, Created: r.Created.UTC()}
			if m.Recovery, err = column[[]byte](ctx, tx, "SELECT hash FROM recovery WHERE person = ? AND used IS NULL ORDER BY hash", id); err != nil {
				return err
			}
			list = append(list, m)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the people of the box: %w", err)
	}
	return list, nil
}

func column[T any](ctx context.Context, tx *sql.Tx, query string, args ...any) (list []T, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// CheckMoved says what is wrong with people who are to be taken. A box has one
// owner, who has to be among them: nobody else could take it back.
func CheckMoved(list []Moved) error {
	var seen []string
	owners := 0
	for _, m := range list {
		email := normalEmail(m.Email)
		if err := CheckEmail(email); err != nil {
			return err
		}
		switch _, err := right.ParseRole(string(m.Role)); {
		case err != nil:
			return refuse("%s has the role %.40q, which this version does not know.", email, m.Role)
		case slices.Contains(seen, email):
			return refuse("%s is there twice.", email)
		case strings.TrimSpace(m.Name) == "" || len(m.Name) > 400 || !printable(m.Name):
			return refuse("The name of %s cannot be one.", email)
		case !password.IsHash(m.Password):
			return refuse("The password of %s is not kept in the form of this version.", email)
		case m.Factor != nil && len(m.Factor) != factorSize:
			return refuse("The second factor of %s is not one of this version.", email)
		case len(m.Recovery) > onetime.RecoveryCodes || slices.ContainsFunc(m.Recovery, func(h []byte) bool { return len(h) != len(digest("")) }):
			return refuse("The recovery codes of %s are not in order.", email)
		}
		if m.Role == right.Owner {
			owners++
		}
		seen = append(seen, email)
	}
	switch {
	case owners != 1:
		return refuse("There are %d owners among the people, and a box has one.", owners)
	case len(list) > maxMoved:
		return refuse("There are %d people, and %d are the most.", len(list), maxMoved)
	}
	return nil
}

// Import puts the people in the place of those who are there. All sessions end,
// except keep if its person is among the new ones: who imports has just shown
// password and factor here. Tokens of people who stay are the box's own and
// stay with them; those of others go.
func (a *Accounts) Import(ctx context.Context, tx *sql.Tx, list []Moved, keep int64) error {
	if err := CheckMoved(list); err != nil {
		return err
	}
	stays := make(map[int64]bool)
	for _, m := range list {
		id, err := a.place(ctx, tx, m)
		if err != nil {
			return fmt.Errorf("importing %s: %w", m.Email, err)
		}
		stays[id] = true
	}
	all, err := column[int64](ctx, tx, "SELECT id FROM person")
	if err != nil {
		return err
	}
	for _, id := range all {
		if !stays[id] {
			if _, err := tx.ExecContext(ctx, "DELETE FROM person WHERE id = ?", id); err != nil {
				return err
			}
		}
	}
	for _, q := range []string{"DELETE FROM device", "DELETE FROM guess"} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, "DELETE FROM session WHERE id <> ?", keep)
	return err
}

// place writes one person, over the one of the same e-mail address if there is one.
func (a *Accounts) place(ctx context.Context, tx *sql.Tx, m Moved) (id int64, err error) {
	ids, err := column[int64](ctx, tx, "SELECT id FROM person WHERE lookup = ?", a.lookup(m.Email))
	if err != nil {
		return 0, err
	}
	if len(ids) == 0 {
		// The id is in what seals the fields, so the row comes first.
		r, err := tx.ExecContext(ctx, `INSERT INTO person (lookup, email, name, role, claim, password, created) VALUES (?, x'', x'', ?, 'claimed', x'', ?)`,
			a.lookup(m.Email), string(m.Role), m.Created.Unix())
		if err != nil {
			return 0, err
		}
		if id, err = r.LastInsertId(); err != nil {
			return 0, err
		}
	} else {
		id = ids[0]
	}
	// A code of the future must not be able to keep its person out, and one that was used
	// here is not good once more because the file is older.
	step := max(0, min(m.Step, onetime.Step(a.wall())))
	if len(ids) > 0 {
		before, err := a.load(ctx, tx, "id", id)
		if err != nil {
			return 0, err
		}
		if before.secret != nil && bytes.Equal(before.secret, m.Factor) {
			step = max(step, before.step)
		}
	}
	var factor []byte
	if m.Factor != nil {
		factor = a.db.Seal(totpCell(id), m.Factor)
	}
	_, err = tx.ExecContext(ctx, `UPDATE person SET email = ?, name = ?, role = ?, claim = 'claimed', password = ?, totp = ?, totp_step = ?, totp_pending = NULL WHERE id = ?`,
		a.db.Seal(emailCell(id), []byte(normalEmail(m.Email))), a.db.Seal(nameCell(id), []byte(m.Name)), string(m.Role), a.db.Seal(passwordCell(id), []byte(m.Password)), factor, step, id)
	if err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM recovery WHERE person = ?", id); err != nil {
		return 0, err
	}
	for _, h := range m.Recovery {
		if _, err := tx.ExecContext(ctx, "INSERT INTO recovery (person, hash) VALUES (?, ?)", id, h); err != nil {
			return 0, err
		}
	}
	return id, nil
}
