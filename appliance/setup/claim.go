// Package setup takes an unowned box to an owned one, once: the claim code, the claim, and where the box stands.
package setup

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/brake"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// Config is what a Claimer works with.
type Config struct {
	Box      string
	Accounts *account.Accounts
	Now      func() time.Time
	// Material returns the verifier of the claim code; it is refused once the box is claimed.
	Material func(context.Context) (control.ClaimMaterial, error)
	// Commit is the commit point: the audit entry and the fact in the TPM.
	Commit func(context.Context, control.ClaimCommit) error
	// Report tells what the database says now, and is told what holds.
	Report func(context.Context) (control.ConsoleState, error)
	// RefuseSeed tells why the owner of a seed was not taken, and what holds then.
	RefuseSeed func(ctx context.Context, why string) (control.ConsoleState, error)
	// Claimed is called once the box has an owner, before anyone is answered.
	Claimed func() error
}

// Claimer is the door that closes behind the first person.
type Claimer struct {
	c Config

	deriving chan struct{} // one at a time: 32 MiB each
	claiming sync.Mutex

	tries *brake.Brake

	mu      sync.Mutex
	tickets map[string]ticket
}

// ticket is what a right code was traded for. It ends with its code, which the
// salt names: a new one at the console voids both.
type ticket struct {
	ends time.Time
	salt string
}

// Limits. The code has 60 bits, so they are not what keeps guessers out but
// what keeps them from costing much.
const (
	ticketTime  = 15 * time.Minute
	maxTickets  = 32
	sourceBurst = 6
	sourceEach  = 5 * time.Second
	allBurst    = 60
	allEach     = 500 * time.Millisecond
)

// NewClaimer makes a Claimer.
func NewClaimer(c Config) *Claimer {
	return &Claimer{c: c, deriving: make(chan struct{}, 1), tickets: make(map[string]ticket), tries: brake.New(brake.Rate{Burst: sourceBurst, Each: sourceEach}, brake.Rate{Burst: allBurst, Each: allEach})}
}

// WhereTheCodeIs is said whenever a code is missing or wrong.
const WhereTheCodeIs = "The code stands on the box's own screen (HDMI), on its serial console, or in the log of the container; it is new after each start."

func refuse(format string, a ...any) error { return &account.Refusal{Text: fmt.Sprintf(format, a...)} }

func (c *Claimer) brake(source netip.Prefix) error {
	if !c.tries.Take(c.c.Now(), source) {
		return refuse("Too many tries. Wait a few seconds and try again. %s", WhereTheCodeIs)
	}
	return nil
}

// Salt is what a client needs to stretch the code.
func (c *Claimer) Salt(ctx context.Context) ([]byte, error) {
	m, err := c.c.Material(ctx)
	return m.Salt, err
}

// Prove checks a client's proof for the channel with this binding and returns
// the box's own proof and a ticket for one claim.
func (c *Claimer) Prove(ctx context.Context, source netip.Prefix, binding, theirs []byte) (ours []byte, ticket string, err error) {
	key, salt, err := c.material(ctx, source)
	if err != nil {
		return nil, "", err
	}
	if !proof.VerifyClient(key, binding, theirs) {
		return nil, "", refuse("The proof is not right: either the code was mistyped, or something stands between you and the box. %s", WhereTheCodeIs)
	}
	p := proof.ServerProof(key, binding)
	return p[:], c.newTicket(salt[:]), nil
}

func (c *Claimer) material(ctx context.Context, source netip.Prefix) (key [32]byte, salt [proof.SaltSize]byte, err error) {
	if err := c.brake(source); err != nil {
		return key, salt, err
	}
	m, err := c.c.Material(ctx)
	if err != nil {
		return key, salt, fmt.Errorf("asking for the verifier of the claim code: %w", err)
	}
	if len(m.Key) != len(key) || len(m.Salt) != len(salt) {
		return key, salt, errors.New("the verifier of the claim code has another size than this version knows")
	}
	return [32]byte(m.Key), [proof.SaltSize]byte(m.Salt), nil
}

// CheckCode checks a code that was typed on the page and returns a ticket for
// one claim.
func (c *Claimer) CheckCode(ctx context.Context, source netip.Prefix, typed string) (ticket string, err error) {
	code, err := proof.ParseCode(typed)
	if err != nil {
		return "", refuse("That is not a claim code: it has 12 letters and digits, such as 7K2M-QX9D-4TBH. %s", WhereTheCodeIs)
	}
	key, salt, err := c.material(ctx, source)
	if err != nil {
		return "", err
	}
	got, err := c.derive(ctx, code, salt)
	if err != nil {
		return "", err
	}
	if subtle.ConstantTimeCompare(got[:], key[:]) != 1 {
		return "", refuse("The code is not right. %s", WhereTheCodeIs)
	}
	return c.newTicket(salt[:]), nil
}

func (c *Claimer) derive(ctx context.Context, code proof.Code, salt [proof.SaltSize]byte) (key [32]byte, err error) {
	select {
	case c.deriving <- struct{}{}:
		defer func() { <-c.deriving }()
	case <-ctx.Done():
		return key, ctx.Err()
	}
	defer debug.FreeOSMemory() // 32 MiB of garbage on a box of 256
	return proof.Derive(code, salt), nil
}

func (c *Claimer) newTicket(salt []byte) string {
	b := make([]byte, 24)
	rand.Read(b)
	name := base64.RawURLEncoding.EncodeToString(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.c.Now()
	for n, t := range c.tickets {
		if !now.Before(t.ends) {
			delete(c.tickets, n)
		}
	}
	for n := range c.tickets { // whoever holds the code may have as many as they like, one after the other
		if len(c.tickets) < maxTickets {
			break
		}
		delete(c.tickets, n)
	}
	c.tickets[name] = ticket{now.Add(ticketTime), string(salt)}
	return name
}

// take uses a ticket up.
func (c *Claimer) take(name string) (t ticket, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok = c.tickets[name]
	delete(c.tickets, name)
	return t, ok && c.c.Now().Before(t.ends)
}

// ErrClaimed means that somebody else was first.
var ErrClaimed error = &account.Refusal{Text: "This box has an owner."}

// Claim makes the owner. Of any number of claims at once one succeeds: they
// come here one by one, and the commit point succeeds once.
//
// The ticket is used up by a claim that got as far as the database; what is
// wrong with the particulars is said before, and costs no new code.
func (c *Claimer) Claim(ctx context.Context, ticket string, o account.Owner, from string) (account.Person, error) {
	if err := o.Check(c.c.Box); err != nil {
		return account.Person{}, err
	}
	c.claiming.Lock()
	defer c.claiming.Unlock()
	t, ok := c.take(ticket)
	if !ok {
		return account.Person{}, refuse("The ticket is not valid, or was used before. Prove the code again. %s", WhereTheCodeIs)
	}
	// From here the browser's going away must not stop it half way.
	ctx = context.WithoutCancel(ctx)
	if claim, _, err := c.c.Accounts.Claim(ctx); err != nil || claim == account.Claimed {
		return account.Person{}, errors.Join(err, ErrClaimed)
	}
	if salt, err := c.Salt(ctx); err != nil || string(salt) != t.salt {
		return account.Person{}, errors.Join(err, refuse("The ticket is of an earlier claim code. Prove the new one. %s", WhereTheCodeIs))
	}
	p, err := c.c.Accounts.AddPendingOwner(ctx, o)
	if err != nil {
		return account.Person{}, err
	}
	refused := c.c.Commit(ctx, control.ClaimCommit{Owner: p.Email, From: from})
	// An error does not say on which side of the commit point it happened.
	// What holds is asked in the same way as at every start.
	state, err := c.settle(ctx)
	switch {
	case err != nil:
		return account.Person{}, errors.Join(refused, err)
	case state.State != control.StateReady:
		return account.Person{}, fmt.Errorf("the claim was not committed: %w", errors.Join(refused, errors.New(state.Reason)))
	}
	c.mu.Lock()
	clear(c.tickets)
	c.mu.Unlock()
	return p, c.c.Claimed()
}

// Settle reports what the database says, and brings a pending owner to the
// side of the commit point that holds. It is run at each start too.
func (c *Claimer) Settle(ctx context.Context) (control.ConsoleState, error) {
	state, err := c.settle(ctx)
	if err != nil || state.Seed == nil {
		return state, err
	}
	return c.Seed(ctx, *state.Seed)
}

func (c *Claimer) settle(ctx context.Context) (control.ConsoleState, error) {
	claim, _, err := c.c.Accounts.Claim(ctx)
	if err != nil {
		return control.ConsoleState{}, fmt.Errorf("reading who owns the box: %w", err)
	}
	state, err := c.c.Report(ctx)
	if err != nil || claim != account.Pending {
		return state, err
	}
	if state.Committed {
		err = c.c.Accounts.FinishClaim(ctx)
	} else {
		err = c.c.Accounts.DiscardPending(ctx)
	}
	if err != nil {
		return state, err
	}
	return c.c.Report(ctx)
}
