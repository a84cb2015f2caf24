package monitor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/control"
)

const base64url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// certificates is what the monitor passes between console, gateway and the
// operator's files.
type certificates struct {
	mu         sync.Mutex
	challenges map[string]challenge
	files      control.CertificateFiles
	changed    chan struct{} // closed when files change
}

type challenge struct {
	text  string
	until int64 // CLOCK_BOOTTIME, ns: setting the clock must not prolong it
}

func (m *Monitor) registerCertificates(s *control.Server) {
	control.Handle(s, control.OpChallengePut, func(_ context.Context, _ control.Role, q control.Challenge) (control.None, error) {
		return control.None{}, m.certificates.put(q, m.boottime())
	})
	control.Handle(s, control.OpChallengeDrop, func(_ context.Context, _ control.Role, q control.ChallengeToken) (control.None, error) {
		m.certificates.mu.Lock()
		defer m.certificates.mu.Unlock()
		delete(m.certificates.challenges, q.Token)
		return control.None{}, nil
	})
	control.Handle(s, control.OpChallenges, func(context.Context, control.Role, control.None) (control.Challenges, error) {
		return m.certificates.live(m.boottime()), nil
	})
	control.Handle(s, control.OpCertificateFiles, func(ctx context.Context, _ control.Role, q control.CertificateFilesSeen) (control.CertificateFiles, error) {
		return m.certificates.await(ctx, q.Version), nil
	})
}

// put takes a challenge. Port 80 speaks to everybody, so what it may say is
// checked here, too: a token and an answer that belongs to it, in an alphabet
// that no browser takes for a page.
func (c *certificates) put(q control.Challenge, now int64) error {
	rest, belongs := strings.CutPrefix(q.Text, q.Token+".")
	switch {
	case len(q.Token) < 16 || len(q.Token) > control.MaxChallengeToken || strings.Trim(q.Token, base64url) != "":
		return &control.Error{Code: control.CodeInvalid, Text: "the token of the challenge is not 16 to 128 characters of base64url"}
	case !belongs || rest == "" || len(q.Text) > control.MaxChallengeText || strings.Trim(rest, base64url) != "":
		return &control.Error{Code: control.CodeInvalid, Text: "the answer to the challenge is not its token, a dot and the thumbprint of a key"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	if _, again := c.challenges[q.Token]; !again && len(c.challenges) >= control.MaxChallenges {
		return &control.Error{Code: control.CodeState, Text: fmt.Sprintf("%d challenges wait for the ACME server already", control.MaxChallenges)}
	}
	if c.challenges == nil {
		c.challenges = make(map[string]challenge)
	}
	c.challenges[q.Token] = challenge{q.Text, now + int64(control.ChallengeLife)}
	return nil
}

func (c *certificates) expire(now int64) {
	for token, ch := range c.challenges {
		if now >= ch.until {
			delete(c.challenges, token)
		}
	}
}

func (c *certificates) live(now int64) control.Challenges {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	var out control.Challenges
	for token, ch := range c.challenges {
		out.Challenges = append(out.Challenges, control.Challenge{Token: token, Text: ch.text})
	}
	return out
}

// SetCertificateFiles is what the watcher of the operator's files read last.
func (m *Monitor) SetCertificateFiles(f control.CertificateFiles) {
	c := &m.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	f.Version = c.files.Version + 1
	c.files = f
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// await answers when the files are others than those seen, or after a while.
func (c *certificates) await(ctx context.Context, seen uint64) control.CertificateFiles {
	timeout := time.NewTimer(control.CertificateFilesWait)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		files := c.files
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if files.Version != seen {
			return files
		}
		select {
		case <-changed:
		case <-timeout.C:
			return files
		case <-ctx.Done():
			return files
		}
	}
}
