package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

var keys = Keys{Fields: bytes.Repeat([]byte{1}, 32), Pepper: bytes.Repeat([]byte{2}, 32)}

func notes(files ...string) Domain {
	fs := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		fs[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return Domain{"notes", fs}
}

var first = notes("0001.sql", "CREATE TABLE note (id INTEGER PRIMARY KEY, text BLOB) STRICT;")

func open(t *testing.T, path string, d ...Domain) *DB {
	t.Helper()
	db, err := Open(t.Context(), path, keys, d...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func insert(t *testing.T, db *DB, text string) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO note (text) VALUES (?)", []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, db *DB) (n int) {
	t.Helper()
	err := db.View(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRow("SELECT count(*) FROM note").Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOpenRefusesAForeignFileAndLeavesIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	for _, content := range []string{"short", strings.Repeat("not a database ", 100)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path, keys, first)
		var p *Problem
		if !errors.As(err, &p) {
			t.Fatalf("got %v, want a Problem", err)
		}
		if b, _ := os.ReadFile(path); string(b) != content {
			t.Fatal("the foreign file was changed")
		}
	}
}

func TestOpenRefusesADamagedDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(t.Context(), path, keys, first)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		insert(t, db, strings.Repeat("x", 200))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 5 * 4096; i < 6*4096; i++ {
		b[i] ^= 0x5a
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), path, keys, first)
	var p *Problem
	if !errors.As(err, &p) {
		t.Fatalf("got %v, want a Problem", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, b) {
		t.Fatal("the damaged file was changed")
	}
}

func TestOpenRefusesShortKeys(t *testing.T) {
	_, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), Keys{Fields: make([]byte, 16), Pepper: make([]byte, 32)})
	if err == nil {
		t.Fatal("a key of 16 bytes was taken")
	}
}

func TestMigrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(t.Context(), path, keys, first)
	if err != nil {
		t.Fatal(err)
	}
	insert(t, db, "kept")
	db.Close()

	second := notes("0001.sql", string(first.Migrations.(fstest.MapFS)["0001.sql"].Data),
		"0002.sql", "ALTER TABLE note ADD COLUMN at INTEGER; CREATE INDEX note_at ON note(at);")
	db, err = Open(t.Context(), path, keys, second)
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows after the second migration, want 1", n)
	}
	db.Close()

	for name, d := range map[string]Domain{
		"older program":   first,
		"another wording": notes("0001.sql", "CREATE TABLE note (id INTEGER PRIMARY KEY) STRICT;", "0002.sql", "SELECT 1;"),
	} {
		var p *Problem
		if _, err := Open(t.Context(), path, keys, d); !errors.As(err, &p) {
			t.Errorf("%s: got %v, want a Problem", name, err)
		}
	}
}

func TestAMigrationThatFailsLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	bad := notes("0001.sql", "CREATE TABLE note (id INTEGER PRIMARY KEY) STRICT;", "0002.sql", "CREATE TABLE note (id INTEGER);")
	if _, err := Open(t.Context(), path, keys, bad); err == nil {
		t.Fatal("a migration that cannot apply was accepted")
	}
	open(t, path, first) // would fail if 0001 had stayed in its other wording
}

func TestKEY4_FieldsOpenOnlyInTheirOwnCell(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	home := Cell{"person", "email", 7}
	sealed := db.Seal(home, []byte("ada@example.org"))
	if bytes.Contains(sealed, []byte("ada@example")) {
		t.Fatal("the value is readable")
	}
	if bytes.Equal(sealed, db.Seal(home, []byte("ada@example.org"))) {
		t.Error("two seals of one value are the same")
	}
	for _, c := range []Cell{{"person", "email", 8}, {"person", "name", 7}, {"people", "email", 7}} {
		if _, err := db.Unseal(c, sealed); err == nil {
			t.Errorf("opened in %v", c)
		}
	}
	for i := range sealed {
		turned := bytes.Clone(sealed)
		turned[i] ^= 1
		if _, err := db.Unseal(home, turned); err == nil {
			t.Fatalf("opened with byte %d turned", i)
		}
	}
	got, err := db.Unseal(home, sealed)
	if err != nil || string(got) != "ada@example.org" {
		t.Fatalf("got %q, %v", got, err)
	}
	other, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), Keys{Fields: bytes.Repeat([]byte{3}, 32), Pepper: keys.Pepper})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Unseal(home, sealed); err == nil {
		t.Error("opened under another key")
	}
}

func TestLookupIsKeyedAndKeepsKindsApart(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	a := db.Lookup("email", "ada@example.org")
	if !bytes.Equal(a, db.Lookup("email", "ada@example.org")) {
		t.Error("the same value gives two lookups")
	}
	if bytes.Equal(a, db.Lookup("token", "ada@example.org")) {
		t.Error("two kinds give one lookup")
	}
}

func TestFileOnDiskHoldsNoPlainField(t *testing.T) {
	dir := t.TempDir()
	db := open(t, filepath.Join(dir, "db"), first)
	insert(t, db, string(db.Seal(Cell{"note", "text", 1}, []byte("canary-5f1e"))))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("canary-5f1e")) {
			t.Errorf("%s holds the plain value", e.Name())
		}
	}
}

func TestUpdateThatFailsChangesNothing(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"), first)
	want := errors.New("no")
	err := db.Update(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO note (text) VALUES (x'00')"); err != nil {
			return err
		}
		return want
	})
	if !errors.Is(err, want) || count(t, db) != 0 {
		t.Fatalf("err %v, %d rows", err, count(t, db))
	}
}

func TestWritesAreRefusedAfterAnIOError(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"), first)
	db.broken.Store(&Problem{"writing it failed", errors.New("input/output error")})
	ran := false
	err := db.Update(t.Context(), func(*sql.Tx) error { ran = true; return nil })
	var p *Problem
	if !errors.As(err, &p) || ran {
		t.Fatalf("err %v, ran %v", err, ran)
	}
	if count(t, db) != 0 {
		t.Error("reading must go on")
	}
}

func TestCommittedRowsSurviveACopyTakenWithoutClosing(t *testing.T) {
	dir := t.TempDir()
	db := open(t, filepath.Join(dir, "db"), first)
	insert(t, db, "acknowledged")
	copied := t.TempDir()
	for _, name := range []string{"db", "db-wal"} { // what a power cut leaves
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, open(t, filepath.Join(copied, "db"), first)); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestOpenStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, filepath.Join(t.TempDir(), "db"), keys, first); err == nil {
		t.Fatal("opened under a context that had ended")
	}
}
