package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// What reading samples may cost. The kernel hands out 20 a second for each
// rule, but hosted the group may carry other programs' too: what is more than
// this is left to the socket's bound.
const (
	tellEvery  = time.Second
	mostRead   = 256 // datagrams in that time
	sampleRoom = 64 << 10
)

// drops reads the heads of refused packets and tells what they were. It is one
// goroutine that keeps one second's worth.
type drops struct {
	file interface {
		Read([]byte) (int, error)
		SetReadDeadline(time.Time) error
	}
	tell func(context.Context, control.Drops) error
	link func(index int) string
	log  *slog.Logger

	report control.Drops
	warned bool
}

// openDrops gives nil if there is nothing to read: not in the kernel.
func openDrops(env control.Environment, c *control.Client, log *slog.Logger) (*drops, error) {
	inherited := env.Files[control.FileDrops]
	if inherited == nil {
		return nil, nil
	}
	// Blocking or not is a property of the open socket, which others share.
	fd, err := unix.FcntlInt(inherited.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the samples of refused packets: %w", err)
	}
	return &drops{
		file: os.NewFile(uintptr(fd), control.FileDrops), log: log, link: linkName(),
		tell: func(ctx context.Context, q control.Drops) error {
			_, err := control.OpDrops.Call(ctx, c, q)
			return err
		},
	}, nil
}

// linkName remembers the names of links: a lookup reads all of them.
func linkName() func(int) string {
	names := make(map[int]string)
	return func(index int) string {
		name, ok := names[index]
		if !ok && len(names) < 64 {
			if i, err := net.InterfaceByIndex(index); err == nil && !strings.ContainsFunc(i.Name, func(r rune) bool { return r <= ' ' || r > '~' }) {
				name = i.Name
			}
			names[index] = name
		}
		return name
	}
}

// run goes on until ctx ends. A gateway without samples is better than none:
// what is wrong with the socket is said once, and nothing more is read.
func (d *drops) run(ctx context.Context) error {
	b := make([]byte, sampleRoom)
	stop := context.AfterFunc(ctx, func() { d.file.SetReadDeadline(time.Now()) })
	defer stop()
	for ctx.Err() == nil {
		end := time.Now().Add(tellEvery)
		err := d.read(b, end)
		if told := d.flush(ctx); told != nil {
			return told
		}
		if err != nil {
			d.log.Error("refused packets are not sampled any more", "err", err)
			<-ctx.Done()
		}
		pause(ctx, time.Until(end))
	}
	return ctx.Err()
}

// read takes what comes until end, or until it was enough.
func (d *drops) read(b []byte, end time.Time) error {
	if err := d.file.SetReadDeadline(end); err != nil {
		return err
	}
	for range mostRead {
		n, err := d.file.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			d.report.Lost++ // some were lost, the kernel does not say how many
			continue
		case err != nil:
			return err
		}
		samples, err := netfilter.DecodeSamples(b[:n], time.Now())
		if err != nil {
			d.report.Damaged++
			if !d.warned {
				d.warned = true
				d.log.Warn("a sample of refused packets cannot be read; more of these are only counted", "err", err)
			}
		}
		for _, s := range samples {
			d.add(s)
		}
	}
	return nil
}

// add puts packets of one source together.
func (d *drops) add(s netfilter.Sample) {
	one := control.Drop{Source: s.Source.Unmap().WithZone(""), SourcePort: s.SourcePort, Port: s.Port, Proto: protoName(s.Proto),
		Reason: string(s.Reason), Samples: 1}
	if s.Link > 0 {
		one.Link = d.link(s.Link)
	}
	for i := range d.report.Drops {
		o := &d.report.Drops[i]
		if o.Source == one.Source && o.Port == one.Port && o.Proto == one.Proto && o.Reason == one.Reason && o.Link == one.Link {
			o.SourcePort = one.SourcePort
			o.Samples++
			return
		}
	}
	if len(d.report.Drops) >= control.MaxDrops || one.Source == (netip.Addr{}) {
		d.report.Lost++
		return
	}
	d.report.Drops = append(d.report.Drops, one)
}

func protoName(p netfilter.Proto) string {
	switch p {
	case netfilter.TCP:
		return "tcp"
	case netfilter.UDP:
		return "udp"
	}
	return "other"
}

// flush tells what came together. A refusal costs the report, not the gateway.
func (d *drops) flush(ctx context.Context) error {
	r := d.report
	if len(r.Drops) == 0 && r.Lost == 0 && r.Damaged == 0 {
		return nil
	}
	d.report = control.Drops{}
	err := d.tell(ctx, r)
	var refused *control.Error
	if errors.As(err, &refused) {
		d.log.Warn("a report of refused packets was refused", "err", err)
		return nil
	}
	return err
}
