package console

import (
	"html"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

var (
	networkCandidate = regexp.MustCompile(`action="/network/keep"><input type="hidden" name="id" value="([^"]+)">`)
	hiddenIn         = regexp.MustCompile(`<input type="hidden" name="(settings|base|ticket)" value="([^"]*)">`)
)

// proposal is the hidden part of the page "What would change".
func proposal(t *testing.T, p consoletest.Page) []string {
	t.Helper()
	var fields []string
	_, form, _ := strings.Cut(p.Body, `action="/network/try"`)
	for _, m := range hiddenIn.FindAllStringSubmatch(form, -1) {
		fields = append(fields, m[1], html.UnescapeString(m[2]))
	}
	if p.Status != 200 || len(fields) != 6 {
		t.Fatalf("no proposal: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	return fields
}

func TestBOX7_NetworkPageRefuses(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	link := func(fields ...string) consoletest.Page {
		base := []string{"old", "eth0", "name", "eth0", "kind", "ethernet", "mode", "static", "do", "check", "addresses", "192.168.1.50/24"}
		return br.Send("/network/link", append(base, fields...)...)
	}
	for name, c := range map[string]struct {
		fields []string
		want   string
	}{
		"no address":          {[]string{"addresses", ""}, "at least one address"},
		"no length":           {[]string{"addresses", "192.168.1.50"}, "has no length: write 192.168.1.50/24"},
		"too long a prefix":   {[]string{"addresses", "192.168.1.50/33"}, "a prefix for IPv4 ends at 32"},
		"v4 in v6":            {[]string{"addresses", "::ffff:192.168.1.50/120"}, "is not an address with its length"},
		"zone":                {[]string{"addresses", "fe80::1%eth0/64"}, "is not an address with its length"},
		"markup":              {[]string{"addresses", "<script>alert(1)</script>"}, "is not an address with its length"},
		"gateway":             {[]string{"gateways", "router"}, "is not an address"},
		"two gateways":        {[]string{"gateways", "192.168.1.1 192.168.1.2"}, "one too many"},
		"gateway elsewhere":   {[]string{"gateways", "10.0.0.1"}, "10.0.0.1 is not another host on this link"},
		"route without via":   {[]string{"routes", "10.1.0.0/16 192.168.1.254"}, "is not a route"},
		"route with host":     {[]string{"routes", "10.1.0.1/16 via 192.168.1.254"}, "10.1.0.0/16"},
		"route by a name":     {[]string{"routes", "10.1.0.0/16 via router"}, "is not the address of a neighbour"},
		"MTU":                 {[]string{"mtu", "64"}, "from 1280 to 9216"},
		"mode":                {[]string{"mode", "both"}, "Choose one of the three"},
		"VLAN 0":              {[]string{"old", "", "kind", "vlan", "name", "", "on", "eth0", "id", "0"}, "a number from 1 to 4094"},
		"VLAN 4095":           {[]string{"old", "", "kind", "vlan", "name", "", "on", "eth0", "id", "4095"}, "a number from 1 to 4094"},
		"VLAN on nothing":     {[]string{"old", "", "kind", "vlan", "name", "x", "on", "", "id", "20"}, "Choose the link"},
		"a taken name":        {[]string{"old", "", "kind", "vlan", "name", "eth1", "on", "eth0", "id", "20"}, "a link of this name already"},
		"a name with a slash": {[]string{"old", "", "kind", "vlan", "name", "../x", "on", "eth0", "id", "20"}, "A name has 1 to 15"},
		"network address":     {[]string{"addresses", "192.168.1.0/24"}, "names the network or all of its hosts"},
		"a wide network":      {[]string{"addresses", "10.0.0.1/4"}, "use /8 or longer"},
		"VLAN on a VLAN":      {[]string{"old", "", "kind", "vlan", "name", "x", "on", "y", "id", "20"}, "There is no link"},
		"bond of one":         {[]string{"old", "", "kind", "bond", "name", "bond0", "member", "eth1", "bonding", "active-backup"}, "at least two links"},
	} {
		p := link(c.fields...)
		if p.Status != 422 || !strings.Contains(p.Body, c.want) {
			t.Errorf("%s: %d, want %q in\n%s", name, p.Status, c.want, p.Body)
		}
		if strings.Contains(p.Body, "<script>alert") {
			t.Errorf("%s: not escaped", name)
		}
	}
	for name, c := range map[string][]string{"resolvers": {"resolvers", "dns.example.org"}, "search": {"search", "a_b"}, "time": {"time", "http://x/"}} {
		if p := br.Send("/network/names", append(c, "do", "check")...); p.Status != 422 {
			t.Errorf("%s: %d", name, p.Status)
		}
	}
	for _, path := range []string{"/network/link", "/network/link?name=eth9", "/network/here", "/network/here?ticket=x"} {
		if p := br.Open(path); p.Status != 403 {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
	for path, fields := range map[string][]string{
		"/network/remove": {"name", "eth0"}, "/network/try": {"settings", "{", "base", "x"}, "/network/here": {"ticket", "x"},
	} {
		if p := br.Send(path, fields...); p.Status != 403 {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
	if s := b.KeptNetwork(); len(s.Links)+len(s.VLANs) > 0 || networkCandidate.MatchString(br.Open("/network").Body) {
		t.Error("something was changed")
	}
}

func TestNET3_NetworkIsKeptOnANewConnectionOnly(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	old := b.Browser()
	old.Jar = br.Jar
	old.Open("/network") // a connection from before the change
	vlan := []string{"old", "", "kind", "vlan", "name", "", "on", "eth0", "id", "20", "mode", "static", "addresses", "10.20.0.5/24", "gateways", "10.20.0.1", "do", "check"}
	check := br.Send("/network/link", vlan...)
	if !strings.Contains(check.Body, "eth0.20 is made: VLAN 20 on eth0") || !strings.Contains(check.Body, "The address that you use stays") {
		t.Fatalf("check: %d\n%s", check.Status, check.Body)
	}
	fields := proposal(t, check)
	if len(b.KeptNetwork().VLANs) > 0 || networkCandidate.MatchString(br.Open("/network").Body) {
		t.Fatal("looking changed something")
	}
	tried := br.Send("/network/try", fields...)
	m := networkCandidate.FindStringSubmatch(tried.Body)
	if m == nil {
		t.Fatalf("nothing waits: %d %s\n%s", tried.Status, tried.Path, tried.Body)
	}
	if p := old.Send("/network/keep", "id", m[1]); p.Status != 422 || !strings.Contains(p.Body, "older than the change") {
		t.Errorf("over the old connection: %d\n%s", p.Status, p.Body)
	}
	if p := br.Send("/network/try", fields...); p.Status != 422 || !strings.Contains(p.Body, "somebody else changed") {
		t.Errorf("a proposal made of other settings: %d\n%s", p.Status, p.Body)
	}
	// The answer to the change ended its connection: this is a new one.
	if p := br.Send("/network/keep", "id", m[1]); p.Status != 200 || networkCandidate.MatchString(p.Body) || !strings.Contains(p.Body, "VLAN 20 on eth0") {
		t.Errorf("over a new connection: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	if len(b.KeptNetwork().VLANs) != 1 {
		t.Error("not kept")
	}
	fields = proposal(t, br.Send("/network/remove", "name", "eth0.20"))
	m = networkCandidate.FindStringSubmatch(br.Send("/network/try", fields...).Body)
	if m == nil {
		t.Fatal("the removal does not wait")
	}
	if p := br.Send("/network/revert", "id", m[1]); p.Status != 200 || !strings.Contains(p.Body, "VLAN 20 on eth0") {
		t.Errorf("taken back: %d\n%s", p.Status, p.Body)
	}
}

// TestNET3_NewAddressKeepsWithATicket: cookies stay behind with the old
// address, so the author of a change keeps it there by a ticket; which nothing
// else opens, and only over a new connection.
func TestNET3_NewAddressKeepsWithATicket(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	old := b.Browser()
	check := br.Send("/network/link", "old", "eth0", "name", "eth0", "kind", "ethernet", "mode", "static", "addresses", "192.168.1.50/24\n2001:db8::50/64", "gateways", "192.168.1.1", "do", "check")
	link := regexp.MustCompile(`href="https://192\.168\.1\.50/network/here\?ticket=([A-Z2-7]{26})"`).FindStringSubmatch(check.Body)
	if link == nil || !strings.Contains(check.Body, "The address that you use goes away") || !strings.Contains(check.Body, "https://[2001:db8::50]/network/here") {
		t.Fatalf("the page does not say where to go on: %d\n%s", check.Status, check.Body)
	}
	here := "/network/here?ticket=" + link[1]
	if p := old.Open(here); p.Status != 200 || strings.Contains(p.Body, "<form") || !strings.Contains(p.Body, "not in effect yet") {
		t.Errorf("before: %d\n%s", p.Status, p.Body)
	}
	if p := old.Send("/network/here", "ticket", link[1]); p.Status != 403 {
		t.Errorf("kept what is not in effect: %d", p.Status)
	}
	tried := br.Send("/network/try", proposal(t, check)...)
	if tried.Path != "/network/try" || !strings.Contains(tried.Body, "It is in effect") || !strings.Contains(tried.Body, here) {
		t.Fatalf("tried: %d %s\n%s", tried.Status, tried.Path, tried.Body)
	}
	if p := old.Send("/network/here", "ticket", link[1]); p.Status != 422 || !strings.Contains(p.Body, "older than the change") {
		t.Errorf("over an old connection: %d\n%s", p.Status, p.Body)
	}
	stranger := b.Browser()
	for _, wrong := range []string{"", strings.Repeat("A", 26), link[1][:25], strings.ToLower(link[1])} {
		if p := stranger.Send("/network/here", "ticket", wrong); p.Status != 403 {
			t.Errorf("ticket %q: %d", wrong, p.Status)
		}
	}
	p := stranger.Open(here)
	if p.Status != 200 || !strings.Contains(p.Body, "Keep this change") {
		t.Fatalf("at the new address: %d\n%s", p.Status, p.Body)
	}
	if p := stranger.Open("/network"); p.Path != "/sign-in" {
		t.Errorf("the ticket signed in: %s", p.Path)
	}
	if p := stranger.Send("/network/here", "ticket", link[1]); p.Status != 200 || !strings.Contains(p.Body, "The change is kept") {
		t.Errorf("kept: %d\n%s", p.Status, p.Body)
	}
	if k := b.KeptBy(); k.Actor != "ada@example.org" || k.From != "127.0.0.1" || k.Accepted == 0 {
		t.Errorf("kept as %+v", k)
	}
	if s := b.KeptNetwork(); len(s.Links) != 1 || s.Links[0].MAC != "02:00:00:00:00:01" {
		t.Errorf("kept %+v", s)
	}
	if p := stranger.Send("/network/here", "ticket", link[1]); p.Status != 403 {
		t.Errorf("the ticket counts twice: %d", p.Status)
	}
}

func TestBOX7_NetworkByAPI(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := b.Browser().Open("/api/v1/network"); p.Status != 401 || p.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("without sign-in: %d", p.Status)
	}
	for _, bad := range []string{`{}x`, `{"colour":1}`, `[]`, `{"settings":{"links":[{"name":"eth0","mode":"static","addresses":["10.0.0.0/33"]}]}}`} {
		if p := br.SendJSON("/api/v1/network/try", bad); p.Status != 403 {
			t.Errorf("%s: %d", bad, p.Status)
		}
	}
	change := `{"settings":{"links":[{"name":"eth1","mode":"static","addresses":["10.0.0.5/24"],"gateways":["10.1.0.1"]}]}}`
	if p := br.SendJSON("/api/v1/network/try", change); p.Status != 422 || !strings.Contains(p.Body, `"text":"eth1 gateways"`) {
		t.Errorf("a gateway elsewhere: %d %s", p.Status, p.Body)
	}
	change = strings.Replace(change, "10.1.0.1", "10.0.0.1", 1)
	if p := br.SendJSON("/api/v1/network/try", strings.Replace(change, "}]}}", `}]},"dry_run":true}`, 1)); p.Status != 200 || strings.Contains(p.Body, "candidate") {
		t.Errorf("dry run: %d %s", p.Status, p.Body)
	}
	if p := br.SendJSON("/api/v1/network/try", change); p.Status != 200 || !strings.Contains(p.Body, `"candidate":{"id":`) {
		t.Fatalf("tried: %d %s", p.Status, p.Body)
	}
	m := networkCandidate.FindStringSubmatch(br.Open("/network").Body)
	if m == nil {
		t.Fatal("nothing waits")
	}
	if p := br.SendJSON("/api/v1/network/keep", `{"id":"x"}`); p.Status != 403 {
		t.Errorf("keeping nothing: %d %s", p.Status, p.Body)
	}
	if p := br.SendJSON("/api/v1/network/keep", `{"id":"`+m[1]+`"}`); p.Status != 200 || len(b.KeptNetwork().Links) != 1 {
		t.Errorf("kept: %d %s", p.Status, p.Body)
	}
	if p := br.Open("/api/v1/network"); !strings.Contains(p.Body, `"kept":{"links":[{"name":"eth1"`) {
		t.Errorf("%s", p.Body)
	}
}

func TestBOX14_HostsNetworkAndClockAreShownOnly(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.Host()
	p := br.Open("/network")
	if p.Status != 200 || !strings.Contains(p.Body, "192.168.1.40/24") || !strings.Contains(p.Body, "sets its own network") || strings.Contains(p.Body, "/network/link") || strings.Contains(p.Body, "/network/names") {
		t.Errorf("%d\n%s", p.Status, p.Body)
	}
	if p := br.Open("/clock"); p.Status != 200 || strings.Contains(p.Body, "floor") || strings.Contains(p.Body, "<form method=\"post\" action=\"/clock") {
		t.Errorf("%d\n%s", p.Status, p.Body)
	}
	for _, path := range []string{"/network/link?name=eth0", "/network/names", "/clock/floor", "/api/v1/network"} {
		if p := br.Open(path); p.Status != 403 {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
	if p := br.Send("/clock", "action", "set", "time", "2026-12-01 10:00:00"); p.Status != 422 {
		t.Errorf("setting the host's clock: %d", p.Status)
	}
}

func TestBOX8_ClockFloorIsTheOwners(t *testing.T) {
	for key, r := range wholeTable(t) {
		if strings.Contains(key, "floor") && (r.Right != "reset-clock" || !r.Fresh) {
			t.Errorf("%s needs %q, fresh %v", key, r.Right, r.Fresh)
		}
	}
	b, br := consoletest.Owned(t, Run)
	resets := func() (n int) {
		for _, e := range b.Events() {
			if e.Event.Action == "reset clock floor" && e.Event.Actor == "ada@example.org" {
				n++
			}
		}
		return n
	}
	if p := br.Open("/clock/floor"); p.Status != 200 || !strings.Contains(p.Body, "What is lost") || resets() != 0 {
		t.Fatalf("asking: %d, %d resets", p.Status, resets())
	}
	for _, path := range []string{"/clock/floor", "/api/v1/clock/reset-floor"} {
		if p := b.Browser().Send(path); p.Path != "/sign-in" && p.Status != 401 {
			t.Errorf("%s by a stranger: %d %s", path, p.Status, p.Path)
		}
	}
	if p := br.Send("/clock/floor"); p.Path != "/clock" || resets() != 1 {
		t.Errorf("reset: %d %s, %d times", p.Status, p.Path, resets())
	}
	if p := br.SendJSON("/api/v1/clock/reset-floor", `{}`); p.Status != 200 || !strings.Contains(p.Body, `"floor":"2026-11-01T00:00:00Z"`) || resets() != 2 {
		t.Errorf("by the API: %d %s", p.Status, p.Body)
	}
}

func TestBOX8_ClockPageSaysWhy(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := br.Open("/clock"); !strings.Contains(p.Body, "3 time servers agree") || strings.Contains(p.Body, "not to be trusted") {
		t.Errorf("trusted: %d\n%s", p.Status, p.Body)
	}
	b.DoubtClock()
	if p := br.Open("/clock"); !strings.Contains(p.Body, "not to be trusted") || !strings.Contains(p.Body, "No time server has answered yet") {
		t.Errorf("doubted:\n%s", p.Body)
	}
	for _, bad := range []string{"", "tomorrow", "2020-01-01 00:00:00"} {
		if p := br.Send("/clock", "action", "set", "time", bad); p.Status != 422 {
			t.Errorf("%q: %d", bad, p.Status)
		}
	}
	if p := br.Send("/clock", "action", "keep"); p.Path != "/clock" || strings.Contains(p.Body, "not to be trusted") {
		t.Errorf("kept: %d %s", p.Status, p.Path)
	}
	if p := br.Open("/api/v1/clock"); !strings.Contains(p.Body, `"why":"A person set it`) {
		t.Errorf("%s", p.Body)
	}
}

// What is set for a card that was replaced is shown as that, and can be dropped.
func TestBOX7_NetworkPageDropsWhatIsNotThere(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.SetNetwork(control.NetworkSettings{
		Links: []control.LinkSettings{{Name: "eth0", MAC: "02:00:00:00:00:77", Mode: "static", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}},
		VLANs: []control.VLAN{{Name: "cams", On: "eth0", ID: 5}},
	})
	p := br.Open("/network")
	name := regexp.MustCompile(`name="name" value="([^"]+)"><button class="danger slim">Drop`).FindStringSubmatch(p.Body)
	if p.Status != 200 || name == nil || !strings.Contains(p.Body, "a card that is not there (02:00:00:00:00:77)") || !strings.Contains(p.Body, "VLAN 5 on a card") {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	if p := br.Send("/network/names", "resolvers", "192.0.2.53", "do", "check"); len(proposal(t, p)) == 0 || strings.Contains(p.Body, "not there") {
		t.Errorf("a change of the names: %s", p.Body)
	}
	p = br.Send("/network/remove", "name", name[1])
	if !strings.Contains(p.Body, "what was set for a card that is not there (02:00:00:00:00:77) is dropped") {
		t.Errorf("%d\n%s", p.Status, p.Body)
	}
	if p = br.Send("/network/try", proposal(t, p)...); strings.Contains(p.Body, "Drop it") {
		t.Errorf("still there: %d\n%s", p.Status, p.Body)
	}
}
