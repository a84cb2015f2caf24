package remote

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"gatehouse/appliance/session"
)

// Of three puts to one place the last is meant, though the second still waits
// for the first when it comes; and it waits for the first, too.
func TestSES4_TheLastOfThreeClaimsIsMeant(t *testing.T) {
	var c Claims
	place := Part{"192.0.2.5:22", "ann", "/srv/.file.gatehouse-part"}
	told := make(chan string, 4)
	says := func(who string) func(session.ID) {
		return func(to session.ID) { told <- fmt.Sprint(who, " to ", to[0]) }
	}
	first, err := c.Claim(t.Context(), place, session.ID{1}, says("first"))
	if err != nil {
		t.Fatal(err)
	}
	// Other places are no matter of it.
	for _, other := range []Part{{"192.0.2.6:22", "ann", place.Path}, {place.Address, "bob", place.Path}, {place.Address, "ann", "/srv/.other.gatehouse-part"}} {
		release, err := c.Claim(t.Context(), other, session.ID{9}, nil)
		if err != nil || len(told) > 0 {
			t.Errorf("%v: %v", other, err)
		}
		release()
	}
	another := errors.New("another")
	ctx, end := context.WithCancelCause(t.Context())
	second := make(chan error, 1)
	go func() {
		_, err := c.Claim(ctx, place, session.ID{2}, func(to session.ID) { says("second")(to); end(another) })
		second <- err
	}()
	if who := <-told; who != "first to 2" {
		t.Errorf("told to end: %s", who)
	}
	third := make(chan func(), 1)
	go func() {
		release, err := c.Claim(t.Context(), place, session.ID{3}, says("third"))
		if err != nil {
			t.Error(err)
		}
		third <- release
	}()
	if who := <-told; who != "second to 3" {
		t.Errorf("told to end: %s", who)
	}
	if err := <-second; !errors.Is(err, another) {
		t.Errorf("the second: %v", err)
	}
	select {
	case <-third:
		t.Fatal("the third writes while the first does")
	default:
	}
	first()
	(<-third)()
	if len(told) > 0 || len(c.latest) > 0 {
		t.Errorf("%d are told, %d left", len(told), len(c.latest))
	}
}
