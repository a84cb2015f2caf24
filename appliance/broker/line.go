package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/broker/target"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
)

// line is a site that waits for our word.
type line struct {
	conn  net.Conn
	out   chan attend.ToSite
	gone  chan struct{}
	once  sync.Once
	hello struct {
		attend.Hello
		site string
	}
}

const (
	maxLines  = 1024
	writeTime = 10 * time.Second
	lineQueue = 64
)

var errNoAgent = asker.Refuse("The agent of this box is not connected. It comes by itself within half a minute; the log says what keeps it.")

var errLineFull = errors.New("the site does not take what it is told")

// send queues a message. A line that is full has ended, for all that it knows.
func (n *line) send(m attend.ToSite) error {
	select {
	case n.out <- m:
		return nil
	case <-n.gone:
		return net.ErrClosed
	default:
		n.close()
		return errLineFull
	}
}

func (n *line) close() { n.once.Do(func() { close(n.gone); n.conn.Close() }) }

// line is that of the one site there is: the box's own.
func (b *Broker) line() (*line, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.lines {
		return n, nil
	}
	return nil, errNoAgent
}

// lineOf is that of the site that serves a session.
func (b *Broker) lineOf(l *live) (*line, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.lines[l.site]; n != nil {
		return n, nil
	}
	return nil, errNoAgent
}

func (b *Broker) closeLines() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.lines {
		n.close()
	}
}

// Attend serves the line of a site that proved who it is, until it ends.
func (b *Broker) Attend(ctx context.Context, site string, c net.Conn, r io.Reader) error {
	if err := enroll.CheckSite(site); err != nil {
		return errors.Join(err, c.Close())
	}
	n := &line{conn: c, out: make(chan attend.ToSite, lineQueue), gone: make(chan struct{})}
	defer n.close()
	defer context.AfterFunc(ctx, n.close)()
	in := attend.NewReader(r)
	if err := n.read(in, &n.hello.Hello); err != nil {
		return err
	}
	n.hello.site = site
	lost, err := b.enter(n)
	if err != nil {
		return err
	}
	defer b.leave(n)
	go n.write()
	if err := n.send(attend.ToSite{Welcome: &attend.Welcome{Organisation: b.keys.public()}}); err != nil {
		return err
	}
	b.settle(ctx, n, lost)
	for {
		var m attend.FromSite
		if err := n.next(in, &m); err != nil {
			return fmt.Errorf("the line of site %s: %w", site, err)
		}
		if err := b.hear(ctx, n, m); err != nil {
			return fmt.Errorf("the line of site %s: %w", site, err)
		}
	}
}

// read reads the first message.
func (n *line) read(in *bufio.Reader, h *attend.Hello) error {
	var m attend.FromSite
	if err := n.next(in, &m); err != nil {
		return err
	}
	if m.Hello == nil || m.Hello.Key == (session.Key{}) || m.Hello.Certificate == (session.Key{}) || len(m.Hello.Sessions) > maxLive {
		return errors.New("the site does not begin with who it is")
	}
	*h = *m.Hello
	return nil
}

func (n *line) next(in *bufio.Reader, m *attend.FromSite) error {
	if err := n.conn.SetReadDeadline(time.Now().Add(attend.Silence)); err != nil {
		return err
	}
	return attend.Read(in, m)
}

// write sends what is queued, and that we are alive.
func (n *line) write() {
	defer n.close()
	tick := time.NewTicker(attend.Alive)
	defer tick.Stop()
	for {
		var m attend.ToSite
		select {
		case <-n.gone:
			return
		case m = <-n.out:
		case <-tick.C:
		}
		if n.conn.SetWriteDeadline(time.Now().Add(writeTime)) != nil || attend.Write(n.conn, m) != nil {
			return
		}
	}
}

// enter takes the line in the place of an older one, and says which sessions
// the site had before and has no more. What is granted from here on it is told.
func (b *Broker) enter(n *line) (lost map[session.ID]bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.lines[n.hello.site]
	if old == nil && len(b.lines) >= maxLines {
		return nil, fmt.Errorf("%d sites wait here already", len(b.lines))
	}
	b.lines[n.hello.site] = n
	if old != nil {
		old.close()
	}
	lost = make(map[session.ID]bool)
	for id, l := range b.live {
		if l.site == n.hello.site && !slices.Contains(n.hello.Sessions, id) {
			lost[id] = true
		}
	}
	return lost, nil
}

func (b *Broker) leave(n *line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines[n.hello.site] == n {
		delete(b.lines, n.hello.site)
	}
}

// settle ends what the site lost, and has the site end what is over here.
func (b *Broker) settle(ctx context.Context, n *line, lost map[session.ID]bool) {
	b.endIf(ctx, func(l *live) string {
		if lost[l.grant.ID] {
			return "the agent was started anew"
		}
		return ""
	})
	for _, id := range n.hello.Sessions {
		b.mu.Lock()
		known := b.live[id] != nil
		b.mu.Unlock()
		if !known {
			if err := n.send(attend.ToSite{End: &attend.End{Session: id, Reason: "the hub knows of no such session"}}); err != nil {
				return
			}
		}
	}
}

// hear takes one message of a site. A session of another site is not its business.
func (b *Broker) hear(ctx context.Context, n *line, m attend.FromSite) error {
	switch {
	case m.Event != nil:
		return b.event(ctx, n, *m.Event)
	case m.HostKey != nil:
		return b.hostKey(ctx, n, *m.HostKey)
	case m.Signalled != nil:
		b.signalled(n, *m.Signalled)
	case m.Chunk != nil:
		kept := b.chunk(ctx, n.hello.site, *m.Chunk)
		return n.send(attend.ToSite{Kept: &kept})
	case m.Hello != nil:
		return errors.New("the site says twice who it is")
	}
	return nil
}

func (b *Broker) of(n *line, id session.ID) *live {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.live[id]; l != nil && l.site == n.hello.site {
		return l
	}
	return nil
}

func (b *Broker) event(ctx context.Context, n *line, e attend.Event) error {
	l := b.of(n, e.Session)
	if l == nil {
		return nil // it ended here while this was on its way
	}
	e.Text = wire.Printable(e.Text, 300)
	if e.What == attend.Ended {
		b.finish(ctx, e.Session, e.Text)
		return nil
	}
	if e.What == attend.File {
		detail := map[string]string{"session": e.Session.String(), "technician": l.grant.Technician}
		for _, k := range []string{"way", "path", "size", "sha256", "outcome"} {
			if v := e.Detail[k]; v != "" {
				detail[k] = wire.Printable(v, 1024)
			}
		}
		if err := b.hubEvent(ctx, "file", l.grant.Target.Name, detail); err != nil {
			b.finish(ctx, e.Session, "a file could not be recorded in the audit log")
		}
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e.What {
	case attend.Joined:
		l.state = api.Live
	case attend.Lost:
		l.state, l.path = api.Lost, ""
	case attend.Way:
		l.path = wire.Printable(e.Text, 16)
		if l.state == api.Lost {
			l.state = api.Live // that somebody joined is told once
		}
	case attend.Opened:
		if len(l.open) < 64 {
			l.open = append(l.open, wire.Printable(e.Text, 32))
		}
	case attend.Closed:
		if i := slices.Index(l.open, wire.Printable(e.Text, 32)); i >= 0 {
			l.open = slices.Delete(l.open, i, i+1)
		}
	}
	return nil
}

func (b *Broker) hostKey(ctx context.Context, n *line, k attend.HostKey) error {
	l := b.of(n, k.Session)
	if l == nil || l.targetID == 0 {
		return nil
	}
	detail := map[string]string{"session": k.Session.String(), "key": target.Fingerprint(k.Key)}
	if err := b.cfg.Audit(ctx, control.Event{Actor: l.grant.Technician, Action: "accept host key", Object: l.grant.Target.Name, From: l.from, Outcome: "ok", Detail: detail}); err != nil {
		return err
	}
	return b.Pin(ctx, l.targetID, k.Key)
}

func (b *Broker) signalled(n *line, s attend.Signalled) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.live[s.Session]
	if l == nil || l.site != n.hello.site || len(s.SDP) > maxSDP {
		return
	}
	if c := l.answers[s.Number]; c != nil {
		s.Error = wire.Printable(s.Error, 300)
		delete(l.answers, s.Number)
		c <- s
	}
}
