// Package keeper decides which certificate answers browsers, keeps it, and renews it in time.
//
// The box's identity (package cert) is always there. Besides it there is at most
// one source of certificates: the box's own CA, an ACME server, a chain that a
// person brought, or files of the operator. What the source gives is served while
// it is good and fits the name that is asked for; in every other case the identity
// is. So nothing that goes wrong here can keep anybody from signing in.
package keeper

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/cert/authority"
	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
	"gatehouse/appliance/cert/sealed"
	"gatehouse/appliance/control"
)

// Source is where the certificate for browsers comes from.
type Source string

// The sources.
const (
	Self    Source = "self"    // the identity alone
	CA      Source = "ca"      // the box's own CA
	ACME    Source = "acme"    // an ACME server
	Brought Source = "brought" // a chain that a person gave
	Files   Source = "files"   // files that the configuration names (hosted)
)

// file holds everything: one file, so one commit point. After a power cut it
// is the old state or the new one, never a certificate without its key.
const (
	file       = "certificates.sealed"
	purpose    = "gatehouse/cert/keeper/1"
	maxHistory = 40
)

// Ports are what the keeper asks of others.
type Ports struct {
	Status func(context.Context) (control.Status, error)
	Put    func(context.Context, control.Challenge) error
	Drop   func(context.Context, control.ChallengeToken) error
	Files  func(context.Context, control.CertificateFilesSeen) (control.CertificateFiles, error)
	Audit  func(context.Context, control.Event) error
	// Shown is told whenever another certificate answers at the address that the
	// box prints, or other names than before are the box's.
	Shown  func(ctx context.Context, c tls.Certificate, names []string) error
	Now    func() time.Time
	Settle time.Duration // a challenge takes so long to be in place
}

// Config is what a keeper is made of.
type Config struct {
	Dir      string // of the console
	Key      []byte // 32 bytes
	Identity tls.Certificate
	Ports    Ports
	Log      *slog.Logger
}

// kept is the content of the file.
type kept struct {
	Source    Source       `json:"source"`
	ACME      ACMESettings `json:"acme"`
	Account   []byte       `json:"account,omitempty"`   // PKCS #8
	Authority []byte       `json:"authority,omitempty"` // authority.Encode
	Leaf      []byte       `json:"leaf,omitempty"`      // pair.Encode, of the own CA
	Ordered   []byte       `json:"ordered,omitempty"`   // pair.Encode, of the ACME server
	Brought   []byte       `json:"brought,omitempty"`   // pair.Encode
	Trouble   Trouble      `json:"trouble"`
	History   []Entry      `json:"history,omitempty"` // newest first
}

// ACMESettings is what the owner said about the ACME server.
type ACMESettings struct {
	Directory string   `json:"directory"`
	Roots     string   `json:"roots,omitempty"` // PEM
	Email     string   `json:"email,omitempty"`
	Names     []string `json:"names"`
	Challenge string   `json:"challenge"`
	Agreed    bool     `json:"agreed"` // to the server's terms
}

// Trouble is what went wrong last, and when it is tried again.
type Trouble struct {
	Text     string    `json:"text,omitempty"`
	At       time.Time `json:"at,omitzero"`
	Failures int       `json:"failures,omitempty"`
	Next     time.Time `json:"next,omitzero"`
}

// Entry is one line of the history.
type Entry struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"` // chosen, issued, imported, failed, revoked, new CA
	Source Source    `json:"source"`
	Text   string    `json:"text"`
}

// Keeper is made by Open.
type Keeper struct {
	c    Config
	poke chan struct{}

	// acting is held by whoever changes what is kept, over the audit entry and
	// the write; mu only while looking at or setting the fields, so that no
	// handshake waits for a disk.
	acting sync.Mutex

	mu       sync.Mutex
	damaged  error // the file is there and does not open
	kept     kept
	root     *authority.Authority
	chosen   *tls.Certificate // of the source
	files    control.CertificateFiles
	fromFile *tls.Certificate
	machine  machine
	busy     bool                        // an order is under way
	now      bool                        // a person asked for a new one
	alpn     map[string]*tls.Certificate // for acme-tls/1, by server name
	shown    string                      // what Shown was told last
}

// machine is what is known of the box.
type machine struct {
	names     []string
	addresses []netip.Addr
	host      string // of the printed address
	trusted   bool   // the clock
	lists     bool
	httpPort  uint16
}

// Open reads what was kept. What does not open is left where it is: the
// identity is served, and a person decides.
func Open(c Config) *Keeper {
	k := &Keeper{c: c, poke: make(chan struct{}, 1), alpn: make(map[string]*tls.Certificate)}
	k.kept.Source = Self
	b, err := sealed.Read(filepath.Join(c.Dir, file), c.Key, purpose)
	if errors.Is(err, fs.ErrNotExist) {
		return k
	}
	var q kept
	if err == nil {
		err = json.Unmarshal(b, &q)
	}
	if err == nil {
		err = k.set(q)
	}
	if err != nil {
		k.damaged = err
		c.Log.Error("the kept certificates do not open; the box's own one is served", "err", err)
	}
	return k
}

// parse opens what is kept.
func (q kept) parse() (root *authority.Authority, chosen *tls.Certificate, err error) {
	if q.Authority != nil {
		if root, err = authority.Decode(q.Authority); err != nil {
			return nil, nil, err
		}
	}
	if of := map[Source][]byte{CA: q.Leaf, ACME: q.Ordered, Brought: q.Brought}[q.Source]; of != nil {
		c, err := pair.Decode(of)
		if err != nil {
			return nil, nil, err
		}
		chosen = &c
	}
	if !slices.Contains([]Source{Self, CA, ACME, Brought}, q.Source) {
		return nil, nil, fmt.Errorf("the kept certificates come from %.20q, which is not known", q.Source)
	}
	if q.Source == CA && root == nil {
		return nil, nil, errors.New("the kept certificates come from an own CA that is not kept")
	}
	return root, chosen, nil
}

func (k *Keeper) set(q kept) error {
	root, chosen, err := q.parse()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept, k.root, k.chosen, k.damaged = q, root, chosen, nil
	return nil
}

// change makes a change and keeps it. The file is the commit point: an error
// leaves everything as it was. The caller holds acting.
func (k *Keeper) change(f func(*kept)) error {
	if k.damaged != nil {
		return refuse("The kept certificates do not open (%v). Choose the box's own certificate to begin anew without them.", k.damaged)
	}
	return k.keep(k.kept, f)
}

func (k *Keeper) keep(q kept, f func(*kept)) error {
	q.History = slices.Clone(q.History)
	f(&q)
	b, err := json.Marshal(q)
	if err == nil {
		_, _, err = q.parse()
	}
	if err == nil {
		err = sealed.Write(filepath.Join(k.c.Dir, file), k.c.Key, purpose, b)
	}
	if err != nil {
		return fmt.Errorf("keeping the certificates: %w", err)
	}
	return k.set(q)
}

// seen is what is known of the machine, and whether files are named.
func (k *Keeper) seen() (machine, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.machine, k.files.Named
}

// want notes that a person asked for a new certificate, or that it was tried.
func (k *Keeper) want(now, busy bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now, k.busy = now, busy
}

func (q *kept) note(at time.Time, what string, source Source, text string) {
	q.History = slices.Insert(q.History, 0, Entry{at.UTC().Truncate(time.Second), what, source, text})
	q.History = q.History[:min(len(q.History), maxHistory)]
}

// wake has the task look at once.
func (k *Keeper) wake() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// Refusal is what a person is told.
type Refusal struct{ Text string }

func (r *Refusal) Error() string { return r.Text }

func refuse(format string, a ...any) error { return &Refusal{fmt.Sprintf(format, a...)} }

// config is the order of the kept settings. The caller holds acting.
func (k *Keeper) config(s ACMESettings) (order.Config, error) {
	c := order.Config{
		Directory: s.Directory, Roots: []byte(s.Roots), Email: s.Email, Names: s.Names, Challenge: s.Challenge,
		Put: func(ctx context.Context, token, text string) error {
			return k.c.Ports.Put(ctx, control.Challenge{Token: token, Text: text})
		},
		Drop: func(ctx context.Context, token string) error {
			return k.c.Ports.Drop(ctx, control.ChallengeToken{Token: token})
		},
		Present: k.present, Settle: k.c.Ports.Settle, Now: k.c.Ports.Now,
	}
	if k.kept.Account != nil {
		key, err := parseAccount(k.kept.Account)
		if err != nil {
			return c, err
		}
		c.Key = key
	}
	return c, nil
}
