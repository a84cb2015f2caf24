package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/network/mdns"
)

// Times of a look around: asked again, since packets get lost on wireless links.
const (
	lookAround  = 3 * time.Second
	askAgain    = time.Second
	longestLook = time.Minute
)

const nobodyFound = `no box answered within %v.
A box on its own machine answers while nobody owns it, later only where that is switched on; hosted it never does.
Other ways to find one: its console shows the address, with a QR code; your router's list of leases has it
as gatehouse-xxxx; both computers have to be on one network, and a firewall on this one has to let mDNS in (UDP 5353)`

func discoverCommand() *cobra.Command {
	var asJSON bool
	timeout := lookAround
	c := &cobra.Command{
		Use:   "discover",
		Short: "Find boxes on the networks of this computer",
		Long: `Find boxes on the networks of this computer, by multicast DNS.

What is printed is what the boxes say of themselves, and anybody on the network
can say anything: gatehouse setup proves which box it is.`,
		Example: "  gatehouse discover\n  gatehouse discover --timeout 10s --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 || timeout > longestLook {
				return fail(exitUsage, "--timeout: %v is not between 0 and %v", timeout, longestLook)
			}
			found, err := discover(cmd.Context(), timeout)
			if err != nil {
				return err
			}
			if err := printFound(cmd.OutOrStdout(), found, asJSON); err != nil {
				return err
			}
			if len(found) == 0 {
				return fail(exitNotFound, nobodyFound, timeout)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for answers, as `DURATION`")
	return c
}

func printFound(w io.Writer, found []mdns.Found, asJSON bool) error {
	if asJSON {
		return printJSON(w, append([]mdns.Found{}, found...)) // [] and not null
	}
	if len(found) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tADDRESS\tSTATE\tVERSION")
	for _, b := range found {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", b.Name, typed(b, b.Addresses[0]), orDash(b.State), orDash(b.Version))
	}
	return table.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// typed is an address of a box as a person types it.
func typed(b mdns.Found, a netip.Addr) string {
	if b.Port == 443 {
		return a.String()
	}
	return netip.AddrPortFrom(a, b.Port).String()
}

// discover asks on every link for boxes and collects what answers in time.
func discover(ctx context.Context, timeout time.Duration) ([]mdns.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ears, err := listenAround()
	if err != nil {
		return nil, err
	}
	question, err := mdns.Question()
	if err != nil {
		return nil, err
	}
	var (
		mu     sync.Mutex
		finder mdns.Finder
		done   sync.WaitGroup
	)
	for _, e := range ears {
		done.Go(func() {
			e.listen(func(b []byte, link string) {
				mu.Lock()
				defer mu.Unlock()
				finder.Receive(b, link) // others talk of other things here, and may talk nonsense
			})
		})
	}
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for ctx.Err() == nil {
		for _, e := range ears {
			e.conn.WriteToUDPAddrPort(question, e.group) // a link that takes none has no box to be found on
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	for _, e := range ears {
		e.conn.Close()
	}
	done.Wait()
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, ctx.Err()
	}
	return finder.Boxes(), nil
}

// ear hears one group on one link.
type ear struct {
	conn  *net.UDPConn
	group netip.AddrPort
}

// listenAround joins the groups of mDNS on every link that has multicasts. It
// shares their port with the system's own mDNS.
func listenAround() ([]ear, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the networks of this computer: %w", err)
	}
	var ears []ear
	var failed error
	for _, l := range links {
		if l.Flags&(net.FlagUp|net.FlagMulticast) != net.FlagUp|net.FlagMulticast || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		for network, group := range map[string]netip.AddrPort{
			"udp4": mdns.Group4,
			"udp6": netip.AddrPortFrom(mdns.Group6.Addr().WithZone(l.Name), mdns.Port),
		} {
			conn, err := net.ListenMulticastUDP(network, &l, net.UDPAddrFromAddrPort(group))
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("listening for mDNS on %s: %w", l.Name, err))
				continue
			}
			ears = append(ears, ear{conn, group})
		}
	}
	if len(ears) == 0 {
		return nil, &failure{exitUnreachable, errors.Join(errors.New("this computer has no network to look for boxes on"), failed)}
	}
	return ears, nil
}

// listen hands on packets until the socket is closed or its link goes. The link
// is known where the system tells it, with a link-local address.
func (e ear) listen(take func(packet []byte, link string)) {
	b := make([]byte, mdns.MaxPacket)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if from.Port() == mdns.Port {
			take(b[:n], from.Addr().Zone())
		}
	}
}
