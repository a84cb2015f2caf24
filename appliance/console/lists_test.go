package console

import (
	"regexp"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

var candidateIn = regexp.MustCompile(`action="/allowlists/keep"><input type="hidden" name="id" value="([^"]+)">`)

func keepID(t *testing.T, p consoletest.Page) string {
	t.Helper()
	m := candidateIn.FindStringSubmatch(p.Body)
	if m == nil {
		t.Fatalf("nothing waits to be kept: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	return m[1]
}

func TestNET2_PageRefusesBadLists(t *testing.T) {
	_, br := consoletest.Owned(t, Run)
	for name, c := range map[string]struct {
		fields []string
		want   string
	}{
		"bad line":     {[]string{"name", "office", "text", "127.0.0.1\n10.0.0.0/33", "scope", "console", "enabled", "yes"}, "Line 2"},
		"bad name":     {[]string{"name", "../x", "text", "127.0.0.1", "scope", "console", "enabled", "yes"}, "begins with a letter"},
		"no scope":     {[]string{"name", "office", "text", "127.0.0.1", "enabled", "yes"}, "no scope"},
		"empty and on": {[]string{"name", "office", "text", "# nobody", "scope", "console", "enabled", "yes", "all", "yes"}, "nobody could reach"},
		"everyone":     {[]string{"name", "office", "text", "0.0.0.0/0", "scope", "console", "enabled", "yes"}, "allow_all"},
		"self-lockout": {[]string{"name", "office", "text", "192.0.2.1", "scope", "console", "enabled", "yes", "all", "yes"}, "your own address would not get in"},
		"markup":       {[]string{"name", "office", "text", "<script>alert(1)</script>", "scope", "console"}, "Line 1"},
	} {
		p := br.Send("/allowlists/edit", append(c.fields, "do", "apply")...)
		if p.Status != 422 || !strings.Contains(p.Body, c.want) {
			t.Errorf("%s: %d, want %q in\n%s", name, p.Status, c.want, p.Body)
		}
		if strings.Contains(p.Body, "<script>alert") {
			t.Errorf("%s: the text is not escaped", name)
		}
	}
	if p := br.Open("/allowlists"); !strings.Contains(p.Body, "No list yet") {
		t.Errorf("something was kept:\n%s", p.Body)
	}
	if p := br.Send("/allowlists/edit", "name", "big", "scope", "console", "do", "check", "text", strings.Repeat("#\n", 600_000)); p.Status != 422 || !strings.Contains(p.Body, "more than a page edits") {
		t.Errorf("a megabyte: %d", p.Status)
	}
	if p := br.Open("/allowlists?address=nowhere"); p.Status != 422 || !strings.Contains(p.Body, "is not an address") {
		t.Errorf("try an address: %d", p.Status)
	}
	if p := br.Open("/allowlists/edit?name=nothing"); p.Status != 403 {
		t.Errorf("a list that is not there: %d", p.Status)
	}
}

func TestNET3_KeptOnANewConnectionOnly(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	old := b.Browser()
	old.Jar = br.Jar
	old.Open("/allowlists") // a connection from before the change
	check := br.Send("/allowlists/edit", "name", "office", "text", "127.0.0.0/8", "scope", "console", "enabled", "yes", "all", "yes", "do", "check")
	if check.Status != 200 || !strings.Contains(check.Body, "List office is new") || !strings.Contains(check.Body, `value="apply"`) {
		t.Fatalf("check: %d\n%s", check.Status, check.Body)
	}
	tried := br.Send("/allowlists/edit", "name", "office", "text", "127.0.0.0/8", "scope", "console", "enabled", "yes", "all", "yes", "do", "apply")
	id := keepID(t, tried)
	if p := old.Send("/allowlists/keep", "id", id); p.Status != 422 || !strings.Contains(p.Body, "older than the change") {
		t.Errorf("over the old connection: %d\n%s", p.Status, p.Body)
	}
	if p := br.Send("/allowlists/edit", "name", "two", "text", "127.0.0.1", "scope", "console", "do", "apply"); p.Status != 422 || !strings.Contains(p.Body, "waits to be kept") {
		t.Errorf("a second change meanwhile: %d", p.Status)
	}
	// The answer to the change ended its connection: this is a new one.
	if p := br.Send("/allowlists/keep", "id", id); p.Status != 200 || p.Path != "/allowlists" || candidateIn.MatchString(p.Body) {
		t.Errorf("over a new connection: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	if p := br.Open("/allowlists"); !strings.Contains(p.Body, "office") || candidateIn.MatchString(p.Body) {
		t.Errorf("not kept:\n%s", p.Body)
	}
	if p := br.Send("/allowlists/keep", "id", id); p.Status != 422 {
		t.Errorf("kept twice: %d", p.Status)
	}
	if p := br.Send("/allowlists/remove", "name", "office"); p.Status != 403 || !strings.Contains(p.Body, "nobody could reach") {
		t.Errorf("removing the only list while they are on: %d", p.Status)
	}
	tried = br.Send("/allowlists/switch", "to", "off")
	if p := br.Send("/allowlists/revert", "id", keepID(t, tried)); p.Status != 200 || !strings.Contains(p.Body, "office") {
		t.Errorf("taken back: %d\n%s", p.Status, p.Body)
	}
	if p := br.Open("/allowlists/edit?name=office"); !strings.Contains(p.Body, "127.0.0.0/8") {
		t.Errorf("the editor does not show the file:\n%s", p.Body)
	}
}

func TestNET2_ListsByAPI(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := b.Browser().Open("/api/v1/allowlists"); p.Status != 401 {
		t.Errorf("without sign-in: %d", p.Status)
	}
	for _, bad := range []string{`{}x`, `{"colour":1}`, `[]`} {
		if p := br.SendJSON("/api/v1/allowlists/try", bad); p.Status != 403 {
			t.Errorf("%s: %d", bad, p.Status)
		}
	}
	policy := `{"document":{"enabled":true,"lists":[{"name":"office","enabled":true,"scopes":["console"],"text":"127.0.0.0/8\n10.0.0.0/40\n"}]}}`
	if p := br.SendJSON("/api/v1/allowlists/try", policy); p.Status != 422 || !strings.Contains(p.Body, `"file":"office.list","line":2`) {
		t.Errorf("a bad line: %d %s", p.Status, p.Body)
	}
	policy = strings.Replace(policy, "/40", "/8", 1)
	if p := br.SendJSON("/api/v1/allowlists/try", policy); p.Status != 200 || !strings.Contains(p.Body, `"candidate":{"id":`) {
		t.Fatalf("tried: %d %s", p.Status, p.Body)
	}
	id := keepID(t, br.Open("/allowlists"))
	if p := br.SendJSON("/api/v1/allowlists/keep", `{"id":"`+id+`"}`); p.Status != 200 {
		t.Errorf("kept: %d %s", p.Status, p.Body)
	}
	if p := br.Open("/api/v1/allowlists/document?list=office"); !strings.Contains(p.Body, `10.0.0.0/8`) {
		t.Errorf("document: %s", p.Body)
	}
	if p := br.SendJSON("/api/v1/allowlists/test", `{"address":"127.0.0.1"}`); p.Status != 200 || !strings.Contains(p.Body, "console") {
		t.Errorf("test: %d %s", p.Status, p.Body)
	}
	if p := br.SendJSON("/api/v1/allowlists/revert", `{"id":"x"}`); p.Status != 403 {
		t.Errorf("reverting nothing: %d %s", p.Status, p.Body)
	}
}

// TestNET2_FilesOfTheHostAreNotEditedHere: neither page nor API pretends that a
// change here would last.
func TestNET2_FilesOfTheHostAreNotEditedHere(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	fields := []string{"name", "office", "text", "127.0.0.0/8\n", "scope", "console", "enabled", "yes", "all", "yes"}
	if p := br.Send("/allowlists/edit", append(fields, "do", "apply")...); p.Status != 200 {
		t.Fatalf("making a list: %d", p.Status)
	}
	if p := br.Send("/allowlists/keep", "id", keepID(t, br.Open("/allowlists"))); p.Status != 200 {
		t.Fatalf("keeping it: %d", p.Status)
	}
	b.HostLists("/etc/gatehouse/lists", control.Problem{File: "office.list", Line: 7, Text: "<b>x</b>", Reason: "this is not an address"})
	const reason = "files of the host: change them there, in /etc/gatehouse/lists"
	for name, p := range map[string]consoletest.Page{
		"edit":     br.Send("/allowlists/edit", append(fields, "old", "office", "do", "apply")...),
		"check":    br.Send("/allowlists/edit", append(fields, "old", "office", "do", "check")...),
		"new":      br.Open("/allowlists/edit"),
		"switch":   br.Send("/allowlists/switch", "to", "off"),
		"one":      br.Send("/allowlists/turn", "name", "office", "to", "off"),
		"add":      br.Open("/allowlists/add?address=192.0.2.7"),
		"added":    br.Open("/allowlists/edit?name=office&add=192.0.2.7"),
		"remove":   br.Send("/allowlists/remove", "name", "office"),
		"API":      br.SendJSON("/api/v1/allowlists/try", `{"document":{"enabled":false}}`),
		"API, dry": br.SendJSON("/api/v1/allowlists/try", `{"dry_run":true,"document":{"enabled":false}}`),
	} {
		if p.Status < 400 || !strings.Contains(p.Body, reason) {
			t.Errorf("%s: %d, want the reason in\n%s", name, p.Status, p.Body)
		}
	}
	p := br.Open("/allowlists")
	for _, want := range []string{"These lists are files of the host", "office.list, line 7", "&lt;b&gt;x&lt;/b&gt;", "this is not an address", "The last good lists stay in force", ">Show<"} {
		if !strings.Contains(strings.ToLower(p.Body), strings.ToLower(want)) {
			t.Errorf("the page does not say %q:\n%s", want, p.Body)
		}
	}
	for _, no := range []string{"/allowlists/switch", "/allowlists/turn", "New list", ">Edit<"} {
		if strings.Contains(p.Body, no) {
			t.Errorf("the page offers %q", no)
		}
	}
	shown := br.Open("/allowlists/edit?name=office")
	if shown.Status != 200 || !strings.Contains(shown.Body, "readonly>127.0.0.0/8") || strings.Contains(shown.Body, "<button class=\"primary\" name=\"do\"") || strings.Contains(shown.Body, "/allowlists/remove") {
		t.Errorf("the list is not shown, or can be edited: %d\n%s", shown.Status, shown.Body)
	}
	if p := br.Open("/api/v1/allowlists"); !strings.Contains(p.Body, `"files":"/etc/gatehouse/lists"`) || !strings.Contains(p.Body, `"line":7`) {
		t.Errorf("API: %s", p.Body)
	}
}
