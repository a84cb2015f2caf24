package consoletest

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// SetExposure makes the figures other ones than those of Busy.
func (b *Box) SetExposure(e control.Exposure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exposure = &e
}

func (b *Box) handleExposure(s *control.Server) {
	control.Handle(s, control.OpExposure, func(context.Context, control.Role, control.None) (control.Exposure, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.exposure != nil {
			return *b.exposure, nil
		}
		return Busy(time.Now()), nil
	})
}

// Busy is a box of an hour and a half at which some knock.
func Busy(now time.Time) control.Exposure {
	e := control.Exposure{
		InKernel: true, Sampling: true, Sentence: "80 and 443 only; 2 lists on: 14 ranges may reach it",
		Since: now.Add(-95 * time.Minute), Start: now.Add(-95 * time.Minute), Opened: 1204, Lost: 2,
		Lists: []control.Hits{{Name: "office", Day: 90210}, {Name: "sites", Day: 1204}},
	}
	for i := range uint32(96) {
		in, out := 40+i*i%37*9, uint32(0)
		if i%7 == 3 || i > 60 && i < 70 {
			out = i % 31
		}
		e.Admitted, e.Refused = append(e.Admitted, in), append(e.Refused, out)
		e.Day.Admitted, e.Day.Refused = e.Day.Admitted+uint64(in), e.Day.Refused+uint64(out)
	}
	reasons := []netfilter.Reason{netfilter.ReasonNoList, netfilter.ReasonNoList, netfilter.ReasonOffLink, netfilter.ReasonStarting}
	for i := range 12 {
		d := control.Drop{
			First: now.Add(-time.Hour), Last: now.Add(-time.Duration(i*i) * time.Minute), Source: netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", 7+i)),
			SourcePort: 40000, Port: 443, Proto: "tcp", Reason: string(reasons[i%4]), Words: reasons[i%4].Words(), Link: "eth0", Samples: uint64(1 + i*i*31),
		}
		if i%5 == 2 {
			d.Source, d.Port = netip.MustParseAddr(fmt.Sprintf("2001:db8:85a3:8d3:1319:8a2e:370:%x", 0x7340+i)), 80
		}
		e.Drops = append(e.Drops, d)
	}
	for _, r := range reasons[1:] {
		e.Reasons = append(e.Reasons, control.Reason{Reason: string(r), Words: r.Words(), Samples: 812})
	}
	for i, name := range []string{"list_office", "list_sites", netfilter.WebRefused, netfilter.WebUDP, netfilter.WebNew, netfilter.EchoAnswered, netfilter.EchoOver, netfilter.Neighbour,
		netfilter.ICMPErrors, netfilter.Groups, netfilter.DHCP, netfilter.InvalidPackets, netfilter.Continued, netfilter.OtherDropped, netfilter.ForwardDropped, netfilter.Sent} {
		m := netfilter.MeaningOf(name)
		e.Counters = append(e.Counters, control.Meant{Counter: control.Counter{Name: name, Packets: uint64(31 * (i + 1)), Bytes: uint64(4096 * (i + 1))}, Class: string(m.Class), Words: m.Words})
	}
	return e
}
