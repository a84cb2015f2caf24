package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
)

// TestBOX7_VLANAndBondOnTheImagesKernel has two boxes joined by two cables, on
// the box's own kernel with the modules it loads: an address by hand on a VLAN
// on a bond. It holds when a cable is pulled, another VLAN is not heard, and
// nothing is left when the settings go.
func TestBOX7_VLANAndBondOnTheImagesKernel(t *testing.T) {
	if os.Getpid() != 1 {
		said := onTheImagesKernel(t, "^"+t.Name()+"$")
		if !strings.Contains(said, "--- PASS: "+t.Name()) {
			t.Errorf("it did not run:\n%s", said)
		}
		return
	}
	if _, err := netlink.LinkByName("bond0"); err == nil {
		t.Error("the module made a bond0 by itself")
	}
	for _, mode := range []string{"active-backup", "802.3ad"} {
		t.Run(mode, func(t *testing.T) { vlanOnBond(t, mode) })
	}
}

// wired is a host of Configure in a namespace.
type wired struct {
	*Host
	links *host.Host
}

func newWired(t *testing.T, name string) wired {
	t.Helper()
	return wired{New(t, name), host.New(slog.New(slog.NewTextHandler(os.Stdout, nil)))}
}

func (w wired) configure(t *testing.T, mode, addresses string) {
	t.Helper()
	text := `{}`
	if mode != "" {
		text = fmt.Sprintf(`{"bonds":[{"name":"bond0","links":["eth0","eth1"],"mode":%q}],"vlans":[{"name":"office","on":"bond0","id":5},{"name":"cams","on":"bond0","id":%s}],
			"links":[%s]}`, mode, map[bool]string{true: "6", false: "7"}[w.Name == "box"], addresses)
	}
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for range 2 { // the second time all is right already
		w.Do(t, func() error { return w.links.Configure(s) })
	}
}

// reaches says whether a connection to an address can be made within a time.
func (w wired) reaches(t *testing.T, address string, within time.Duration) bool {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var failed error
		w.Do(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if failed = err; err == nil {
				conn.Close()
			}
			return nil
		})
		if failed == nil {
			return true
		}
	}
	return false
}

func vlanOnBond(t *testing.T, mode string) {
	box, other := newWired(t, "box"), newWired(t, "other")
	for _, cable := range []string{"eth0", "eth1"} {
		Connect(t, box.Host, cable, other.Host, cable)
	}
	const static = `{"name":%q,"mode":"static","addresses":[%q]}`
	other.configure(t, mode, fmt.Sprintf(static+","+static+","+static, "office", "192.0.2.1/24", "cams", "203.0.113.1/24", "bond0", "198.51.100.1/24"))
	box.configure(t, mode, fmt.Sprintf(static+","+static+","+static, "office", "192.0.2.7/24", "cams", "203.0.113.7/24", "bond0", "198.51.100.7/24"))
	var l net.Listener
	other.Do(t, func() (err error) {
		l, err = net.Listen("tcp", ":443")
		return err
	})
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	const patience = 60 * time.Second
	for _, a := range []string{"192.0.2.1:443", "198.51.100.1:443"} {
		if !box.reaches(t, a, patience) {
			t.Errorf("%s is not reached", a)
		}
	}
	if box.reaches(t, "203.0.113.1:443", 3*time.Second) {
		t.Error("VLAN 6 hears VLAN 7")
	}
	other.Down(t, "eth0")
	if !box.reaches(t, "192.0.2.1:443", patience) {
		t.Error("it does not hold without the first cable")
	}
	box.Do(t, func() error {
		bond, err := netlink.LinkByName("bond0")
		if err != nil {
			return err
		}
		if b, ok := bond.(*netlink.Bond); !ok || b.Mode.String() != mode || b.Miimon == 0 {
			t.Errorf("%+v", bond)
		}
		own, err := box.links.Own()
		if err != nil || len(own) != 2 || own[0].Name != "eth0" {
			t.Errorf("its own links are %+v, %v", own, err)
		}
		return err
	})
	box.configure(t, "", "")
	box.Do(t, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			a := l.Attrs()
			if l.Type() == "bond" || l.Type() == "vlan" || a.MasterIndex != 0 || a.Flags&net.FlagUp == 0 {
				t.Errorf("left behind: %s %s, part of %d, %v", l.Type(), a.Name, a.MasterIndex, a.Flags)
			}
		}
		return err
	})
}
