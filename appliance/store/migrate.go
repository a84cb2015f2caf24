package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Domain is one owner of tables: its name and its migrations, SQL files that
// are applied once each, in the order of their names.
type Domain struct {
	Name       string
	Migrations fs.FS
}

const migrationTable = `CREATE TABLE IF NOT EXISTS migration (
	domain TEXT NOT NULL,
	name   TEXT NOT NULL,
	sha256 TEXT NOT NULL,
	PRIMARY KEY (domain, name)
) STRICT, WITHOUT ROWID`

// migrate applies what is missing. A migration and its record are one
// transaction: a power cut leaves both or neither. One that was applied in
// another wording, or that this program does not know, means that the file
// belongs to another version, and is a Problem.
func (db *DB) migrate(ctx context.Context, d Domain) error {
	names, err := fs.Glob(d.Migrations, "*.sql")
	if err != nil {
		return fmt.Errorf("listing the migrations of %s: %w", d.Name, err)
	}
	slices.Sort(names)
	return db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, migrationTable); err != nil {
			return &Problem{"the table of migrations cannot be made", err}
		}
		if err := unknownMigration(ctx, tx, d.Name, names); err != nil {
			return err
		}
		for _, name := range names {
			if err := apply(ctx, tx, d, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func unknownMigration(ctx context.Context, tx *sql.Tx, domain string, names []string) error {
	rows, err := tx.QueryContext(ctx, "SELECT name FROM migration WHERE domain = ?", domain)
	if err != nil {
		return &Problem{"its migrations cannot be read", err}
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return &Problem{"its migrations cannot be read", err}
		}
		if !slices.Contains(names, name) {
			return &Problem{What: fmt.Sprintf("it was written by a newer version (%s/%s)", domain, name)}
		}
	}
	return rows.Err()
}

func apply(ctx context.Context, tx *sql.Tx, d Domain, name string) error {
	text, err := fs.ReadFile(d.Migrations, name)
	if err != nil {
		return fmt.Errorf("reading migration %s/%s: %w", d.Name, name, err)
	}
	digest := sha256.Sum256(text)
	sum := hex.EncodeToString(digest[:])
	var applied string
	err = tx.QueryRowContext(ctx, "SELECT sha256 FROM migration WHERE domain = ? AND name = ?", d.Name, name).Scan(&applied)
	switch {
	case err == nil && applied == sum:
		return nil
	case err == nil:
		return &Problem{What: fmt.Sprintf("migration %s/%s was applied in another wording", d.Name, name)}
	case !errors.Is(err, sql.ErrNoRows):
		return &Problem{"its migrations cannot be read", err}
	}
	if _, err := tx.ExecContext(ctx, string(text)); err != nil {
		return &Problem{fmt.Sprintf("migration %s/%s does not apply", d.Name, name), err}
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO migration (domain, name, sha256) VALUES (?, ?, ?)", d.Name, name, sum)
	if err != nil {
		return fmt.Errorf("recording migration %s/%s: %w", d.Name, name, err)
	}
	return nil
}
