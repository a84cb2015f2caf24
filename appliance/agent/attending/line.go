package attending

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"time"

	"gatehouse/appliance/enroll/attend"
)

// lineQueue is what may be on its way to the hub.
const lineQueue = 256

// Wait is the life of one line: c is open and switched already. It ends with
// an error always.
func (d *Desk) Wait(ctx context.Context, c io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	hello := d.Hello()
	if err := attend.Write(c, attend.FromSite{Hello: &hello}); err != nil {
		return err
	}
	in := attend.NewReader(c)
	silent := time.AfterFunc(attend.Silence, func() { c.Close() }) // a reader of an upgraded connection has no deadline
	defer silent.Stop()
	next := func() (m attend.ToSite, err error) {
		err = attend.Read(in, &m)
		silent.Reset(attend.Silence)
		return m, err
	}
	m, err := next()
	if err != nil {
		return err
	}
	if m.Welcome == nil || len(m.Welcome.Organisation) != ed25519.PublicKeySize {
		return errors.New("the hub does not begin with whose grants count")
	}
	out := make(chan attend.FromSite, lineQueue)
	d.connected(out)
	defer d.disconnected(out)
	go func() {
		defer cancel()
		d.write(ctx, c, out)
	}()
	for {
		told, err := next()
		if err != nil {
			return err
		}
		d.hear(ctx, m.Welcome.Organisation, told)
	}
}

// write sends what is told, and that we are alive.
func (d *Desk) write(ctx context.Context, c io.Writer, out <-chan attend.FromSite) {
	tick := time.NewTicker(attend.Alive)
	defer tick.Stop()
	for {
		var m attend.FromSite
		select {
		case <-ctx.Done():
			return
		case m = <-out:
		case <-tick.C:
		}
		if attend.Write(c, m) != nil {
			return
		}
		d.mu.Lock()
		d.flush()
		d.mu.Unlock()
	}
}
