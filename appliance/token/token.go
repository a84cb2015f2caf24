// Package token keeps the secrets by which programs ask the API: each for one scope, no wider than what its maker may.
//
// A token is shown once and stored as a keyed hash. It is judged at each use
// by the rights that its maker has then; it never stands in for a person.
package token

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Domain is this package's tables. It comes after account's, whose people made
// the tokens.
func Domain() store.Domain {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	return store.Domain{Name: "token", Migrations: sub}
}

// Scope is what a token is good for.
type Scope string

// Metrics reads /metrics and nothing else.
const Metrics Scope = "metrics"

// needs says which right the maker of a token needs, at its making and at each
// use. A scope that is not here does not exist.
var needs = map[Scope]right.Right{Metrics: right.ReadStatus}

// Limits.
const (
	Prefix    = "gh_" // by which tokens are found in places where they should not be
	random    = 32    // bytes
	most      = 32    // tokens of a box
	MaxDays   = 3650
	usedEvery = time.Minute // how exactly the last use is known: each note is a write to the disk
)

// Token is one as it is listed.
type Token struct {
	ID      int64     `json:"id"`
	Name    string    `json:"name"`
	Scope   Scope     `json:"scope"`
	Maker   string    `json:"maker"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Used    time.Time `json:"used,omitzero"`    // zero: never; to a minute
	Source  string    `json:"source,omitempty"` // of the last use
	Expired bool      `json:"expired"`
}

// Tokens are those of the box.
type Tokens struct {
	db       *store.DB
	accounts *account.Accounts
	wall     func() time.Time
	brake    *brake
}

// New makes Tokens over an open database. Expiry goes by the wall, steady is
// for the brake alone.
func New(db *store.DB, a *account.Accounts, wall, steady func() time.Time) *Tokens {
	return &Tokens{db: db, accounts: a, wall: wall, brake: newBrake(steady)}
}

func refuse(format string, a ...any) error { return &account.Refusal{Text: fmt.Sprintf(format, a...)} }

// Check says what is wrong with a token to be made. Days are until it expires;
// 0: never.
func Check(maker account.Person, name string, scope Scope, days int) error {
	need, known := needs[scope]
	switch n := utf8.RuneCountInString(name); {
	case !known:
		return refuse("%.40q is no scope of a token. There is one: metrics.", scope)
	case !right.May(maker.Role, right.ManageTokens) || !right.May(maker.Role, need):
		return refuse("A token can do no more than its maker, and your role (%s) may not make this one.", maker.Role)
	case n < 1 || n > 60 || strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return refuse("A token has a name of 1 to 60 letters that says who uses it, such as prometheus.")
	case days < 0 || days > MaxDays:
		return refuse("A token is good for 1 to %d days, or, with 0, until it is revoked.", MaxDays)
	}
	return nil
}

// Make makes a token; its text is never to be had again.
func (t *Tokens) Make(ctx context.Context, maker account.Person, name string, scope Scope, days int) (Token, string, error) {
	if err := Check(maker, name, scope, days); err != nil {
		return Token{}, "", err
	}
	b := make([]byte, random)
	rand.Read(b)
	text := Prefix + base64.RawURLEncoding.EncodeToString(b)
	made := Token{Name: name, Scope: scope, Maker: maker.Email, Created: t.wall()}
	expires := int64(0)
	if days > 0 {
		made.Expires = made.Created.Add(time.Duration(days) * 24 * time.Hour)
		expires = made.Expires.Unix()
	}
	err := t.db.Update(ctx, func(tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM token").Scan(&n); err != nil {
			return fmt.Errorf("counting tokens: %w", err)
		}
		if n >= most {
			return refuse("There are %d tokens, which is the most. Revoke one that is not used.", n)
		}
		r, err := tx.ExecContext(ctx, "INSERT INTO token (lookup, name, scope, person, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
			t.lookup(text), name, string(scope), maker.ID, made.Created.Unix(), expires)
		if err != nil {
			return fmt.Errorf("storing a token: %w", err)
		}
		made.ID, err = r.LastInsertId()
		return err
	})
	return made, text, err
}

func (t *Tokens) lookup(text string) []byte { return t.db.Lookup("token", text) }

// found is a row, with who made it.
type found struct {
	Token
	person int64
}

const columns = "id, name, scope, person, created, expires, used, source"

func (t *Tokens) scan(row interface{ Scan(...any) error }) (f found, err error) {
	var created, expires, used int64
	err = row.Scan(&f.ID, &f.Name, &f.Scope, &f.person, &created, &expires, &used, &f.Source)
	f.Created = time.Unix(created, 0)
	if expires != 0 {
		f.Expires = time.Unix(expires, 0)
		f.Expired = !t.wall().Before(f.Expires)
	}
	if used != 0 {
		f.Used = time.Unix(used, 0)
	}
	return f, err
}

// List lists all, oldest first.
func (t *Tokens) List(ctx context.Context) ([]Token, error) {
	var rows []found
	err := t.db.View(ctx, func(tx *sql.Tx) error {
		r, err := tx.QueryContext(ctx, "SELECT "+columns+" FROM token ORDER BY id")
		if err != nil {
			return err
		}
		defer r.Close()
		for r.Next() {
			f, err := t.scan(r)
			if err != nil {
				return err
			}
			rows = append(rows, f)
		}
		return r.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	list := make([]Token, 0, len(rows))
	for _, f := range rows {
		p, err := t.accounts.Person(ctx, f.person)
		if err != nil {
			return nil, err
		}
		f.Maker = p.Email
		list = append(list, f.Token)
	}
	return list, nil
}

// Find returns one token, for the entry in the audit log before Revoke.
func (t *Tokens) Find(ctx context.Context, id int64) (Token, error) {
	list, err := t.List(ctx)
	for _, one := range list {
		if one.ID == id {
			return one, nil
		}
	}
	return Token{}, errors.Join(err, refuse("There is no such token. It may have been revoked already."))
}

// Revoke ends a token at once.
func (t *Tokens) Revoke(ctx context.Context, id int64) error {
	return t.db.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM token WHERE id = ?", id)
		return err
	})
}

// ErrNot is every token that is not good: wrong, revoked, expired, of another
// scope, of a maker who lost the right. The asker is not told which.
var ErrNot = errors.New("the token is not valid for this")

// BusyError is a source that has to wait.
type BusyError struct{ Wait time.Duration }

func (b *BusyError) Error() string { return "too many wrong tokens from this address" }

// Use judges a token. A wrong one counts against its source; a right one
// passes only while the source need not wait, or the brake would tell guessers
// which is right.
func (t *Tokens) Use(ctx context.Context, text string, scope Scope, o account.Origin) (Token, error) {
	if wait := t.brake.take(o.Source); wait > 0 {
		return Token{}, &BusyError{wait}
	}
	if !strings.HasPrefix(text, Prefix) || len(text) != len(Prefix)+base64.RawURLEncoding.EncodedLen(random) {
		return Token{}, ErrNot
	}
	var f found
	err := t.db.View(ctx, func(tx *sql.Tx) (err error) {
		f, err = t.scan(tx.QueryRowContext(ctx, "SELECT "+columns+" FROM token WHERE lookup = ?", t.lookup(text)))
		return err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Token{}, ErrNot
	case err != nil:
		return Token{}, fmt.Errorf("looking for a token: %w", err)
	case f.Expired || f.Scope != scope:
		return Token{}, ErrNot
	}
	maker, err := t.accounts.Person(ctx, f.person)
	if err != nil {
		return Token{}, err
	}
	if !right.May(maker.Role, right.ManageTokens) || !right.May(maker.Role, needs[scope]) {
		return Token{}, ErrNot
	}
	t.brake.succeeded(o.Source)
	if now, from := t.wall(), o.From(); now.Sub(f.Used).Abs() >= usedEvery || f.Source != from {
		// On a full disk the last use is not noted; who watches the box has to
		// see exactly that disk.
		_ = t.db.Update(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE token SET used = ?, source = ? WHERE id = ?", now.Unix(), from, f.ID)
			return err
		})
	}
	f.Maker = maker.Email
	return f.Token, nil
}

// Refused is how many were wrong since the start.
func (t *Tokens) Refused() uint64 { return t.brake.wrong() }
