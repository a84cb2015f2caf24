package handover

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatehouse/netfilter/allowlist"
)

// Limits of connections that are open at once on the receiver's side, since
// the sender cannot know when a connection that it gave away ends. At a limit
// the connection that was silent longest makes room: the newest one may be a
// person's, and a flood of slow ones must push out itself.
const (
	maxOpen      = 2048
	maxPerSource = 256 // an IPv4 address or an IPv6 /64
)

// A Listener yields the connections that the other side sends. It is a
// net.Listener; every connection is a *Conn.
type Listener struct {
	pair *net.UnixConn
	log  *slog.Logger
	once sync.Once

	mu     sync.Mutex
	open   map[*Conn]netip.Prefix
	source map[netip.Prefix]int
}

// NewListener makes a Listener of an inherited end of the pair. The file is
// duplicated and may be closed.
func NewListener(file *os.File, log *slog.Logger) (*Listener, error) {
	pair, err := open(file)
	if err != nil {
		return nil, err
	}
	return &Listener{pair: pair, log: log, open: make(map[*Conn]netip.Prefix), source: make(map[netip.Prefix]int)}, nil
}

// Addr names the socketpair.
func (l *Listener) Addr() net.Addr { return l.pair.LocalAddr() }

// Close ends Accept. Connections stay.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() { err = l.pair.Close() })
	return err
}

// Accept returns the next connection. What cannot be taken (malformed, over a
// limit) is closed and logged, and does not end Accept: one bad message must
// not take the console down.
func (l *Listener) Accept() (net.Conn, error) {
	buf := make([]byte, maxHead+MaxPeeked+1)
	for {
		c, err := l.receive(buf)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the handover socket: the other side is gone for good: %w", err)
		}
		var errno syscall.Errno
		if errors.As(err, &errno) && errno != syscall.EMFILE && errno != syscall.ENFILE {
			return nil, err
		}
		l.log.Warn("a handed-over connection was not taken", "err", err)
	}
}

func (l *Listener) receive(buf []byte) (*Conn, error) {
	// Room for several descriptors: with room for one alone the kernel would
	// drop the rest silently, here they are seen and refused.
	oob := make([]byte, syscall.CmsgSpace(4*8))
	n, oobn, flags, _, err := l.pair.ReadMsgUnix(buf, oob)
	fds, ferr := rights(oob[:max(oobn, 0)])
	inner, cerr := one(fds)
	switch err = errors.Join(err, ferr, cerr); {
	case err != nil:
	case n == 0 && inner == nil:
		err = io.EOF
	case inner == nil:
		err = fmt.Errorf("%w: no descriptor", errMalformed)
	case flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0:
		err = fmt.Errorf("%w: it is too long", errMalformed)
	default:
		var c *Conn
		if c, err = l.wrap(inner, buf[:n]); err == nil {
			return c, nil
		}
	}
	if inner != nil {
		inner.Close()
	}
	return nil, err
}

func (l *Listener) wrap(inner net.Conn, message []byte) (*Conn, error) {
	m, peeked, err := parseMessage(message)
	if err != nil {
		return nil, err
	}
	_, local := inner.(*net.UnixConn)
	if local != (m.Kind == Agent) {
		return nil, fmt.Errorf("%w: kind %s on a socket of another family", errMalformed, m.Kind)
	}
	remote := inner.RemoteAddr()
	if tcp, ok := remote.(*net.TCPAddr); ok && tcp != nil {
		a := tcp.AddrPort()
		if said := m.Remote; said.Port() != a.Port() || said.Addr().Unmap().WithZone("") != a.Addr().Unmap().WithZone("") {
			return nil, fmt.Errorf("%w: it says it comes from %s, the socket says %s", errMalformed, said, a)
		}
	} else if !local {
		remote = net.TCPAddrFromAddrPort(m.Remote) // the peer has gone already: ENOTCONN
	}
	c := &Conn{inner: inner, meta: m, remote: remote, peeked: append([]byte(nil), peeked...)}
	c.touch()
	if !local {
		l.admit(c, Source(m.Remote.Addr()))
		c.release = func() { l.forget(c) }
	}
	return c, nil
}

func (l *Listener) admit(c *Conn, src netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.source[src] >= maxPerSource:
		l.evict(func(p netip.Prefix) bool { return p == src })
	case len(l.open) >= maxOpen:
		l.evict(func(netip.Prefix) bool { return true })
	}
	l.open[c] = src
	l.source[src]++
}

func (l *Listener) evict(from func(netip.Prefix) bool) {
	var idle *Conn
	for c, src := range l.open {
		if from(src) && (idle == nil || c.active.Load() < idle.active.Load()) {
			idle = c
		}
	}
	l.log.Warn("too many connections: the one that was silent longest is closed", "from", idle.remote, "open", len(l.open))
	l.drop(idle)
	idle.inner.Close() // its user sees that, and closes it again
}

// Cut closes the connections that are not to be kept, by their source and by
// what they are bound to, and says how many. Whoever uses them sees an error at
// the next read or write, upgraded and HTTP/2 connections included.
func (l *Listener) Cut(keep func(netip.Addr, allowlist.Scope) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c := range l.open {
		need := allowlist.Scope(c.bound.Load())
		if need == 0 {
			need = allowlist.Everything
		}
		if !keep(c.meta.Remote.Addr().Unmap().WithZone(""), need) {
			l.drop(c)
			c.inner.Close() // its user sees that, and closes it again
			n++
		}
	}
	return n
}

func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(c)
}

func (l *Listener) drop(c *Conn) {
	src, ok := l.open[c]
	if !ok {
		return
	}
	delete(l.open, c)
	if l.source[src]--; l.source[src] <= 0 {
		delete(l.source, src)
	}
}

// Source is what connections are counted by: an IPv4 address, or the /64 that
// one IPv6 subscriber has as a whole.
func Source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the bits fit the family
	return p
}

func rights(oob []byte) ([]int, error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: its control part: %w", errMalformed, err)
	}
	var fds []int
	for _, m := range msgs {
		got, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, not descriptors
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// one makes a connection of exactly one descriptor that is a TCP or Unix
// stream; all descriptors are closed in any case (net.FileConn duplicates).
// No descriptor at all is left to the caller, who sees the end of the pair so.
func one(fds []int) (net.Conn, error) {
	var files []*os.File
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "handed over")
		defer f.Close()
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, nil
	}
	if len(files) > 1 {
		return nil, fmt.Errorf("%w: %d descriptors", errMalformed, len(files))
	}
	c, err := net.FileConn(files[0])
	if err != nil {
		return nil, fmt.Errorf("%w: not a socket: %v", errMalformed, err)
	}
	switch c := c.(type) {
	case *net.TCPConn:
		return c, nil
	case *net.UnixConn:
		if c.LocalAddr().Network() == "unix" {
			return c, nil
		}
	}
	c.Close()
	return nil, fmt.Errorf("%w: not a TCP or Unix stream", errMalformed)
}

// A Conn is a connection that was handed over. It has the methods of net.Conn
// and no more of the socket's own: an embedded *net.TCPConn would offer
// ReadFrom and WriteTo, and io.Copy would pass the peeked bytes by.
type Conn struct {
	inner   net.Conn
	meta    Meta
	remote  net.Addr
	release func()       // nil for the local socket, which has no limit
	active  atomic.Int64 // when it last moved bytes, for Listener.evict
	bound   atomic.Uint32
	answer  atomic.Pointer[func()]

	mu     sync.Mutex
	peeked []byte
}

func (c *Conn) touch() { c.active.Store(time.Now().UnixNano()) }

// Bind says what the connection serves from now on: its source must keep one of
// the scopes, or Listener.Cut closes it. Before that any scope will do.
func (c *Conn) Bind(s allowlist.Scope) { c.bound.Store(uint32(s)) }

// Meta says what the sender knew.
func (c *Conn) Meta() Meta { return c.meta }

// Read gives the peeked bytes first.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.peeked) > 0 {
		n := copy(p, c.peeked)
		if c.peeked = c.peeked[n:]; len(c.peeked) == 0 {
			c.peeked = nil
		}
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	n, err := c.inner.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// OnAnswer has f called once, when next something is written or at the end.
func (c *Conn) OnAnswer(f func()) { c.answer.Store(&f) }

func (c *Conn) answered() {
	if f := c.answer.Swap(nil); f != nil {
		(*f)()
	}
}

// Write writes to the peer.
func (c *Conn) Write(p []byte) (int, error) {
	c.answered()
	n, err := c.inner.Write(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// Close ends the connection and frees its place in the limits.
func (c *Conn) Close() error {
	c.answered()
	if c.release != nil {
		c.release()
	}
	return c.inner.Close()
}

// CloseWrite ends this side's direction; net/http uses it to let an answer arrive before the end.
func (c *Conn) CloseWrite() error {
	if w, ok := c.inner.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// LocalAddr is the box's address.
func (c *Conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr is the client's address as the socket knows it.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error { return c.inner.SetDeadline(t) }

// SetReadDeadline bounds reads from the peer.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.inner.SetReadDeadline(t) }

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.inner.SetWriteDeadline(t) }
