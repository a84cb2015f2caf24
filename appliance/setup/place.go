package setup

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the image has no zoneinfo of its own
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/store"
	"gatehouse/firmware/window"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Domain is this package's tables.
func Domain() store.Domain {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	return store.Domain{Name: "setup", Migrations: sub}
}

// Place is where the box stands and when it may be updated.
type Place struct {
	Site   string `json:"site"`   // what people call it
	Zone   string `json:"zone"`   // IANA name of the time zone
	Window string `json:"window"` // when updates may restart the box: a key of Windows
}

// Window is one choice of when updates may restart the box, in local time.
type Window struct {
	Key, Words string
	hours      string // as package window reads them
}

// Windows are the choices.
var Windows = []Window{
	{"night", "Every night, 02:00 to 04:00", "daily 02:00-04:00"},
	{"weekend", "Weekends, 02:00 to 06:00", "Sat,Sun 02:00-06:00"},
	{"asked", "Only when asked", ""},
}

// Check says what is wrong with a place.
func (p Place) Check() error {
	if n := utf8.RuneCountInString(strings.TrimSpace(p.Site)); n < 1 || n > 60 || strings.ContainsFunc(p.Site, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return refuse("The name of the site has to have 1 to 60 letters.")
	}
	if _, err := time.LoadLocation(p.Zone); err != nil || p.Zone == "" || p.Zone == "Local" {
		return refuse("%q is not a time zone. Give a name such as Europe/Vienna or UTC.", p.Zone)
	}
	for _, w := range Windows {
		if w.Key == p.Window {
			return nil
		}
	}
	return refuse("Choose one of the windows for updates.")
}

// Hours is the window in UTC, as updates go by it. Summer time moves what people
// call the same hour: it is that of now.
func (p Place) Hours(now time.Time) (string, error) {
	zone, err := time.LoadLocation(p.Zone)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(Windows, func(w Window) bool { return w.Key == p.Window })
	if i < 0 {
		return "", fmt.Errorf("%q is none of the windows for updates", p.Window)
	}
	w, err := window.Parse(Windows[i].hours)
	if err != nil {
		return "", err
	}
	_, east := now.In(zone).Zone()
	return w.UTC(time.Duration(east) * time.Second).String(), nil
}

// Todo is something of set-up that can be left for later.
type Todo string

// The things that the status page lists until they are done or dismissed.
const (
	TodoCodes Todo = "codes" // save the recovery codes
	TodoPlace Todo = "place" // say where the box stands
)

// Settings are what set-up stores.
type Settings struct{ DB *store.DB }

const (
	keyPlace = "place"
	keyDone  = "done." // followed by a Todo
)

// Place returns the stored place; without one a useful beginning.
func (s Settings) Place(ctx context.Context) (Place, error) {
	p := Place{Zone: "UTC", Window: Windows[0].Key}
	text, err := s.get(ctx, keyPlace)
	if err != nil || text == "" {
		return p, err
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, fmt.Errorf("reading the stored place: %w", err)
	}
	return p, nil
}

// SetPlace stores a place and notes that it is done.
func (s Settings) SetPlace(ctx context.Context, p Place) error {
	if err := p.Check(); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := s.set(ctx, keyPlace, string(b)); err != nil {
		return err
	}
	return s.Done(ctx, TodoPlace)
}

// Done notes that something was done or dismissed.
func (s Settings) Done(ctx context.Context, t Todo) error {
	return s.set(ctx, keyDone+string(t), "yes")
}

// Undone lists what is left, in the order of the wizard.
func (s Settings) Undone(ctx context.Context) (left []Todo, err error) {
	for _, t := range []Todo{TodoCodes, TodoPlace} {
		done, err := s.get(ctx, keyDone+string(t))
		if err != nil {
			return nil, err
		}
		if done == "" {
			left = append(left, t)
		}
	}
	return left, nil
}

func (s Settings) get(ctx context.Context, name string) (value string, err error) {
	err = s.DB.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT value FROM setting WHERE name = ?", name).Scan(&value)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, err
}

func (s Settings) set(ctx context.Context, name, value string) error {
	return s.DB.Update(ctx, func(tx *sql.Tx) error { return put(ctx, tx, name, value) })
}

func put(ctx context.Context, tx *sql.Tx, name, value string) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	return err
}

// Export is the stored place; nil if there is none.
func (s Settings) Export(ctx context.Context) (*Place, error) {
	text, err := s.get(ctx, keyPlace)
	if err != nil || text == "" {
		return nil, err
	}
	p, err := s.Place(ctx)
	return &p, err
}

// Import stores a place of another box.
func (s Settings) Import(ctx context.Context, tx *sql.Tx, p Place) error {
	if err := p.Check(); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := put(ctx, tx, keyPlace, string(b)); err != nil {
		return err
	}
	return put(ctx, tx, keyDone+string(TodoPlace), "yes")
}
