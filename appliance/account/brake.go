package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// The brakes on guessing. Every try is counted before it is judged, so that a
// hundred at once or a power cut in the middle gain nothing; what succeeds
// takes its count back.
const (
	freeTries     = 5                // of one source at one account, then it waits
	longestWait   = 15 * time.Minute // between two tries
	strangerTries = 100              // consecutive, of all browsers that the account does not know (NIST SP 800-63B, 3.2.2)
	deviceTries   = 50               // of one known browser; then it is a stranger
	sourceTries   = 30               // of one source at all accounts together
	sourceRefill  = 3 * time.Second  // for one more of them
	bucketsKept   = 4096
)

// Origin is where a try comes from.
type Origin struct {
	Source  netip.Prefix // the address that counts as one: an IPv4 address or an IPv6 /64
	Address netip.Addr   // the exact one, for people; not valid for the box's own agent
	Device  string       // the cookie of a known browser; "" for a stranger
	Agent   string       // what the browser calls itself
}

// From is the origin in words for people.
func (o Origin) From() string {
	if o.Address.IsValid() {
		return o.Address.String()
	}
	return o.Source.Addr().String()
}

type bucket struct {
	tries int
	next  time.Time // no try before
	used  time.Time
}

// brakes are in memory: a restart forgives the waits, not the counts of
// consecutive failures, which are in the database.
type brakes struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[string]*bucket
	all map[string]*bucket
}

func newBrakes(now func() time.Time) *brakes {
	return &brakes{now: now, by: make(map[string]*bucket), all: make(map[string]*bucket)}
}

// take counts a try and says how long the source has to wait instead, if so.
func (b *brakes) take(key, source string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if wait := b.takeSource(now, source); wait > 0 {
		return wait
	}
	k := entry(b.by, key, now)
	if now.Before(k.next) {
		return k.next.Sub(now)
	}
	k.tries++
	if over := k.tries - freeTries; over >= 0 {
		k.next = now.Add(min(time.Second<<min(over, 20), longestWait))
	}
	return 0
}

func (b *brakes) takeSource(now time.Time, source string) time.Duration {
	s := entry(b.all, source, now)
	if refilled := int(now.Sub(s.next) / sourceRefill); refilled > 0 {
		s.tries, s.next = max(0, s.tries-refilled), now
	}
	if s.tries >= sourceTries {
		return sourceRefill
	}
	s.tries++
	return 0
}

func (b *brakes) succeeded(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.by, key)
}

// entry finds or makes a bucket. When there are too many the longest unused
// goes: those who flood are the newest and stay braked.
func entry(m map[string]*bucket, key string, now time.Time) *bucket {
	b := m[key]
	if b == nil {
		if len(m) >= bucketsKept {
			oldest, first := "", true
			for k, v := range m {
				if first || v.used.Before(m[oldest].used) {
					oldest, first = k, false
				}
			}
			delete(m, oldest)
		}
		b = &bucket{next: now}
		m[key] = b
	}
	b.used = now
	return b
}

func waitWords(d time.Duration) string {
	d = max(d.Round(time.Second), time.Second)
	if d < time.Minute {
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return fmt.Sprintf("%d min", (d+time.Minute-1)/time.Minute)
}

// admit counts a try at the account behind lookup (there may be none) and
// refuses it when there were too many. known says that the browser is one that
// this account has signed in from. A typed recovery code of the person passes
// the limit on strangers: nobody guesses its 80 bits, and an owner whose known
// browser is lost while somebody guesses must still get in.
func (a *Accounts) admit(ctx context.Context, lookup []byte, person int64, recovery string, o Origin) (known bool, err error) {
	source := o.Source.String()
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		known, err = knownDevice(ctx, tx, person, o.Device)
		return err
	})
	if err != nil {
		return false, err
	}
	if known { // its waits are its own: strangers at the same address do not slow it
		source = o.Device
	}
	if wait := a.brakes.take(string(lookup)+source, source); wait > 0 && known {
		return known, refuse("Too many wrong tries. Wait %s and try again.", waitWords(wait))
	} else if wait > 0 {
		return known, refuse("Too many wrong tries from your address. Wait %s and try again; browsers you used before are not held up by this.", waitWords(wait))
	}
	holder, err := a.holdsRecoveryCode(ctx, person, recovery)
	if err != nil || holder {
		return known, err
	}
	return known, a.db.Update(ctx, func(tx *sql.Tx) error {
		if known {
			_, err := tx.ExecContext(ctx, "UPDATE device SET failures = failures + 1 WHERE token = ?", digest(o.Device))
			return err
		}
		return a.countStranger(ctx, tx, lookup)
	})
}

func (a *Accounts) countStranger(ctx context.Context, tx *sql.Tx, lookup []byte) error {
	var failures int
	err := tx.QueryRowContext(ctx, "SELECT failures FROM guess WHERE lookup = ?", lookup).Scan(&failures)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("reading the count of wrong tries: %w", err)
	}
	if failures >= strangerTries {
		return refuse("There were %d wrong tries in a row from browsers that this account has not used. For now, sign in from a browser that has signed in before, or give a recovery code together with the password.", failures)
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO guess (lookup, failures, at) VALUES (?, 1, ?) ON CONFLICT (lookup) DO UPDATE SET failures = failures + 1, at = excluded.at", lookup, a.wall().Unix())
	if err != nil {
		return fmt.Errorf("counting a try: %w", err)
	}
	// Addresses without an account are kept only so far as there is room.
	_, err = tx.ExecContext(ctx, `DELETE FROM guess WHERE lookup IN (SELECT lookup FROM guess
		WHERE lookup NOT IN (SELECT lookup FROM person) ORDER BY at DESC LIMIT -1 OFFSET 1000)`)
	return err
}

func knownDevice(ctx context.Context, tx *sql.Tx, person int64, device string) (bool, error) {
	var failures int
	err := tx.QueryRowContext(ctx, "SELECT failures FROM device WHERE token = ? AND person = ?", digest(device), person).Scan(&failures)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && failures < deviceTries, err
}

// succeeded takes the counts of the account back.
func (a *Accounts) succeeded(ctx context.Context, lookup []byte, o Origin) error {
	a.brakes.succeeded(string(lookup) + o.Source.String())
	a.brakes.succeeded(string(lookup) + o.Device)
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM guess WHERE lookup = ?", lookup); err != nil {
			return fmt.Errorf("clearing the count of wrong tries: %w", err)
		}
		_, err := tx.ExecContext(ctx, "UPDATE device SET failures = 0 WHERE token = ?", digest(o.Device))
		return err
	})
}
