// Package store opens the box's database, brings it up to date, and encrypts single fields of it; each domain keeps its own tables and queries.
//
// One SQLite file in write-ahead mode with synchronous=FULL: a transaction
// that returned is on disk. One connection is used for everything: the box has
// two cores and few people, one page cache is a quarter of the memory of four,
// and nothing can ever meet SQLITE_BUSY. A query must therefore be read to its
// end before the next is asked, which Update and View keep easy.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Problem says that the database cannot be used. The file is left exactly as
// it was found: making a new one would turn a damaged box into an unowned one.
type Problem struct {
	What string
	Err  error
}

func (p *Problem) Error() string {
	s := "the database cannot be used: " + p.What
	if p.Err != nil {
		s += ": " + p.Err.Error()
	}
	return s + "; nothing was changed, restore a backup or erase at the console"
}

func (p *Problem) Unwrap() error { return p.Err }

// DB is the open database.
type DB struct {
	sql    *sql.DB
	fields fieldKeys
	broken atomic.Pointer[Problem]
}

// Pragmas of every connection. trusted_schema and cell_size_check distrust the
// file: dm-crypt has no integrity, so its bytes may have been replayed.
var pragmas = []string{
	"busy_timeout(5000)",
	"journal_mode(WAL)",
	"synchronous(FULL)",
	"foreign_keys(ON)",
	"trusted_schema(OFF)",
	"cell_size_check(ON)",
	"secure_delete(ON)",
	"mmap_size(0)",
	"cache_size(-512)",
	"wal_autocheckpoint(128)",
	"journal_size_limit(1048576)",
}

// Open opens or makes the database at path and applies the migrations of all
// domains. An error that is a *Problem means the file is damaged or foreign.
func Open(ctx context.Context, path string, keys Keys, domains ...Domain) (*DB, error) {
	fields, err := keys.derive()
	if err != nil {
		return nil, err
	}
	if err := looksLikeDatabase(path); err != nil {
		return nil, err
	}
	q := url.Values{"_txlock": {"immediate"}, "_pragma": pragmas}
	pool, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	pool.SetMaxOpenConns(1)
	db := &DB{sql: pool, fields: fields}
	if err := db.check(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	for _, d := range domains {
		if err := db.migrate(ctx, d); err != nil {
			pool.Close()
			return nil, err
		}
	}
	return db, os.Chmod(path, 0o600)
}

// looksLikeDatabase refuses a file that SQLite would refuse later, and with
// worse words. A missing or empty file is a first start: what decides whether
// this box has an owner is not this file alone (see the claim's two facts).
func looksLikeDatabase(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &Problem{"it cannot be read", err}
	}
	defer f.Close()
	head := make([]byte, 16)
	n, err := f.Read(head)
	if n == 0 {
		return nil
	}
	if n < 16 || string(head) != "SQLite format 3\x00" {
		return &Problem{"the file is not a database", err}
	}
	return nil
}

// check runs SQLite's own integrity check. On a box's few hundred kilobytes it
// costs milliseconds, so it is run at every start.
func (db *DB) check(ctx context.Context) error {
	rows, err := db.sql.QueryContext(ctx, "PRAGMA integrity_check(1)")
	if err != nil {
		return &Problem{"it is damaged", err}
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return &Problem{"it is damaged", err}
		}
		if line != "ok" {
			return &Problem{"it is damaged", errors.New(line)}
		}
	}
	if err := rows.Err(); err != nil {
		return &Problem{"it is damaged", err}
	}
	return nil
}

// Close writes the write-ahead log back and closes the file.
func (db *DB) Close() error { return db.sql.Close() }

// Update runs f in one transaction, which is on disk when Update returns nil.
// After an input or output error the database refuses every further change
// until the process is started anew: SQLite cannot know what an fsync that
// failed has left on disk, and a second try might report success for nothing.
func (db *DB) Update(ctx context.Context, f func(tx *sql.Tx) error) error {
	if p := db.broken.Load(); p != nil {
		return p
	}
	err := db.within(ctx, f)
	if isIOError(err) {
		db.broken.CompareAndSwap(nil, &Problem{"writing it failed", err})
	}
	return err
}

// View runs f in a transaction that is rolled back.
func (db *DB) View(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("reading the database: %w", err)
	}
	defer tx.Rollback()
	return f(tx)
}

func (db *DB) within(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("changing the database: %w", err)
	}
	defer tx.Rollback() // does nothing after Commit
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("writing the database: %w", err)
	}
	return nil
}

func isIOError(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}
