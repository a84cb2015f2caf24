package reach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/session/wire"
)

const (
	maxShared  = 8                      // channels on one connection: OpenSSH allows 10
	forgetTime = time.Second            // to hear what became of a request on a connection that has ended
	hangUpTime = 100 * time.Millisecond // to have it said that a session ends, before its connections do
	// MaxChannels is the most terminals and commands at once: of each up to 2 MiB of output wait here.
	MaxChannels = 24
)

// Asker is the person at a stream, as far as the stream can ask: what it cannot is nil.
type Asker struct {
	Confirm func(context.Context, wire.Question) (bool, error)
	Prompt  func(ctx context.Context, text string, hidden bool) (string, error)
	Banner  func(text string)
}

// Link is the way to one target. Its SSH is that of a session: one connection that terminal, commands and
// files share, made when it is needed and again when it is lost.
type Link struct {
	cfg     Config
	serving sync.WaitGroup // of connections
	// turn is held while a connection is made: who comes then waits for it,
	// and finds its key accepted and its password typed.
	turn chan struct{}

	mu       sync.Mutex
	shared   *Connection
	channels int
	sessions int // channels that are terminals and commands, on all connections
	all      map[*Connection]struct{}
	hangUps  map[*ssh.Session]func() // of channels that are open
	closed   bool
	pinned   [][]byte // the keys of the target that are right, in SSH's wire form
	user     string   // as the person typed them; never written anywhere
	password string
}

// Connection is one to the target.
type Connection struct {
	*ssh.Client
	gone chan struct{} // closed when it has ended
}

// New makes a Link. Nothing is connected yet.
func New(c Config) *Link {
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &Link{cfg: c, turn: make(chan struct{}, 1), all: map[*Connection]struct{}{}, hangUps: map[*ssh.Session]func(){}, pinned: c.Material.HostKeys}
}

// Lease gives a connection to the target; release it.
func (l *Link) Lease(ctx context.Context, a Asker) (*Connection, func(), error) {
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
func (l *Link) own(ctx context.Context, a Asker) (*Connection, func(), error) {
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

func (l *Link) keep(client *ssh.Client, alone bool) (*Connection, func(), error) {
	c := &Connection{client, make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return nil, nil, errors.New("the session has ended")
	}
	l.all[c] = struct{}{}
	if !alone {
		l.shared, l.channels = c, 1
	}
	l.serving.Add(1)
	go l.attend(c)
	if alone {
		return c, func() { c.Close() }, nil
	}
	return c, func() { l.release(c) }, nil
}

func (l *Link) release(c *Connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shared == c {
		l.channels--
	}
}

// attend asks whether the target is still there, until it is not.
func (l *Link) attend(c *Connection) {
	defer l.serving.Done()
	go func() {
		_ = c.Wait() // why it ended is told by what used it
		close(c.gone)
	}()
	tick := time.NewTicker(l.cfg.Times.Alive)
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
			_ = l.Within(c, func() error { // a failure ends the connection, which is seen above
				_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
				return err
			})
		}
	}
}

// Within closes the connection if the target does not answer in time: nothing
// else ends the wait for it. And not even that does always: x/crypto/ssh forgets
// a channel that is opened in the moment in which its connection ends, and who
// opens it waits for ever. So it is left behind then.
func (l *Link) Within(c *Connection, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	late := time.NewTimer(l.cfg.Times.Answer)
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
	case <-time.After(forgetTime):
		return errors.New("the connection to the target was lost")
	}
}

// Close ends all connections and forgets what was typed. Nothing is connected
// any more after it.
func (l *Link) Close() {
	l.hangUpAll()
	l.mu.Lock()
	l.closed = true
	for c := range l.all {
		c.Close()
	}
	l.user, l.password = "", ""
	l.mu.Unlock()
	l.serving.Wait()
}

// HangUp closes a channel when ctx ends, and the connection of a target that
// does not let go of it. The returned func is for the channel's good end.
//
// What has no terminal would not notice that its channel is closed before it
// reads or writes, so it is sent the signal that a terminal's end is (RFC 4254,
// 6.9). OpenSSH passes it on from 7.9 on; others, and programs, may ignore it.
func (l *Link) HangUp(ctx context.Context, ch *ssh.Session, c *Connection) func() {
	over := make(chan struct{})
	hangUp := sync.OnceFunc(func() { _ = ch.Signal(ssh.SIGHUP) })
	l.mu.Lock()
	l.hangUps[ch] = hangUp
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		go func() { // ends with the connection at the latest
			hangUp()
			ch.Close()
		}()
		select {
		case <-over:
		case <-time.After(l.cfg.Times.Answer):
			c.Close()
		}
	})
	return func() {
		close(over)
		stop()
		l.mu.Lock()
		delete(l.hangUps, ch)
		l.mu.Unlock()
	}
}

// hangUpAll has every channel's signal sent before its connection is closed,
// unless a target takes nothing any more.
func (l *Link) hangUpAll() {
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.hangUps))
	l.mu.Unlock()
	if len(all) == 0 {
		return
	}
	sent := make(chan struct{})
	go func() { // ends with the connections at the latest
		for _, hangUp := range all {
			hangUp()
		}
		close(sent)
	}()
	select {
	case <-sent:
	case <-time.After(hangUpTime):
	}
}

// Session opens a channel for a terminal or a command.
func (l *Link) Session(ctx context.Context, a Asker) (*ssh.Session, *Connection, func(), error) {
	l.mu.Lock()
	full := l.sessions >= MaxChannels
	if !full {
		l.sessions++
	}
	l.mu.Unlock()
	if full {
		return nil, nil, nil, wire.Refuse(wire.Failed, "this session has %d terminals and commands, the most there can be", MaxChannels)
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
func (l *Link) channel(ctx context.Context, a Asker) (*ssh.Session, *Connection, func(), error) {
	c, release, err := l.Lease(ctx, a)
	for again := false; err == nil; again = true {
		opened := make(chan *ssh.Session, 1)
		err = l.Within(c, func() error {
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
			return nil, nil, nil, wire.Refuse(wire.Unreachable, "%s is connected and opens nothing: %v", Describe(l.cfg.Target), err)
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
			c, release, err = l.Lease(ctx, a)
		}
	}
	return nil, nil, nil, err
}

// connect makes one connection. A key that nobody has seen yet is looked at on
// a connection of its own, shown, and pinned when the person takes it: the
// target waits for no one's decision, and only then learns who wants to sign in.
func (l *Link) connect(ctx context.Context, a Asker) (*ssh.Client, error) {
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
func (l *Link) look(ctx context.Context) (ssh.PublicKey, error) {
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

func (l *Link) signIn(ctx context.Context, a Asker) (*ssh.Client, error) {
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
			Describe(l.cfg.Target), k.Type(), ssh.FingerprintSHA256(k), l.fingerprints())
		return changed
	}}
	c, err := l.handshake(ctx, auth, cfg)
	if changed != nil {
		l.cfg.Failed(auth.user, changed)
		return nil, changed
	}
	if err == nil {
		auth.remember()
	}
	return c, err
}

func (l *Link) handshake(ctx context.Context, auth *auth, cfg *ssh.ClientConfig) (*ssh.Client, error) {
	conn, err := l.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	guard := newGuard(conn, l.cfg.Times.Handshake)
	auth.extend, auth.pause = guard.extend, guard.pause
	cfg.ClientVersion, cfg.HostKeyAlgorithms = "SSH-2.0-Gatehouse", l.algorithms()
	c, channels, requests, err := ssh.NewClientConn(conn, l.cfg.Target.Host, cfg)
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
func (l *Link) right(k ssh.PublicKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := k.Marshal()
	return slices.ContainsFunc(l.pinned, func(p []byte) bool { return bytes.Equal(p, b) })
}

func (l *Link) fingerprints() string {
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
func (l *Link) algorithms() []string {
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
func (l *Link) accept(ctx context.Context, a Asker, k ssh.PublicKey) error {
	t, print := l.cfg.Target, ssh.FingerprintSHA256(k)
	if a.Confirm == nil {
		return wire.Refuse(wire.HostKey, "the key of %s is not known yet (%s %s): open a terminal to see it and take it", Describe(t), k.Type(), print)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Times.Confirm)
	defer cancel()
	yes, err := a.Confirm(ctx, wire.Question{Target: fmt.Sprintf("%s (%s)", t.Name, Describe(t)), Algorithm: k.Type(), Fingerprint: print})
	if err != nil {
		return wire.Refuse(wire.HostKey, "whether the key of %s is the right one was not answered: %v", Describe(t), err)
	}
	if !yes {
		return wire.Refuse(wire.HostKey, "the key of %s was not taken", Describe(t))
	}
	if err := l.cfg.Accepted(ctx, k); err != nil {
		return err
	}
	l.mu.Lock()
	l.pinned = append(slices.Clone(l.pinned), k.Marshal())
	l.mu.Unlock()
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
