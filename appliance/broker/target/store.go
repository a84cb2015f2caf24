package target

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"time"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/control"
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
	return store.Domain{Name: "target", Migrations: sub}
}

// Config is what a Store is made of.
type Config struct {
	DB    *store.DB
	Box   string // its name, under which it is a target
	Wall  func() time.Time
	Audit func(context.Context, control.Event) error
	// Gone is told when a target is another machine now, or none.
	Gone func(ctx context.Context, id int64, why string)
}

// Store is the targets of the box. Its methods may run at the same time.
type Store struct{ cfg Config }

// New makes a Store over an open database.
func New(cfg Config) *Store { return &Store{cfg} }

const maxTargets = 1000

func (s *Store) audit(ctx context.Context, who asker.Who, action, object string, detail map[string]string) error {
	if err := s.cfg.Audit(ctx, who.Event(action, object, detail)); err != nil {
		return fmt.Errorf("%s is not recorded, and does not happen: %w", action, err)
	}
	return nil
}
