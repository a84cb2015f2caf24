package netns

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/durable"
	"gatehouse/appliance/host"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/netconf"
)

// keepWithin is short, and long enough for a loaded machine to dial.
const keepWithin = 15 * time.Second

// noAudit takes every event.
type noAudit struct{}

func (noAudit) Append(context.Context, control.Event) (control.Appended, error) {
	return control.Appended{}, nil
}
func (noAudit) Checkpoint(context.Context) (control.Appended, error) {
	return control.Appended{}, nil
}
func (noAudit) Head() control.AuditHead { return control.AuditHead{} }

// claimedVault is a vault of a box that has an owner.
type claimedVault struct{}

func (claimedVault) Subkey(string) (k [32]byte, err error) { return k, nil }
func (claimedVault) Claimed(context.Context) (bool, error) { return true, nil }
func (claimedVault) SetClaimed(context.Context) error      { return nil }
func (claimedVault) Trust() (t control.Trust)              { return t }
func bootTime() (at int64)                                 { return bootTimeOf(unix.CLOCK_BOOTTIME) }
func bootTimeOf(clock int32) int64 {
	var t unix.Timespec
	if unix.ClockGettime(clock, &t) != nil {
		return 0
	}
	return t.Nano()
}

// keepPart is a box: the monitor with the kernel's links, what was kept in a
// file, and in the place of the page a line for each wish on port 443.
func keepPart(args []string, w io.Writer) error {
	file, log := args[0], slog.New(slog.NewTextHandler(os.Stderr, nil))
	machine := host.New(log)
	var kept control.NetworkSettings
	text, err := os.ReadFile(file)
	if err == nil {
		kept, err = netconf.Decode(text)
	}
	if err != nil {
		return err
	}
	own := func() []control.Link {
		links, err := machine.Own()
		if err != nil {
			log.Error("links", "err", err)
		}
		return links
	}
	m, err := monitor.New(monitor.Config{
		Name: "gatehouse-test", Vault: claimedVault{}, Audit: noAudit{}, KeepWithin: keepWithin,
		Clock: monitor.NewClock(time.Now(), time.Time{}, "rtc", nil), Rand: rand.Reader, Now: time.Now, Logger: log,
		Roles: func() []control.RoleStatus { return nil },
		Machine: monitor.Machine{Links: func() (out []control.Link) {
			links, err := machine.Links()
			if err != nil {
				log.Error("links", "err", err)
			}
			for _, l := range links {
				out = append(out, control.Link{Name: l.Name, Addresses: l.Addresses})
			}
			return out
		}},
		Network: &monitor.Network{
			Kept: kept, Own: own, Names: func() ([]netip.Addr, []string) { return nil, nil },
			Apply: func(_ context.Context, s control.NetworkSettings) error { return machine.Configure(s) },
			Keep: func(s control.NetworkSettings) error {
				text, err := netconf.Encode(s)
				if err != nil {
					return err
				}
				return durable.WriteFile(file, text, 0o600)
			},
		},
	})
	if err != nil {
		return err
	}
	socket, err := net.Listen("unix", args[1])
	if err != nil {
		return err
	}
	server := control.NewServer(log, func(int, uint32) (control.Role, bool) { return control.Console, true })
	m.Register(server)
	go server.Serve(context.Background(), socket)
	console, err := control.Dial(args[1])
	if err != nil {
		return err
	}
	if _, err := control.OpConsoleReady.Call(context.Background(), console, control.ConsoleReady{Database: control.DatabaseClaimed}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":443")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go keepServe(m, console, conn, bootTime())
	}
}

// keepServe does what a person wishes over one connection.
func keepServe(m *monitor.Monitor, console *control.Client, conn net.Conn, accepted int64) {
	defer conn.Close()
	ctx := context.Background()
	for s := bufio.NewScanner(conn); s.Scan(); {
		word, rest, _ := strings.Cut(s.Text(), " ")
		answer := "done"
		var err error
		switch word {
		case "try":
			q := control.NetworkTry{Actor: "ann", Local: conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()}
			if err = json.Unmarshal([]byte(rest), &q.Settings); err == nil {
				var r control.NetworkReport
				r, err = control.OpNetworkTry.Call(ctx, console, q)
				answer = fmt.Sprintf("problems %d cut %v waits %v", len(r.Problems), r.SelfCut, r.Candidate != nil)
			}
		case "keep":
			for _, c := range m.Candidates() {
				_, err = control.OpKeep.Call(ctx, console, control.Keep{ID: c.ID, Accepted: accepted, Actor: "ann"})
			}
		case "undo":
			err = m.RevertAll(ctx)
		case "waiting":
			answer = fmt.Sprint(len(m.Candidates()))
		}
		if err != nil {
			answer = "refused: " + err.Error()
		}
		fmt.Fprintln(conn, answer)
	}
}

// visitor is a browser on the cable.
type visitor struct {
	t *testing.T
	*Host
}

// open connects to an address of the box, as soon as it is there.
func (v visitor) open(address string, within time.Duration) net.Conn {
	v.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var conn net.Conn
		v.Do(v.t, func() error {
			d := net.Dialer{Timeout: time.Second}
			if c, err := d.DialContext(v.t.Context(), "tcp", address+":443"); err == nil {
				conn = c
			}
			return nil
		})
		if conn != nil {
			v.t.Cleanup(func() { conn.Close() })
			return conn
		}
	}
	return nil
}

// say sends a wish and reads the answer.
func (v visitor) say(conn net.Conn, wish string) string {
	v.t.Helper()
	if conn == nil {
		v.t.Fatalf("%s: the box is not reached", wish)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		v.t.Fatal(err)
	}
	fmt.Fprintln(conn, wish)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		v.t.Fatalf("%s: %v", wish, err)
	}
	return strings.TrimSpace(line)
}

const (
	oldText = `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24","203.0.113.7/24"]}]}`
	newText = `{"links":[{"name":"eth0","mode":"static","addresses":["198.51.100.7/24","203.0.113.7/24"]}]}`
	badText = `{"links":[{"name":"eth0","mode":"static","addresses":["198.51.100.99/24"]}]}`
)

// TestNET3_StaticAddressOnTheWire changes the address of a box from a browser on
// its cable, with the kernel's links: told before it goes, not kept on the old
// connection, back by itself, kept on a new one, undone at the console, and
// after a restart what was kept.
func TestNET3_StaticAddressOnTheWire(t *testing.T) {
	box, v := New(t, "box"), visitor{t, New(t, "browser")}
	Connect(t, box, "eth0", v.Host, "lan")
	v.Up(t, "lan", "192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24")
	file := filepath.Join(t.TempDir(), "network.json")
	var old control.NetworkSettings
	if err := json.Unmarshal([]byte(oldText), &old); err != nil {
		t.Fatal(err)
	}
	text, err := netconf.Encode(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(n int) *Process {
		p := box.Start(t, "keep", file, filepath.Join(t.TempDir(), fmt.Sprint("control", n)))
		if line, err := bufio.NewReader(p.Stdout()).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("the box says %q, %v", line, err)
		}
		return p
	}
	first := start(1)
	const patience = 60 * time.Second
	spare := v.open("203.0.113.7", patience) // opened ahead, as browsers do; its address stays
	v.say(spare, "waiting")

	if got := v.say(v.open("192.0.2.7", patience), "try "+newText); got != "problems 0 cut true waits true" {
		t.Fatalf("trying: %s", got)
	}
	if v.open("198.51.100.7", patience) == nil {
		t.Fatal("the new address is not in effect")
	}
	if v.open("192.0.2.7", 2*time.Second) != nil {
		t.Error("the old address still answers")
	}
	if got := v.say(spare, "keep"); !strings.Contains(got, "refused") || !strings.Contains(got, "older than the change") {
		t.Errorf("keeping over a connection from before: %s", got)
	}
	if v.open("192.0.2.7", keepWithin+patience) == nil {
		t.Fatal("not kept, and it does not go back")
	}
	if got := v.say(spare, "waiting"); got != "0" {
		t.Errorf("%s still wait", got)
	}

	v.say(v.open("192.0.2.7", patience), "try "+newText)
	if got := v.say(v.open("198.51.100.7", keepWithin), "keep"); got != "done" {
		t.Fatalf("keeping over a new connection: %s", got)
	}
	if v.open("192.0.2.7", keepWithin+2*time.Second) != nil || v.open("198.51.100.7", patience) == nil {
		t.Error("kept, and it went back")
	}

	if got := v.say(spare, "try "+badText); got != "problems 0 cut true waits true" {
		t.Errorf("trying: %s", got)
	}
	if v.open("198.51.100.99", patience) == nil {
		t.Fatal("the third address is not in effect")
	}
	second := v.open("198.51.100.99", patience)
	v.say(second, "waiting")
	fmt.Fprintln(second, "undo") // its answer does not come over what it takes away
	if v.open("198.51.100.7", keepWithin-5*time.Second) == nil {
		t.Error("undone at the console, and not as before")
	}

	v.say(v.open("198.51.100.7", patience), "try "+badText)
	if v.open("198.51.100.99", patience) == nil {
		t.Fatal("the third address is not in effect")
	}
	first.Stop()
	start(2)
	if v.open("198.51.100.7", patience) == nil || v.open("198.51.100.99", 2*time.Second) != nil {
		t.Error("a restart did not bring what was kept")
	}
}
