package hosted

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gatehouse/tests/netns"
)

// theirs are the rules of others on a machine that runs containers: a bridge
// behind NAT, ports published on the machine, forwarding closed but for those,
// and chains at the very priority that Gatehouse's have.
const theirs = `
table ip nat {
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump DOCKER
	}
	chain DOCKER {
		iifname != "br0" tcp dport 8080 dnat to 172.30.0.2:80
		iifname != "br0" tcp dport 8444 dnat to 172.30.0.2:443
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.30.0.0/24 oifname != "br0" masquerade
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		oifname "br0" tcp dport { 80, 443 } accept
		iifname "br0" accept
	}
}
table inet theirs {
	set listed { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
	counter seen { }
	chain early {
		type filter hook prerouting priority raw; policy accept;
		ip saddr @listed tcp dport 443 counter name "seen"
	}
	chain input {
		type filter hook input priority raw; policy accept;
		tcp dport 9001 drop
	}
}
table inet gatehouse-of-somebody-else {
	chain web { }
}
`

const (
	container   = "172.30.0.2"
	container6  = "fd00:30::2"
	machineOut6 = "2001:db8:1::3" // the machine's, that a container goes out to
)

// neighbours is a machine with services of others beside the box.
type neighbours struct {
	*filed
	inside     *netns.Host
	everywhere bool // Gatehouse listens on every address of the machine
}

func newNeighbours(t *testing.T, everywhere bool) *neighbours {
	t.Helper()
	n := &neighbours{filed: newFiled(t), inside: netns.New(t, "container"), everywhere: everywhere}
	netns.Connect(t, n.host, "veth0", n.inside, "eth0")
	n.host.Command(t, "ip", "link", "add", "br0", "type", "bridge")
	n.host.Command(t, "ip", "link", "set", "veth0", "master", "br0")
	n.host.Up(t, "veth0")
	n.host.Up(t, "br0", "172.30.0.1/24", "fd00:30::1/64")
	n.inside.Up(t, "eth0", container+"/24", container6+"/64")
	n.inside.Route(t, "0.0.0.0/0", "172.30.0.1", 0)
	n.inside.Route(t, "2001:db8:1::/64", "fd00:30::1", 0)
	n.host.Up(t, "lan0", "192.0.2.77/24", "2001:db8:1::1/64")
	n.machine.Up(t, "lan0", machineOut6+"/64")
	n.machine.Route(t, "fd00:30::/64", "2001:db8:1::1", 0)
	n.host.Forward(t)
	n.host.Command(t, "nft", "-f", n.script())
	for _, s := range []struct {
		h  *netns.Host
		at string
	}{{n.host, ":9000"}, {n.inside, ":80"}, {n.inside, ":443"}, {n.machine, ":443"}} {
		n.echo(s.h, s.at)
	}
	n.at = boxAddress
	n.put("office.list", friend+"\n"+boxAddress+"\n")
	n.args = []string{"--https", ":443", "--http", ":80", "--lists", n.dir}
	if !everywhere {
		n.args = []string{"--https", boxAddress + ":443", "--http", boxAddress + ":80", "--lists", n.dir}
		n.echo(n.host, "192.0.2.77:443") // our port on a second address is somebody else's
	}
	return n
}

func (n *neighbours) script() string {
	path := filepath.Join(n.TempDir(), "theirs.nft")
	if err := os.WriteFile(path, []byte(theirs), 0o600); err != nil {
		n.Fatal(err)
	}
	return path
}

// echo is a service that says everything back.
func (n *neighbours) echo(h *netns.Host, at string) {
	n.Helper()
	h.Do(n.T, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		n.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
		return nil
	})
}

// uses are what others do with the machine, as a stranger to Gatehouse's lists.
func (n *neighbours) uses() map[string]func() (net.Conn, error) {
	from := func(h *netns.Host, source, to string) func() (net.Conn, error) {
		return func() (c net.Conn, err error) {
			d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
			h.Do(n.T, func() error {
				c, err = d.Dial("tcp", to)
				return nil
			})
			return c, err
		}
	}
	all := map[string]func() (net.Conn, error){
		"another service of the machine":       from(n.machine, stranger, boxAddress+":9000"),
		"a published port":                     from(n.machine, stranger, boxAddress+":8080"),
		"a published port that is ours inside": from(n.machine, stranger, boxAddress+":8444"),
		"a container's way out to our port":    from(n.inside, container, stranger+":443"),
		"the same, IPv6":                       from(n.inside, container6, "["+machineOut6+"]:443"),
		"a container's own port, IPv6":         from(n.machine, machineOut6, "["+container6+"]:443"),
	}
	if !n.everywhere {
		all["our port on another of its addresses"] = from(n.machine, stranger, "192.0.2.77:443")
	}
	return all
}

// said checks that an open connection still carries both ways.
func said(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "still here"); err != nil {
		return err
	}
	b := make([]byte, len("still here"))
	_, err := io.ReadFull(c, b)
	return err
}

// work opens everything anew, and tries what was opened before; it gives what
// is open now.
func (n *neighbours) work(when string, open map[string]net.Conn) map[string]net.Conn {
	n.Helper()
	for what, c := range open {
		if err := said(c); err != nil {
			n.Errorf("%s: the open connection of %s is broken: %v", when, what, err)
		}
	}
	now := make(map[string]net.Conn)
	for what, dial := range n.uses() {
		c, err := dial()
		if err == nil {
			n.Cleanup(func() { c.Close() })
			err = said(c)
		}
		if err != nil {
			n.Errorf("%s: %s does not work: %v", when, what, err)
			continue
		}
		now[what] = c
	}
	return now
}

// others is the whole of the kernel's rules but for our table, with the handles
// that the kernel gave them: a rule that was taken out and put back has another.
func (n *neighbours) others() string {
	n.Helper()
	var all strings.Builder
	for line := range strings.Lines(n.host.Command(n.T, "nft", "list", "tables")) {
		words := strings.Fields(line)
		if line == "table inet gatehouse\n" {
			continue
		}
		all.WriteString(n.host.Command(n.T, "nft", "--stateless", "--handle", "list", words[0], words[1], words[2]))
	}
	return all.String()
}

// tracked are the connections of others that the kernel follows, each with what
// its NAT made of it.
func (n *neighbours) tracked() map[string]bool {
	n.Helper()
	found := make(map[string]bool)
	n.host.Do(n.T, func() error {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				answers, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
				if f.Forward.Protocol == 6 && answers.Unmap() != netip.MustParseAddr(boxAddress) {
					found[fmt.Sprint(f.Forward, f.Reverse)] = true
				}
			}
		}
		return nil
	})
	return found
}

// TestBOX14_NothingElseIsTouched is Gatehouse on a machine with services of
// others: before, while its lists change, while it is stopped and after it is
// uninstalled, the rules of others are byte for byte what they were, and all of
// it works, old connections and new.
func TestBOX14_NothingElseIsTouched(t *testing.T) {
	for name, everywhere := range map[string]bool{"listening on one address": false, "listening on every address": true} {
		t.Run(name, func(t *testing.T) { newNeighbours(t, everywhere).untouched() })
	}
}

func (n *neighbours) untouched() {
	t := n.T
	rules := n.others()
	if !strings.Contains(rules, "dnat to 172.30.0.2:80") || strings.Contains(rules, "table inet gatehouse {") {
		t.Fatalf("the rules of others are not there:\n%s", rules)
	}
	open := n.work("before", nil)
	same := func(when string) {
		t.Helper()
		if now := n.others(); now != rules {
			t.Errorf("%s: the rules of others changed:\n%s\nwere\n%s", when, now, rules)
		}
		flows := n.tracked()
		open = n.work(when, open)
		for flow := range flows {
			if !n.tracked()[flow] {
				t.Errorf("%s: a connection of others was forgotten: %s", when, flow)
			}
		}
	}
	n.start("unclaimed")
	same("unclaimed")
	n.claim()
	n.eventually("the lists in force", func() bool { return n.dropped(stranger) && n.reaches(friend) })
	same("with lists")
	flows := n.tracked()
	n.put("office.list", friend+"\n"+boxAddress+"\n203.0.113.0/24\n")
	n.put("allowlists.toml", oneOffice+"note = \"changed\"\n")
	n.eventually("changed lists", func() bool { return strings.Count(n.output(), "the lists of the host are in force") > 1 })
	for flow := range flows {
		if !n.tracked()[flow] {
			t.Errorf("a change of lists forgot a connection of others: %s", flow)
		}
	}
	same("after a change of lists")
	n.notYet()
	n.stop()
	if !strings.Contains(n.host.Command(t, "nft", "list", "tables"), "table inet gatehouse\n") {
		t.Error("the rules went with the program: a restart is an open moment")
	}
	same("stopped")
	n.uninstalled()
	same("uninstalled")
}

func (n *neighbours) uninstall() (string, error) {
	n.Helper()
	exe, err := filepath.Abs(program)
	if err != nil {
		n.Fatal(err)
	}
	c := exec.Command(exe, "uninstall", "--state", n.state)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin"}
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	n.host.Do(n.T, c.Start)
	err = c.Wait()
	return out.String(), err
}

// notYet: while it runs, its rules stay.
func (n *neighbours) notYet() {
	n.Helper()
	if out, err := n.uninstall(); err == nil || !strings.Contains(out, "in use by another gatehoused") {
		n.Errorf("uninstalled while it runs: %v %s", err, out)
	}
	if !n.dropped(stranger) {
		n.Error("a refused uninstall took the rules away")
	}
}

func (n *neighbours) uninstalled() {
	n.Helper()
	out, err := n.uninstall()
	if err != nil || !strings.Contains(out, "Removed the table inet gatehouse") || !strings.Contains(out, n.state) {
		n.Errorf("uninstall: %v %s", err, out)
	}
	if tables := n.host.Command(n.T, "nft", "list", "tables"); strings.Contains(tables, "inet gatehouse\n") || !strings.Contains(tables, "gatehouse-of-somebody-else") {
		n.Errorf("after uninstalling there are\n%s", tables)
	}
	if out, err := n.uninstall(); err != nil || !strings.Contains(out, "nothing of Gatehouse is in the kernel") {
		n.Errorf("uninstalled twice: %v %s", err, out)
	}
}
