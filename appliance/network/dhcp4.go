package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// exchangeTime is how long one question waits for its answer.
const exchangeTime = 4 * time.Second

// dhcp4 asks DHCP servers on one link. It opens its packet socket for each
// exchange: a box that only holds a lease reads nothing of the wire. The
// socket sees frames before the packet filter, so no port is open for it.
type dhcp4 struct {
	link *net.Interface
	name string // of the box, option 12
	last *dhcpv4.DHCPv4
}

// exchange opens a client, does one exchange and closes it.
func (d *dhcp4) exchange(do func(*nclient4.Client) (*dhcpv4.DHCPv4, error)) (lease, error) {
	raw, err := packet.Listen(d.link, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: filter4})
	if err != nil {
		return lease{}, fmt.Errorf("opening a packet socket on %s: %w", d.link.Name, err)
	}
	conn := nclient4.NewBroadcastUDPConn(raw, &net.UDPAddr{Port: dhcpv4.ClientPort})
	c, err := nclient4.NewWithConn(conn, d.link.HardwareAddr, nclient4.WithTimeout(exchangeTime), nclient4.WithRetry(1))
	if err != nil {
		raw.Close()
		return lease{}, fmt.Errorf("starting DHCP on %s: %w", d.link.Name, err)
	}
	defer c.Close()
	ack, err := do(c)
	if err != nil {
		var nak *nclient4.ErrNak
		if errors.As(err, &nak) {
			return lease{}, errRefused
		}
		return lease{}, err
	}
	l, err := leaseFromAck(ack)
	if err == nil {
		d.last = ack
	}
	return l, err
}

func (d *dhcp4) options(more ...dhcpv4.Modifier) []dhcpv4.Modifier {
	return append([]dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptHostName(d.name)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
	}, more...)
}

// discover finds a server and takes its lease. An offer that would be refused
// as a lease is not even asked for: the next server's may be sound. The address
// held last is asked for again, so that a moment without a cable changes nothing.
func (d *dhcp4) discover(ctx context.Context) (lease, error) {
	return d.exchange(func(c *nclient4.Client) (*dhcpv4.DHCPv4, error) {
		mods := d.options()
		if d.last != nil {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(d.last.YourIPAddr)))
		}
		question, err := dhcpv4.NewDiscovery(d.link.HardwareAddr, mods...)
		if err != nil {
			return nil, fmt.Errorf("making a DHCP discovery: %w", err)
		}
		var refused error
		offer, err := c.SendAndRead(ctx, nclient4.DefaultServers, question, func(m *dhcpv4.DHCPv4) bool {
			if m.MessageType() != dhcpv4.MessageTypeOffer {
				return false
			}
			_, bad := leaseFromAck(m)
			if bad != nil {
				refused = bad
			}
			return bad == nil
		})
		if err != nil {
			return nil, errors.Join(err, refused)
		}
		l, err := c.RequestFromOffer(ctx, offer, d.options()...)
		if err != nil {
			return nil, err
		}
		return l.ACK, nil
	})
}

// extend asks for more time: of the server of the lease, or of any.
func (d *dhcp4) extend(ctx context.Context, held lease, anyServer bool) (lease, error) {
	return d.exchange(func(c *nclient4.Client) (*dhcpv4.DHCPv4, error) {
		question, err := dhcpv4.NewRenewFromAck(d.last, d.options()...)
		if err != nil {
			return nil, fmt.Errorf("making a DHCP renewal: %w", err)
		}
		answer, err := c.SendAndRead(ctx, nclient4.DefaultServers, question, func(m *dhcpv4.DHCPv4) bool {
			if t := m.MessageType(); t != dhcpv4.MessageTypeAck && t != dhcpv4.MessageTypeNak {
				return false
			}
			from, ok := netip.AddrFromSlice(m.ServerIdentifier().To4())
			return anyServer || (ok && from == held.Server)
		})
		if err != nil {
			return nil, err
		}
		if answer.MessageType() == dhcpv4.MessageTypeNak {
			return nil, errRefused
		}
		return answer, nil
	})
}

// filter4 lets UDP to port 68 through to the packet socket, first fragments
// only; everything else on a busy link never reaches this process.
var filter4 = assemble(
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv4.ClientPort, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
)

// assemble panics on a program that is wrong as written, which every test of
// the package would show.
func assemble(program ...bpf.Instruction) []bpf.RawInstruction {
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic(err)
	}
	return raw
}
