package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"

	"gatehouse/appliance/relay"
)

// maybeICE says whether what came can be the begin of a browser's first message
// by ICE-TCP: framed STUN, of which the first byte is 0, 1 or 2, and of a
// ClientHello 22.
func maybeICE(b []byte) bool {
	_, err := relay.FirstICE(b)
	return len(b) > 0 && err == nil
}

// browser reads a browser's first message within the time and size of a
// ClientHello's, and joins it with the agent that waits for it. Whoever sends
// something else, or names nobody, is closed without a word.
func (g *gateway) browser(ctx context.Context, c net.Conn, peeked []byte, known func()) error {
	t, ok := c.(*net.TCPConn)
	if !ok || g.relay == nil {
		return errors.New("there are no sessions here")
	}
	first := append(make([]byte, 0, relay.MaxBinding+1), peeked...)
	for {
		done, err := relay.FirstICE(first)
		if err != nil {
			return err
		}
		if done {
			break
		}
		n, err := c.Read(first[len(first):cap(first)]) // there is room: a message of that size is refused
		first = first[:len(first)+n]
		if err != nil && n == 0 {
			return fmt.Errorf("reading a browser's first message: %w", err)
		}
	}
	source := address(c.RemoteAddr()).Addr()
	if g.lists.Scopes(source)&meetingScopes == 0 {
		return errors.New("no list admits the source for sessions")
	}
	wait, ok := g.budget.take(source)
	if !ok {
		return errors.New("the source opens more connections than one may")
	}
	if wait > 0 {
		pause(ctx, wait)
	}
	return g.relay.HandleBrowser(ctx, t, first, known)
}
