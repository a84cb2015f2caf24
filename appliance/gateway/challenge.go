package gateway

import (
	"context"
	"crypto/subtle"
	"net/http"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/control"
)

// challengePath is where an ACME server looks for the answer to http-01 (RFC 8555, 8.3).
const challengePath = "/.well-known/acme-challenge/"

// lookApart is the least time between two questions to the privileged process:
// anyone may ask for tokens, as often as he likes. The console gives the
// gateway longer than this before it calls the ACME server.
const lookApart = 500 * time.Millisecond

// challenges answers for the console what an ACME server asks on port 80: an
// exact token that the console has put there, and nothing else.
type challenges struct {
	ask func(context.Context) (control.Challenges, error)
	now func() time.Time

	mu     sync.Mutex
	known  []control.Challenge
	looked time.Time
}

// answer finds what to say to exactly this path; "" is nothing.
func (c *challenges) answer(ctx context.Context, path string) string {
	token, ok := strings.CutPrefix(path, challengePath)
	if !ok || token == "" || len(token) > control.MaxChallengeToken {
		return ""
	}
	text := ""
	for _, k := range c.look(ctx) {
		if subtle.ConstantTimeCompare([]byte(k.Token), []byte(token)) == 1 {
			text = k.Text
		}
	}
	return text
}

func (c *challenges) look(ctx context.Context) []control.Challenge {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.looked.IsZero() || now.Sub(c.looked) >= lookApart {
		// One visitor's going away must not leave the next without an answer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		got, err := c.ask(ctx)
		if err != nil {
			return nil // nothing is answered that was not confirmed just now
		}
		c.known, c.looked = got.Challenges, now
	}
	return c.known
}

// serveChallenge answers if the request is one for a challenge that waits.
func (p *page) serveChallenge(w http.ResponseWriter, r *http.Request) bool {
	if p.challenges == nil || !strings.HasPrefix(r.URL.Path, challengePath) {
		return false
	}
	if r.Method != http.MethodGet || r.URL.RawPath != "" || r.URL.RawQuery != "" {
		return false
	}
	text := p.challenges.answer(r.Context(), r.URL.Path)
	if text == "" {
		return false
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := w.Write([]byte(text)); err != nil {
		return true // the server has gone
	}
	return true
}
