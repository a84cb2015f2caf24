package work

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session/wire"
)

const (
	maxShared   = 8  // channels on one connection: OpenSSH allows 10
	maxChannels = 24 // terminals and commands at once: of each up to 2 MiB of output wait here
)

// asker is the person at a stream, as far as the stream can ask. Both may be nil.
type asker struct {
	confirm func(context.Context, wire.Question) (bool, error)
	prompt  func(ctx context.Context, text string, hidden bool) (string, error)
	banner  func(text string)
}

// link is the SSH of a session: one connection that terminal, commands and
// files share, made when it is needed and again when it is lost.
type link struct {
	s *Session
	// turn is held while a connection is made: who comes then waits for it,
	// and finds its key accepted and its password typed.
	turn chan struct{}

	mu       sync.Mutex
	shared   *connection
	channels int
	sessions int // channels that are terminals and commands, on all connections
	all      map[*connection]struct{}
	closed   bool
	pinned   [][]byte // the keys of the target that are right, in SSH's wire form
	user     string   // as the person typed them; never written anywhere
	password string
}

// connection is one to the target.
type connection struct {
	*ssh.Client
	gone chan struct{} // closed when it has ended
}

func newLink(s *Session) *link {
	return &link{s: s, turn: make(chan struct{}, 1), all: map[*connection]struct{}{}, pinned: s.cfg.Material.HostKeys}
}

// lease gives a connection to the target; release it.
func (l *link) lease(ctx context.Context, a asker) (*connection, func(), error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	l.mu.Lock()
	c := l.shared
	alone := c != nil && l.channels >= maxShared
	if c != nil && !alone {
		l.channels++
	}
	l.mu.Unlock()
	if c != nil && !alone {
		return c, func() { l.release(c) }, nil
	}
	client, err := l.connect(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	return l.keep(client, alone)
}

// own gives a connection that nothing else uses: the target allows no more on
// the shared one.
func (l *link) own(ctx context.Context, a asker) (*connection, func(), error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	c, err := l.connect(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	return l.keep(c, true)
}

func (l *link) keep(client *ssh.Client, alone bool) (*connection, func(), error) {
	c := &connection{client, make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return nil, nil, context.Cause(l.s.ctx)
	}
	l.all[c] = struct{}{}
	if !alone {
		l.shared, l.channels = c, 1
	}
	l.s.work.Add(1)
	go l.attend(c)
	if alone {
		return c, func() { c.Close() }, nil
	}
	return c, func() { l.release(c) }, nil
}

func (l *link) release(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shared == c {
		l.channels--
	}
}

// attend asks whether the target is still there, until it is not.
func (l *link) attend(c *connection) {
	defer l.s.work.Done()
	go func() {
		_ = c.Wait() // why it ended is told by what used it
		close(c.gone)
	}()
	tick := time.NewTicker(l.s.times.alive)
	defer tick.Stop()
	for {
		select {
		case <-c.gone:
			l.mu.Lock()
			delete(l.all, c)
			if l.shared == c {
				l.shared = nil
			}
			l.mu.Unlock()
			return
		case <-tick.C:
			// Any answer will do. A target that is gone is closed when it should have come.
			_ = l.s.within(c, func() error { // a failure ends the connection, which is seen above
				_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
				return err
			})
		}
	}
}

// within closes the connection if the target does not answer in time: nothing
// else ends the wait for it. And not even that does always: x/crypto/ssh forgets
// a channel that is opened in the moment in which its connection ends, and who
// opens it waits for ever. So it is left behind then.
func (s *Session) within(c *connection, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	late := time.NewTimer(s.times.answer)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		c.Close()
		<-c.gone
	case <-c.gone:
	}
	select {
	case err := <-done:
		return err
	case <-time.After(graceTime):
		return errors.New("the connection to the target was lost")
	}
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.all {
		c.Close()
	}
	l.user, l.password = "", ""
}

// session opens a channel for a terminal or a command.
func (l *link) session(ctx context.Context, a asker) (*ssh.Session, *connection, func(), error) {
	l.mu.Lock()
	full := l.sessions >= maxChannels
	if !full {
		l.sessions++
	}
	l.mu.Unlock()
	if full {
		return nil, nil, nil, wire.Refuse(wire.Failed, "this session has %d terminals and commands, the most there can be", maxChannels)
	}
	done := func() {
		l.mu.Lock()
		l.sessions--
		l.mu.Unlock()
	}
	ch, c, release, err := l.channel(ctx, a)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return ch, c, func() { done(); release() }, nil
}

// channel opens one on the shared connection, on a new one if that is dead, or
// on one of its own if the target allows no more.
func (l *link) channel(ctx context.Context, a asker) (*ssh.Session, *connection, func(), error) {
	c, release, err := l.lease(ctx, a)
	for again := false; err == nil; again = true {
		opened := make(chan *ssh.Session, 1)
		err = l.s.within(c, func() error {
			ch, err := c.NewSession()
			opened <- ch
			return err
		})
		if err == nil {
			return <-opened, c, release, nil
		}
		release()
		var refused *ssh.OpenChannelError
		switch {
		case again:
			return nil, nil, nil, wire.Refuse(wire.Unreachable, "%s is connected and opens nothing: %v", describe(l.s.cfg.Grant.Target), err)
		case errors.As(err, &refused):
			c, release, err = l.own(ctx, a)
		default:
			// The shared connection is dead, and nobody had noticed.
			c.Close()
			l.mu.Lock()
			if l.shared == c {
				l.shared = nil
			}
			l.mu.Unlock()
			c, release, err = l.lease(ctx, a)
		}
	}
	return nil, nil, nil, err
}

// connect makes one connection. A key that nobody has seen yet is looked at on
// a connection of its own, shown, and pinned when the person takes it: the
// target waits for no one's decision, and only then learns who wants to sign in.
func (l *link) connect(ctx context.Context, a asker) (*ssh.Client, error) {
	l.mu.Lock()
	known := len(l.pinned) > 0
	l.mu.Unlock()
	if !known {
		k, err := l.look(ctx)
		if err != nil {
			return nil, err
		}
		if err := l.accept(ctx, a, k); err != nil {
			return nil, err
		}
	}
	return l.signIn(ctx, a)
}

// look asks the target for its key, and goes away.
func (l *link) look(ctx context.Context) (ssh.PublicKey, error) {
	var seen ssh.PublicKey
	cfg := &ssh.ClientConfig{HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
		seen = k
		return errors.New("it was to be seen")
	}}
	auth := &auth{link: l, ctx: ctx}
	c, err := l.handshake(ctx, auth, cfg)
	if c != nil {
		c.Close()
	}
	if seen == nil {
		return nil, err
	}
	return seen, nil
}

func (l *link) signIn(ctx context.Context, a asker) (*ssh.Client, error) {
	auth := &auth{link: l, ctx: ctx, ask: a}
	methods, err := auth.prepare()
	if err != nil {
		return nil, err
	}
	var changed error
	cfg := &ssh.ClientConfig{User: auth.user, Auth: methods, BannerCallback: auth.banner, HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
		if l.right(k) {
			auth.verified = true
			return nil
		}
		changed = wire.Refuse(wire.HostKey, "%s shows another key than the one that is known: it shows %s %s, known is %s. Either it was set up anew, or something stands in between; who manages the targets can have the known key forgotten",
			describe(l.s.cfg.Grant.Target), k.Type(), ssh.FingerprintSHA256(k), l.fingerprints())
		return changed
	}}
	c, err := l.handshake(ctx, auth, cfg)
	if changed != nil {
		l.s.signInFailed(auth.user, changed)
		return nil, changed
	}
	if err == nil {
		auth.remember()
	}
	return c, err
}

func (l *link) handshake(ctx context.Context, auth *auth, cfg *ssh.ClientConfig) (*ssh.Client, error) {
	conn, err := l.s.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	guard := newGuard(conn, l.s.times.handshake)
	auth.extend, auth.pause = guard.extend, guard.pause
	cfg.ClientVersion, cfg.HostKeyAlgorithms = "SSH-2.0-Gatehouse", l.algorithms()
	c, channels, requests, err := ssh.NewClientConn(conn, l.s.cfg.Grant.Target.Host, cfg)
	late := guard.stop()
	if err == nil {
		return ssh.NewClient(c, channels, requests), nil
	}
	conn.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, auth.judge(err, late)
}

// right says whether a key is pinned.
func (l *link) right(k ssh.PublicKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := k.Marshal()
	return slices.ContainsFunc(l.pinned, func(p []byte) bool { return bytes.Equal(p, b) })
}

func (l *link) fingerprints() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, p := range l.pinned {
		k, err := ssh.ParsePublicKey(p)
		if err != nil {
			all = append(all, "one that cannot be read")
			continue
		}
		all = append(all, k.Type()+" "+ssh.FingerprintSHA256(k))
	}
	return strings.Join(all, ", ")
}

// algorithms asks for the kinds of key that are pinned first: a target has
// several, and shows the one that is asked for. Certificates of hosts are not
// asked for: nobody here knows who signs them.
func (l *link) algorithms() []string {
	all := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := func(algorithm string) bool {
		return slices.ContainsFunc(l.pinned, func(p []byte) bool {
			k, err := ssh.ParsePublicKey(p)
			return err == nil && (k.Type() == algorithm || k.Type() == ssh.KeyAlgoRSA && strings.HasPrefix(algorithm, "rsa-"))
		})
	}
	slices.SortStableFunc(all, func(a, b string) int {
		switch ka, kb := known(a), known(b); {
		case ka == kb:
			return 0
		case ka:
			return -1
		}
		return 1
	})
	return all
}

// accept asks the person whether a key is the target's, and tells the hub.
func (l *link) accept(ctx context.Context, a asker, k ssh.PublicKey) error {
	t, print := l.s.cfg.Grant.Target, ssh.FingerprintSHA256(k)
	if a.confirm == nil {
		return wire.Refuse(wire.HostKey, "the key of %s is not known yet (%s %s): open a terminal to see it and take it", describe(t), k.Type(), print)
	}
	ctx, cancel := context.WithTimeout(ctx, l.s.times.confirm)
	defer cancel()
	yes, err := a.confirm(ctx, wire.Question{Target: fmt.Sprintf("%s (%s)", t.Name, describe(t)), Algorithm: k.Type(), Fingerprint: print})
	if err != nil {
		return wire.Refuse(wire.HostKey, "whether the key of %s is the right one was not answered: %v", describe(t), err)
	}
	if !yes {
		return wire.Refuse(wire.HostKey, "the key of %s was not taken", describe(t))
	}
	if err := l.s.accepted(ctx, k, print); err != nil {
		return err
	}
	l.mu.Lock()
	l.pinned = append(slices.Clone(l.pinned), k.Marshal())
	l.mu.Unlock()
	return nil
}

// accepted has the taken key in the log and at the hub.
func (s *Session) accepted(ctx context.Context, k ssh.PublicKey, print string) error {
	if err := s.audit(ctx, eventAccepted(k, print)); err != nil {
		return err
	}
	if err := s.cfg.Tell(attend.FromSite{HostKey: &attend.HostKey{Session: s.cfg.Grant.ID, Key: k.Marshal()}}); err != nil {
		// It counts in this session; in the next it is asked for anew.
		s.cfg.Log.Warn("the hub was not told of a target's key", "session", s.cfg.Grant.ID, "err", err)
	}
	return nil
}

// guard is the time that a handshake may take. It stands still while a person
// is asked.
type guard struct {
	conn net.Conn
	time time.Duration
	mu   sync.Mutex
	end  bool
	at   time.Time
}

func newGuard(c net.Conn, d time.Duration) *guard {
	g := &guard{conn: c, time: d}
	g.extend()
	return g
}

func (g *guard) extend() { g.set(time.Now().Add(g.time)) }
func (g *guard) pause()  { g.set(time.Time{}) }

func (g *guard) set(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.end {
		g.at = at
		_ = g.conn.SetDeadline(at) // a connection that refuses it is dead
	}
}

// stop lifts the limit. It says whether it had run out.
func (g *guard) stop() (late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end = true
	_ = g.conn.SetDeadline(time.Time{})
	return !g.at.IsZero() && time.Now().After(g.at)
}
