// Package gateway is the role that owns ports 80 and 443: it reads what a connection asks for and passes it on.
//
// It holds no web key and reads no more than the ClientHello. What is for the
// web goes to the console with the bytes read; the rest is refused here.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/admission"
	"gatehouse/appliance/control"
	"gatehouse/appliance/handover"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/task"
	"gatehouse/netfilter/allowlist"
)

// Limits. The times add up to less than 15 s, after which no connection that
// sends nothing useful is open.
const (
	helloTime  = 5 * time.Second // for the whole ClientHello
	handTime   = 6 * time.Second // for the console to have room
	alertTime  = time.Second
	maxWaiting = 2048
	maxSource  = 256
	// maxMemory bounds what all waiting connections keep beyond the first
	// maxHelloFirstPut bytes of each, in bytes.
	maxMemory = 16 << 20
)

// agentUID may use the local socket (docs/architecture.md, Paths); root and
// our own uid may too, since hosted without privilege all roles have one.
const agentUID = 60904

// Run is the gateway until ctx ends or one of its listeners fails.
func Run(ctx context.Context, env control.Environment, c *control.Client, log *slog.Logger) error {
	sender, err := handover.NewSender(env.Files[control.FileConsole])
	if err != nil {
		return err
	}
	defer sender.Close()
	ask := func(ctx context.Context) (control.Status, error) {
		return control.OpStatus.Call(ctx, c, control.None{})
	}
	status, err := ask(ctx)
	if err != nil {
		return err
	}
	lists := admission.Open(env.Admission, log)
	d := &door{ask: ask, lists: lists}
	if err := d.look(ctx); err != nil {
		return err
	}
	web, err := inherited[*net.TCPListener](env, control.FileHTTPS)
	if err != nil {
		return err
	}
	plain, err := inherited[*net.TCPListener](env, control.FileHTTP)
	if err != nil {
		return errors.Join(err, web.Close())
	}
	g := newGateway(sender, log)
	g.lists = lists
	if !env.Locked {
		if g.relay, err = openRelay(ctx, env, c, web.Addr(), lists, log); err != nil {
			return err
		}
	}
	lists.OnChange(g.cut)
	p := newPage(status.Name, web.Addr())
	p.challenges = &challenges{now: time.Now, ask: func(ctx context.Context) (control.Challenges, error) {
		return control.OpChallenges.Call(ctx, c, control.None{})
	}}
	tasks := []task.Task{
		task.Func("port 443", func(ctx context.Context) error { return g.serve(ctx, guarded{web, d}, g.web) }),
		task.Func("port 80", func(ctx context.Context) error { return p.serve(ctx, guarded{plain, d}, log) }),
		d.watch(), lists,
	}
	if !env.Locked { // locked, there is no agent
		local, err := inherited[*net.UnixListener](env, control.FileAgent)
		if err != nil {
			return errors.Join(err, web.Close(), plain.Close())
		}
		tasks = append(tasks, task.Func("local socket", func(ctx context.Context) error { return g.serve(ctx, local, g.local) }))
	}
	refused, err := openDrops(env, c, log)
	if err != nil {
		return errors.Join(err, web.Close(), plain.Close())
	}
	if refused != nil {
		tasks = append(tasks, task.Func("refused packets", refused.run))
	}
	return task.Run(ctx, tasks...)
}

func inherited[L net.Listener](env control.Environment, name string) (L, error) {
	var none L
	f := env.Files[name]
	if f == nil {
		return none, fmt.Errorf("the listening socket %q was not inherited: the supervisor hands it over", name)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return none, fmt.Errorf("opening the inherited socket %q: %w", name, err)
	}
	t, ok := l.(L)
	if !ok {
		return none, errors.Join(fmt.Errorf("the inherited socket %q is %s", name, l.Addr().Network()), l.Close())
	}
	return t, nil
}

type gateway struct {
	sender  *handover.Sender
	log     *slog.Logger
	waiting *waiting
	budget  *budget
	lists   *admission.Watch
	memory  atomic.Int64
	relay   *relay.Relay // nil while locked: there are no sessions
}

func newGateway(s *handover.Sender, log *slog.Logger) *gateway {
	return &gateway{sender: s, log: log, lists: admission.Open("", log), waiting: newWaiting(maxWaiting, maxSource), budget: newBudget(time.Now)}
}

// serve accepts until ctx ends. The goroutines are bounded by waiting: the
// connection of one too many is closed, and its goroutine ends with it. One that
// turned out to be somebody's calls known, and is bounded elsewhere from then on.
func (g *gateway) serve(ctx context.Context, l net.Listener, handle func(ctx context.Context, c net.Conn, known func()) error) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return ctx.Err()
		case passing(err):
			// No descriptor is free: those that wait time out soon.
			g.log.Warn("cannot accept", "on", l.Addr(), "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		case err != nil:
			return err
		}
		guest := g.waiting.enter(c, address(c.RemoteAddr()).Addr())
		wg.Go(func() {
			defer g.waiting.leave(guest)
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := handle(ctx, c, func() { g.waiting.leave(guest) }); err != nil {
				g.log.Debug("a connection was closed", "from", c.RemoteAddr(), "err", err)
			}
		})
	}
}

// passing says whether Accept may work later.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func address(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort() // of a dual-stack socket: an IPv4 address in IPv6 clothes
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// web reads a ClientHello and passes the connection on or refuses it.
func (g *gateway) web(ctx context.Context, c net.Conn, known func()) error {
	accepted := boottime()
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	var h hello
	defer func() { g.memory.Add(-extra(&h)) }()
	if err := g.read(c, &h); err != nil {
		if maybeICE(h.raw) {
			return g.browser(ctx, c, h.raw, known)
		}
		return err
	}
	protocols, err := h.protocols()
	if err != nil {
		return err
	}
	kind, refusal := dispatch(protocols)
	if refusal != 0 {
		if err := c.SetWriteDeadline(time.Now().Add(alertTime)); err != nil {
			return err
		}
		_, err := c.Write(alert(refusal))
		return errors.Join(fmt.Errorf("protocols %q are not served", protocols), err)
	}
	// Paid for here, so that silent connections cost their source nothing of it.
	wait, ok := g.budget.take(address(c.RemoteAddr()).Addr())
	if !ok {
		return errors.New("the source opens more connections than one may")
	}
	if wait > 0 {
		pause(ctx, wait)
	}
	if kind == meeting {
		return g.meet(ctx, c, h.raw, known)
	}
	return g.pass(ctx, c, kind, h.raw, accepted)
}

// extra is what a hello holds beyond what every connection may.
func extra(h *hello) int64 { return int64(max(cap(h.raw)-maxHelloFirstPut, 0)) }

func (g *gateway) read(c net.Conn, h *hello) error {
	h.raw = make([]byte, 0, maxHelloFirstPut)
	for {
		if len(h.raw) == cap(h.raw) {
			if len(h.raw) >= maxHelloBytes {
				return fmt.Errorf("%w: over %d bytes", errHello, maxHelloBytes)
			}
			size := min(2*cap(h.raw), maxHelloBytes)
			if g.memory.Add(int64(size-cap(h.raw))) > maxMemory {
				g.memory.Add(-int64(size - cap(h.raw)))
				return errors.New("too many long ClientHellos at once")
			}
			h.raw = append(make([]byte, 0, size), h.raw...)
		}
		n, err := c.Read(h.raw[len(h.raw):cap(h.raw)])
		h.raw = h.raw[:len(h.raw)+n]
		if n > 0 {
			if done, ferr := h.feed(); done || ferr != nil {
				return ferr
			}
		}
		if err != nil {
			return fmt.Errorf("reading the ClientHello: %w", err)
		}
	}
}

func (g *gateway) pass(ctx context.Context, c net.Conn, kind handover.Kind, peeked []byte, accepted int64) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("handing over: %T has no descriptor", c)
	}
	m := handover.Meta{Kind: kind, Remote: address(c.RemoteAddr()), Local: address(c.LocalAddr()), Scopes: allowlist.Everything.Names(), Accepted: accepted}
	if kind != handover.Agent {
		// Judged again: the lists may have changed since it was accepted.
		if m.Scopes = g.lists.Scopes(m.Remote.Addr()).Names(); len(m.Scopes) == 0 {
			return errors.New("no list admits the source any more")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	err := g.sender.Send(ctx, s, m, peeked)
	if err != nil && ctx.Err() != nil {
		g.log.Warn("the console does not take connections", "err", err)
	}
	return err
}

// boottime is the time in ns that all processes of the box share.
func boottime() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // older than any change: nothing is confirmed over it
	}
	return t.Nano()
}

// local passes on what comes from the box's own agent.
func (g *gateway) local(ctx context.Context, c net.Conn, _ func()) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is not a local connection", c)
	}
	uid, err := peer(u)
	if err != nil {
		return err
	}
	if !mayBeAgent(uid, uint32(os.Geteuid())) {
		err := fmt.Errorf("uid %d may not use the local socket: it is the agent's", uid)
		g.log.Warn("a local connection was refused", "err", err)
		return err
	}
	return g.pass(ctx, c, handover.Agent, nil, boottime())
}

func mayBeAgent(uid, own uint32) bool { return uid == 0 || uid == agentUID || uid == own }

func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("asking who connects: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return 0, fmt.Errorf("asking who connects: %w", errors.Join(err, credErr))
	}
	return cred.Uid, nil
}
