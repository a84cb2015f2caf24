// Package account keeps the people of the box: their passwords, second factors, sessions, and the brakes on guessing.
package account

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Domain is this package's tables.
func Domain() store.Domain {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	return store.Domain{Name: "account", Migrations: sub}
}

// Person is somebody who may sign in.
type Person struct {
	ID      int64
	Name    string
	Email   string
	Role    right.Role
	Factor  bool // has a verified second factor
	Created time.Time
}

// Config is what Accounts work with.
type Config struct {
	DB *store.DB
	// Wall is the clock on the wall, which codes are made for.
	Wall func() time.Time
	// Steady is a clock that is never set: a clock that is put right during
	// set-up must not sign the person out who did it.
	Steady func() time.Time
}

// hasher is a password.Hasher.
type hasher interface {
	Make(ctx context.Context, pw string) (string, error)
	Check(ctx context.Context, pw, hash string, known bool) (bool, error)
}

// Accounts are the people of the box.
type Accounts struct {
	db     *store.DB
	wall   func() time.Time
	steady func() time.Time
	hasher hasher
	brakes *brakes

	failures atomic.Uint64 // wrong passwords and codes
}

// New makes Accounts over an open database with Domain's tables.
func New(c Config) *Accounts {
	return &Accounts{db: c.DB, wall: c.Wall, steady: c.Steady, hasher: password.NewHasher(), brakes: newBrakes(c.Steady)}
}

// Refusal is what a person is told: what happened, why, what to do.
type Refusal struct {
	Text  string
	Wrong bool // a secret was judged and not right, not just held back
}

func (r *Refusal) Error() string { return r.Text }

func refuse(format string, args ...any) error { return &Refusal{Text: fmt.Sprintf(format, args...)} }

func wrong(format string, args ...any) error { return &Refusal{fmt.Sprintf(format, args...), true} }

// Owner is what a claim says about the first person.
type Owner struct{ Name, Email, Password string }

// Check says what is wrong with an owner's particulars; box is the name of the box.
func (o Owner) Check(box string) error {
	if err := o.checkName(); err != nil {
		return err
	}
	if p := password.Problem(o.Password, o.Name, o.Email, box); p != "" {
		return refuse("%s", p)
	}
	return nil
}

func (o Owner) checkName() error {
	if err := CheckEmail(o.Email); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(strings.TrimSpace(o.Name)); n < 1 || n > 100 || !printable(o.Name) {
		return refuse("The name has to have 1 to 100 letters, and no control characters.")
	}
	return nil
}

// CheckEmail says whether an e-mail address can be one. It is a name to sign
// in with; no mail is sent to it, so its domain is not looked up.
func CheckEmail(s string) error {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || domain == "" || len(s) > 254 || !printable(s) || strings.ContainsAny(s, " <>\"'(),;:\\[]") || strings.Contains(domain, "@") {
		return refuse("%q is not an e-mail address. It is needed as the name to sign in with, such as ada@example.org.", shorten(s, 80))
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func normalEmail(s string) string { return strings.ToLower(strings.TrimSpace(s)) }

func (a *Accounts) lookup(email string) []byte {
	return a.db.Lookup("person.email", normalEmail(email))
}

func emailCell(id int64) store.Cell { return store.Cell{Table: "person", Column: "email", Row: id} }
func nameCell(id int64) store.Cell  { return store.Cell{Table: "person", Column: "name", Row: id} }
func passwordCell(id int64) store.Cell {
	return store.Cell{Table: "person", Column: "password", Row: id}
}
func totpCell(id int64) store.Cell { return store.Cell{Table: "person", Column: "totp", Row: id} }

// row is a person as stored.
type row struct {
	Person
	hash    string
	secret  []byte // nil without a factor
	pending []byte
	step    int64
	claimed bool
}

var errUnknown = errors.New("there is no such person")

func (a *Accounts) load(ctx context.Context, tx *sql.Tx, where string, arg any) (row, error) {
	var (
		r                         row
		email, name, hash         []byte
		secret, pending           []byte
		role, claim               string
		created                   int64
		query                     = "SELECT id, email, name, role, claim, password, totp, totp_step, totp_pending, created FROM person WHERE " + where + " = ?"
		err                       = tx.QueryRowContext(ctx, query, arg).Scan(&r.ID, &email, &name, &role, &claim, &hash, &secret, &r.step, &pending, &created)
		open                      = func(c store.Cell, sealed []byte) (b []byte, e error) { return a.db.Unseal(c, sealed) }
		plainEmail, plainName, pw []byte
	)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, errUnknown
	}
	if err != nil {
		return row{}, fmt.Errorf("reading a person: %w", err)
	}
	if r.Role, err = right.ParseRole(role); err != nil {
		return row{}, fmt.Errorf("reading person %d: %w", r.ID, err)
	}
	if plainEmail, err = open(emailCell(r.ID), email); err != nil {
		return row{}, err
	}
	if plainName, err = open(nameCell(r.ID), name); err != nil {
		return row{}, err
	}
	if pw, err = open(passwordCell(r.ID), hash); err != nil {
		return row{}, err
	}
	if secret != nil {
		if r.secret, err = open(totpCell(r.ID), secret); err != nil {
			return row{}, err
		}
	}
	if pending != nil {
		if r.pending, err = open(totpCell(r.ID), pending); err != nil {
			return row{}, err
		}
	}
	r.Email, r.Name, r.hash = string(plainEmail), string(plainName), string(pw)
	r.Factor, r.claimed, r.Created = r.secret != nil, claim == "claimed", time.Unix(created, 0)
	return r, nil
}

// Person returns one person.
func (a *Accounts) Person(ctx context.Context, id int64) (p Person, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		r, err := a.load(ctx, tx, "id", id)
		p = r.Person
		return err
	})
	return p, err
}

// CheckNewPassword says what is wrong with a password that a person wants to change to.
func (a *Accounts) CheckNewPassword(p Person, pw, box string) error {
	if problem := password.Problem(pw, p.Name, p.Email, box); problem != "" {
		return refuse("%s", problem)
	}
	return nil
}

// SetPassword changes a password and ends all other sessions of the person,
// and forgets their browsers: whoever knew the old one is out.
func (a *Accounts) SetPassword(ctx context.Context, p Person, pw string, keep int64) error {
	hash, err := a.hasher.Make(ctx, pw)
	if err != nil {
		return fmt.Errorf("hashing the password: %w", err)
	}
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE person SET password = ? WHERE id = ?", a.db.Seal(passwordCell(p.ID), []byte(hash)), p.ID); err != nil {
			return fmt.Errorf("storing the password: %w", err)
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM device WHERE person = ?", p.ID); err != nil {
			return fmt.Errorf("forgetting the known browsers: %w", err)
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM session WHERE person = ? AND id <> ?", p.ID, keep)
		return err
	})
}
