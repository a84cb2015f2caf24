// Package broker is the hub's part in sessions: it keeps targets and their credentials, grants sessions, tells agents of them, and keeps recordings.
//
// It signs with the organisation's key, which nobody else has: an agent serves,
// and a gateway joins, only what was signed here. What agents say comes over
// lines that they open (package attend). Every change is in the audit log
// before it is made.
package broker

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"gatehouse/appliance/broker/archive"
	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/broker/target"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/store"
	"gatehouse/appliance/task"
)

//go:embed migrations/*.sql
var migrations embed.FS

// domain is this package's own tables.
func domain() store.Domain {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	return store.Domain{Name: "broker", Migrations: sub}
}

// Limits.
const (
	maxLive     = 256            // sessions that are not over
	maxOfPerson = 64             // of them
	maxKept     = 2000           // sessions that are remembered
	life        = 12 * time.Hour // of a grant
	arrive      = session.MaxWait
	sweepEvery  = time.Second
	shortest    = 30 * time.Second // of a session that a restart cuts
)

// Config is what a Broker is made of.
type Config struct {
	DB      *store.DB
	Box     string // its name, under which it is a target
	Folder  string // of recordings
	Wall    func() time.Time
	Audit   func(context.Context, control.Event) error
	Meeting func(context.Context) (control.Meeting, error) // the gateway's key
	Free    func() (uint64, error)                         // bytes on the disk of Folder
	// SignedIn is which sign-ins there are. Who signs out, is signed out or has
	// been away for too long leaves no session behind.
	SignedIn func(context.Context) (map[int64]bool, error)
	Log      *slog.Logger
}

// Broker is the hub's part. Its methods may run at the same time.
type Broker struct {
	*target.Store
	cfg     Config
	keys    keys
	archive *archive.Archive

	mu     sync.Mutex
	live   map[session.ID]*live // not over
	lines  map[string]*line     // by site
	notice *api.Notice          // when all sessions end
}

// Open reads what is kept, and makes the organisation's keys at the first time.
func Open(ctx context.Context, cfg Config) (*Broker, error) {
	b := &Broker{cfg: cfg, live: make(map[session.ID]*live), lines: make(map[string]*line)}
	b.Store = target.New(target.Config{DB: cfg.DB, Box: cfg.Box, Wall: cfg.Wall, Audit: cfg.Audit, Gone: b.endOf})
	var err error
	if b.keys, err = openKeys(ctx, cfg.DB); err != nil {
		return nil, err
	}
	if b.archive, err = archive.Open(cfg.Folder, b.keys.recorder, cfg.Free); err != nil {
		return nil, err
	}
	return b, b.load(ctx)
}

// Organisation is the public key that everything here is signed by.
func (b *Broker) Organisation() []byte { return b.keys.public() }

// Task ends what is over, until ctx ends; then it closes all lines.
func (b *Broker) Task() task.Task {
	return task.Func("sessions", func(ctx context.Context) error {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				b.closeLines()
				return ctx.Err()
			case <-tick.C:
				b.sweep(ctx)
			}
		}
	})
}

// audit writes an event of a person, before its effect.
func (b *Broker) audit(ctx context.Context, who asker.Who, action, object string, detail map[string]string) error {
	return b.cfg.Audit(ctx, who.Event(action, object, detail))
}

// hubEvent writes what an agent told, or what ended by itself.
func (b *Broker) hubEvent(ctx context.Context, action, object string, detail map[string]string) error {
	return b.cfg.Audit(ctx, control.Event{Actor: "system", Action: action, Object: object, Outcome: "ok", Detail: detail})
}

// Who is a person at work; ErrNone is in every refusal about what is not there.
type Who = asker.Who

// ErrNone is asker.ErrNone.
var ErrNone = asker.ErrNone

// Domains are the tables of sessions and of their targets.
func Domains() []store.Domain { return []store.Domain{target.Domain(), domain()} }
