package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/lists"
	"gatehouse/appliance/supervise"
	"gatehouse/netfilter/xdp"
)

// program is the box's; `make tools` builds it.
const program = "../../build/gatehoused"

// filterPart runs the filter role once, confined as on a box, and writes its answer.
func filterPart(args []string, w io.Writer) error {
	var o lists.Order
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	exe, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	spec := supervise.Filter(supervise.Paths{Program: exe, Lists: filepath.Dir(o.Folder), Admission: o.Admission, Stage: o.Stage}, supervise.Options{Privileged: true})
	ctx, cancel := context.WithCancel(context.Background())
	reaper := supervise.NewReaper(slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- reaper.Run(ctx) }()
	answer, err := reaper.Once(ctx, spec, args[0])
	cancel()
	<-done
	if err == nil {
		_, err = io.WriteString(w, answer)
	}
	return err
}

// roleFiles is where the filter role finds lists, and a stage that it may use.
type roleFiles struct {
	dir   string
	stage xdp.Stage
}

func newFiles(t testing.TB, s xdp.Stage) roleFiles {
	t.Helper()
	f := roleFiles{dir: t.TempDir(), stage: s}
	for _, way := range []string{f.dir, filepath.Dir(s.Dir)} {
		for d := way; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil { // the role has a uid of its own
				t.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(f.lists(), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f roleFiles) lists() string { return filepath.Join(f.dir, "lists", "1") }

func (f roleFiles) put(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.lists(), name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run has the role put one list in force.
func (f roleFiles) run(t testing.TB, box *Host, xdp string, order lists.Order) lists.Answer {
	t.Helper()
	f.put(t, "allowlists.toml", fmt.Sprintf("enabled = true\nxdp = %q\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"console\"]\n", xdp))
	order.Folder, order.Apply, order.Kernel, order.Admission = f.lists(), true, true, filepath.Join(f.dir, "run", "admission")
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	var a lists.Answer
	if err := json.Unmarshal([]byte(box.Run(t, "filter", string(text))), &a); err != nil {
		t.Fatal(err)
	}
	if a.Error != "" || len(a.Report.Problems) > 0 {
		t.Fatalf("the role answers %+v", a)
	}
	return a
}

// TestNET8_FilterRoleHoldsTheEarlyStage runs the role with the rights of its
// row and no others: it puts lists and stage in force, takes the stage away
// when it is switched off, and goes on without it where there is no place for one.
func TestNET8_FilterRoleHoldsTheEarlyStage(t *testing.T) {
	box, peer := New(t, "box"), New(t, "peer")
	Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24")
	peer.Up(t, "eth0")
	o := observe(t, box, true)
	g := newGun(t, box, peer, "eth0")
	s := newStage(t, box, 80, 443)
	f := newFiles(t, s)
	f.put(t, "office.list", "198.51.100.0/24\n")
	role := func(xdp string, order lists.Order) lists.Answer { return f.run(t, box, xdp, order) }
	stranger := knockAt(netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("192.0.2.5"), 40000, 443)
	friend := knockAt(netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("192.0.2.5"), 40000, 443)
	judged := func(what string, early bool) {
		t.Helper()
		if arrived, passed, _ := o.one(t, g, stranger); arrived == early || passed {
			t.Errorf("%s: a stranger reaches the lists: %t, passes them: %t", what, arrived, passed)
		}
		if _, passed, _ := o.one(t, g, friend); !passed {
			t.Errorf("%s: a friend is kept out", what)
		}
	}
	for _, c := range []struct {
		xdp   string
		early bool
	}{{"on", true}, {"auto", false}, {"on", true}, {"off", false}} {
		a := role(c.xdp, lists.Order{Stage: s.Dir})
		// Which way the driver takes is the kernel's; a virtual cable can both.
		if on := len(a.Early.Links) == 1 && a.Early.Links[0] == "eth0"; on != c.early {
			t.Errorf("xdp = %s: the role says %+v", c.xdp, a.Early)
		}
		judged("xdp = "+c.xdp, c.early)
	}
	// A place that is no bpf file system: the lists hold without the stage.
	plain := filepath.Join(f.dir, "plain")
	a := role("on", lists.Order{Stage: plain})
	if len(a.Early.Links) != 0 || !strings.Contains(a.Early.Sentence, "could not be used") {
		t.Errorf("without a bpf file system the role says %+v", a.Early)
	}
	judged("without a bpf file system", false)
	a = role("on", lists.Order{NoStage: "there is no place"})
	if a.Early.Sentence != "the early stage is off: there is no place" {
		t.Errorf("without a place the role says %+v", a.Early)
	}
	judged("without a place", false)
	if _, err := xdp.Counter(s.Dir); err == nil {
		t.Error("switched off, the stage has left its counter")
	}
}
