package console

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// TestNET6_RefusedSourceIsOneStepFromAList goes from the status page to a list
// with the address in it, and shows that nothing changes on the way.
func TestNET6_RefusedSourceIsOneStepFromAList(t *testing.T) {
	_, br := consoletest.Owned(t, Run)
	for _, bad := range []string{"", "nowhere", "192.0.2.0/33", "192.0.2.1/24", "fe80::1%25eth0", "::ffff:192.0.2.1/120", "<script>"} {
		for _, path := range []string{"/allowlists/add?address=", "/allowlists/edit?add="} {
			if p := br.Open(path + bad); bad != "" && (p.Status != 403 || strings.Contains(p.Body, "<script>")) {
				t.Errorf("%s%s: %d", path, bad, p.Status)
			}
		}
	}
	p := br.Open("/")
	for _, want := range []string{"203.0.113.7", "in no list that is on", `href="/allowlists/add?address=203.0.113.7"`, "in the last hour", "Besides the two ports"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the status page does not show %q", want)
		}
	}
	if strings.Count(p.Body, "/allowlists/add?") != 10 {
		t.Errorf("%d drops on the card, want ten", strings.Count(p.Body, "/allowlists/add?"))
	}
	// Without lists the editor of a new one opens.
	if p = br.Open("/allowlists/add?address=203.0.113.7"); p.Path != "/allowlists/edit" || !strings.Contains(p.Body, "203.0.113.7  # was refused") {
		t.Fatalf("without lists: %s\n%s", p.Path, p.Body)
	}
	br.Send("/allowlists/edit", "name", "office", "text", "127.0.0.0/8", "scope", "console", "enabled", "yes", "all", "yes", "do", "apply")
	br.Send("/allowlists/keep", "id", keepID(t, br.Open("/allowlists")))
	if p = br.Open("/allowlists/add?address=203.0.113.7"); !strings.Contains(p.Body, "203.0.113.0/24") || !strings.Contains(p.Body, "office") {
		t.Fatalf("the choice:\n%s", p.Body)
	}
	if p = br.Open("/allowlists/edit?name=office&add=203.0.113.7"); !strings.Contains(p.Body, "127.0.0.0/8\n203.0.113.7  # was refused, added by ada@example.org") || !strings.Contains(p.Body, "Nothing changes until you apply it") {
		t.Errorf("the editor:\n%s", p.Body)
	}
	if p = br.Open("/allowlists"); candidateIn.MatchString(p.Body) || strings.Contains(br.Open("/allowlists/edit?name=office").Body, "203.0.113") {
		t.Error("looking changed the lists")
	}
	if !strings.Contains(p.Body, "90\u202f210") {
		t.Error("the hits of a day are not shown")
	}
}

func TestNET2_OneListIsSwitched(t *testing.T) {
	_, br := consoletest.Owned(t, Run)
	br.Send("/allowlists/edit", "name", "office", "text", "127.0.0.0/8", "scope", "console", "enabled", "yes", "all", "yes", "do", "apply")
	br.Send("/allowlists/keep", "id", keepID(t, br.Open("/allowlists")))
	br.Send("/allowlists/edit", "name", "other", "text", "192.0.2.0/24", "scope", "console", "enabled", "yes", "do", "apply")
	br.Send("/allowlists/keep", "id", keepID(t, br.Open("/allowlists")))
	if p := br.Send("/allowlists/turn", "name", "nothing", "to", "off"); p.Status != 403 {
		t.Errorf("a list that is not there: %d", p.Status)
	}
	p := br.Send("/allowlists/turn", "name", "office", "to", "off")
	if p.Status != 422 || !strings.Contains(p.Body, "your own address") || strings.Count(p.Body, `name="force"`) != 1 {
		t.Errorf("one's own list: %d, %d boxes to insist\n%s", p.Status, strings.Count(p.Body, `name="force"`), p.Body)
	}
	if p = br.Send("/allowlists/turn", "name", "other", "to", "off"); !candidateIn.MatchString(p.Body) {
		t.Errorf("another list: %d\n%s", p.Status, p.Body)
	}
}

func TestNET6_ExposureInEachState(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := b.Browser().Open("/api/v1/exposure"); p.Status != 401 {
		t.Errorf("without sign-in: %d", p.Status)
	}
	var e control.Exposure
	if p := br.Open("/api/v1/exposure"); p.Status != 200 || json.Unmarshal([]byte(p.Body), &e) != nil || len(e.Admitted) != 96 || len(e.Drops) != 12 {
		t.Errorf("the API: %d %s", p.Status, p.Body)
	}
	hostile := control.Exposure{InKernel: true, Sampling: true, Problem: "<b>broken</b>", Drops: []control.Drop{{Source: netip.MustParseAddr("192.0.2.1"), Proto: "<i>", Words: "<script>alert(1)</script>", Link: `"><img>`}}}
	for name, c := range map[string]struct {
		e    control.Exposure
		want string
	}{
		"not in the kernel": {control.Exposure{}, "the host’s own firewall decides here"},
		"cannot sample":     {control.Exposure{InKernel: true}, "counted and not sampled"},
		"nobody yet":        {control.Exposure{InKernel: true, Sampling: true, Since: time.Now()}, "Nobody was refused since"},
		"hostile":           {hostile, "&lt;script&gt;"},
	} {
		b.SetExposure(c.e)
		for _, path := range []string{"/", "/exposure", "/exposure/live", "/status/live"} {
			if p := br.Open(path); p.Status != 200 || !strings.Contains(p.Body, c.want) || strings.Contains(p.Body, "<script>alert") || strings.Contains(p.Body, "<img>") {
				t.Errorf("%s, %s: %d", name, path, p.Status)
			}
		}
	}
}
