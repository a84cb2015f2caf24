package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// knock is a datagram of nflog with one refused TCP packet to 443.
func knock(source netip.Addr, reason string) []byte {
	attr := func(b []byte, kind uint16, value []byte) []byte {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	ip := make([]byte, 40)
	ip[0], ip[9] = 0x45, byte(netfilter.TCP)
	copy(ip[12:], source.AsSlice())
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 443)
	body := attr(make([]byte, 4), 10, []byte("gatehouse:"+reason+"\x00"))
	body = attr(body, 4, binary.BigEndian.AppendUint32(nil, 1))
	body = attr(body, 9, ip)
	head := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	head = binary.NativeEndian.AppendUint16(head, 4<<8)
	return append(append(head, make([]byte, 10)...), body...)
}

// script plays the kernel's socket.
type script struct {
	say   func(n int) ([]byte, error) // the n-th Read
	reads int
}

func (s *script) Read(b []byte) (int, error) {
	d, err := s.say(s.reads)
	s.reads++
	return copy(b, d), err
}
func (s *script) SetReadDeadline(time.Time) error { return nil }

func reader(say func(int) ([]byte, error)) (*drops, *script) {
	s := &script{say: say}
	return &drops{file: s, log: slog.New(slog.DiscardHandler), link: func(int) string { return "eth0" }}, s
}

func address4(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}) }

func TestNET6_FloodOfSamplesIsBounded(t *testing.T) {
	d, s := reader(func(n int) ([]byte, error) { return knock(address4(n), "no-list"), nil })
	if err := d.read(make([]byte, sampleRoom), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if s.reads != mostRead {
		t.Errorf("%d datagrams were read in one go, want %d and a pause", s.reads, mostRead)
	}
	if len(d.report.Drops) != control.MaxDrops || d.report.Lost != mostRead-control.MaxDrops {
		t.Errorf("%d sources, %d lost", len(d.report.Drops), d.report.Lost)
	}
}

func TestNET6_HostileSamplesAreCounted(t *testing.T) {
	good := knock(address4(7), "off-link")
	for name, bad := range map[string][]byte{
		"empty header": good[:15], "cut": good[:len(good)-9], "noise": []byte("GET / HTTP/1.1\r\n\r\n hello hello"),
		"not IP": func() []byte { b := append([]byte{}, good...); b[len(b)-40] = 0x15; return b }(),
	} {
		d, _ := reader(func(n int) ([]byte, error) {
			switch n {
			case 0, 2:
				return bad, nil
			case 1, 3:
				return good, nil
			case 4:
				return nil, unix.ENOBUFS
			case 5:
				return knock(address4(8), "somebody-elses"), nil
			}
			return nil, os.ErrDeadlineExceeded
		})
		if err := d.read(make([]byte, sampleRoom), time.Now()); err != nil {
			t.Fatal(err)
		}
		r := d.report
		if r.Damaged != 2 || r.Lost != 1 || len(r.Drops) != 1 || r.Drops[0].Samples != 2 || r.Drops[0].Source != address4(7) || r.Drops[0].Port != 443 || r.Drops[0].Proto != "tcp" || r.Drops[0].Reason != "off-link" || r.Drops[0].Link != "eth0" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestNET6_ReportsThatAreRefusedCostNoGateway(t *testing.T) {
	for name, c := range map[string]struct{ err, want error }{
		"refused": {&control.Error{Code: control.CodeInvalid, Text: "no"}, nil},
		"gone":    {os.ErrClosed, os.ErrClosed},
	} {
		d, _ := reader(nil)
		d.report.Lost = 1
		told := 0
		d.tell = func(context.Context, control.Drops) error { told++; return c.err }
		if err := d.flush(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.flush(t.Context()); err != nil || told != 1 {
			t.Errorf("%s: %d reports, %v", name, told, err)
		}
	}
}

func TestNET6_BrokenSocketEndsTheReadingAlone(t *testing.T) {
	d, s := reader(func(int) ([]byte, error) { return nil, unix.EBADF })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := d.run(ctx); !errors.Is(err, context.DeadlineExceeded) || s.reads != 1 {
		t.Errorf("%v after %d reads", err, s.reads)
	}
}
