package script

import (
	"encoding/json"
	"html"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
)

// aside runs a test in a process with a network namespace of its own. It says
// whether this is that process.
func aside(t *testing.T) bool {
	t.Helper()
	if os.Getenv("GATEHOUSE_TEST_ASIDE") == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "3m")
	cmd.Env = append(os.Environ(), "GATEHOUSE_TEST_ASIDE="+t.Name(), "GATEHOUSE_TEST_TOOL="+build(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// at is the settings of a box with one address by hand.
func at(t *testing.T, address string) (s control.NetworkSettings) {
	t.Helper()
	if err := json.Unmarshal([]byte(`{"links":[{"name":"eth0","mode":"static","addresses":["`+address+`/24"]}]}`), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// newMachine is this namespace with one cable, as the box's own code sets it.
func newMachine(t *testing.T) consoletest.Machine {
	t.Helper()
	h := host.New(slog.New(slog.DiscardHandler))
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer0"}))
	for _, name := range []string{"lo", "peer0"} {
		l, err := netlink.LinkByName(name)
		check(err)
		check(netlink.LinkSetUp(l))
	}
	first := at(t, "192.168.1.40")
	check(h.Configure(first))
	return consoletest.Machine{
		Address: netip.MustParseAddr("192.168.1.40"), Settings: first, Apply: h.Configure,
		Own: func() []control.Link {
			own, err := h.Own()
			check(err)
			return own
		},
		Links: func() (out []control.Link) {
			links, err := h.Links()
			check(err)
			for _, l := range links {
				if l.Name == "eth0" {
					out = append(out, control.Link{Name: l.Name, MAC: l.MAC.String(), Carrier: l.Carrier, Addresses: l.Addresses, Source: "static", MTU: l.MTU})
				}
			}
			return out
		},
	}
}

var (
	hiddenField = regexp.MustCompile(`<input type="hidden" name="(settings|base|ticket)" value="([^"]*)">`)
	newAddress  = regexp.MustCompile(`href="(https://192\.168\.1\.50)(/network/here\?ticket=[^"]+)"`)
)

// TestNET3_AddressChangesUnderItsAuthor changes the very address that a page
// and the tool come to, on real links: it goes away under them, and both keep
// the change at the new one.
func TestNET3_AddressChangesUnderItsAuthor(t *testing.T) {
	if !aside(t) {
		return
	}
	b := consoletest.StartOn(t, console.Run, newMachine(t))
	br := b.Browser()
	br.Own(b)
	br.Enrol()
	words := b.Ready().Certificate.Words

	// The page.
	check := br.Send("/network/link", "old", "eth0", "name", "eth0", "kind", "ethernet", "mode", "static", "addresses", "192.168.1.50/24", "do", "check")
	onward := newAddress.FindStringSubmatch(check.Body)
	if onward == nil || !strings.Contains(check.Body, "The address that you use goes away") {
		t.Fatalf("%d: the page does not say where to go on:\n%s", check.Status, check.Body)
	}
	var fields []string
	for _, m := range hiddenField.FindAllStringSubmatch(check.Body, -1) {
		fields = append(fields, m[1], html.UnescapeString(m[2]))
	}
	tried := br.Send("/network/try", fields...)
	if tried.Status != 200 || !strings.Contains(tried.Body, "It is in effect") || !newAddress.MatchString(tried.Body) {
		t.Fatalf("the answer: %d %s\n%s", tried.Status, tried.Path, tried.Body)
	}
	other := b.Browser()
	other.URL = onward[1]
	var p consoletest.Page
	patience := other.Timeout
	other.Timeout = time.Second
	for range 60 { // it is there half a second after the answer
		resp, err := other.Get(other.URL + html.UnescapeString(onward[2]))
		if err == nil {
			resp.Body.Close()
			other.Timeout = patience
			p = other.Open(html.UnescapeString(onward[2]))
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if p.Status != 200 || !strings.Contains(p.Body, "Keep this change") {
		t.Fatalf("at the new address: %d\n%s", p.Status, p.Body)
	}
	br.Timeout = 2 * time.Second
	if resp, err := br.Get(br.URL + "/network"); err == nil {
		resp.Body.Close()
		t.Error("the old address still answers")
	}
	_, ticket, _ := strings.Cut(onward[2], "ticket=")
	if p = other.Send("/network/here", "ticket", ticket); p.Status != 200 || !strings.Contains(p.Body, "The change is kept") {
		t.Fatalf("keeping: %d\n%s", p.Status, p.Body)
	}
	if s := b.KeptNetwork(); len(s.Links) != 1 || s.Links[0].Addresses[0].String() != "192.168.1.50/24" {
		t.Fatalf("kept %+v", s)
	}

	// The tool, from there to the next.
	c := tool{t, filepath.Join(os.Getenv("GATEHOUSE_TEST_TOOL"), "gatehouse"), t.TempDir()}
	who := func(code int) []string {
		for name, text := range map[string]string{"code": br.Codes[code], "password": consoletest.Password, "next.toml": "[[links]]\nname = 'eth0'\nmode = 'static'\naddresses = ['192.168.1.60/24']\n"} {
			if err := os.WriteFile(filepath.Join(c.home, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return []string{"--email", "ada@example.org", "--password", "file:password", "--code", "file:code"}
	}
	for _, args := range [][]string{
		{"status", "192.168.1.50", "--proof", words},
		append([]string{"network", "apply", "next.toml", "--keep"}, who(0)...),
	} {
		if out, err := c.command(args...).Output(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	// Known by the new address alone, and kept.
	out, err := c.command(append([]string{"network", "show"}, who(1)...)...).Output()
	if err != nil || !strings.Contains(string(out), "192.168.1.60/24") {
		t.Errorf("%v\n%s", err, out)
	}
	if s := b.KeptNetwork(); s.Links[0].Addresses[0].String() != "192.168.1.60/24" {
		t.Errorf("kept %+v", s)
	}
}
