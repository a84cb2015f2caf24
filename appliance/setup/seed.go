package setup

import (
	"context"
	"fmt"
	"strings"

	"gatehouse/appliance/control"
)

// Seed makes the owner whom the seed names, before anyone is served. It goes the
// way of every claim: pending, the commit point, claimed. A power cut before the
// commit point leaves a pending owner that the next start discards, and the seed
// as it was; one after it an owned box, and the seed is only overwritten then.
//
// What does not work is told to whoever stands at the console, and the box goes
// on unclaimed: a seed that is tried again and again would keep it from everybody.
func (c *Claimer) Seed(ctx context.Context, o control.SeedOwner) (control.ConsoleState, error) {
	c.claiming.Lock()
	defer c.claiming.Unlock()
	p, err := c.c.Accounts.AddSeededOwner(ctx, o.Name, o.Email, o.Password)
	if err != nil {
		return c.refuseSeed(ctx, err)
	}
	refused := c.c.Commit(ctx, control.ClaimCommit{Owner: p.Email, From: "seed"})
	// An error does not say on which side of the commit point it happened.
	state, err := c.settle(ctx)
	if err != nil || state.State == control.StateReady {
		return state, err
	}
	return c.refuseSeed(ctx, refused)
}

func (c *Claimer) refuseSeed(ctx context.Context, why error) (control.ConsoleState, error) {
	return c.c.RefuseSeed(ctx, strings.TrimSuffix(fmt.Sprint(why), "."))
}
