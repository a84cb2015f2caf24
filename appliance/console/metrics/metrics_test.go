package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

func full() snapshot {
	now := time.Unix(1_800_000_000, 0)
	return snapshot{
		status: control.Status{
			Name: "gatehouse-7f3k", Version: "1.0", State: control.StateReady, Started: now, Now: now, Kernel: "6.12",
			Roles:  []control.RoleStatus{{Name: control.Gateway, State: "running", Restarts: 2, Since: now}, {Name: control.Agent, State: "frozen", Since: now}},
			Links:  []control.Link{{Name: "eth0", Carrier: true}},
			Memory: control.Memory{Total: 256 << 20, Available: 1 << 20}, Volume: control.Volume{Size: 28 << 30, Free: 1 << 30},
			Audit: control.AuditHead{Sequence: 12, Checkpoint: 10, At: now},
		},
		exposure: control.Exposure{
			InKernel: true, Reasons: []control.Reason{{Reason: "no-list", Samples: 7}},
			Counters: []control.Meant{
				{Counter: control.Counter{Name: "list_office", Packets: 5, Bytes: 600}, Class: "admitted"},
				{Counter: control.Counter{Name: "web_refused", Packets: 3, Bytes: 180}, Class: "refused"},
			},
		},
		lists:   control.Lists{Enabled: true, Lists: []control.List{{Name: "office", Enabled: true, Ranges: 2}}},
		expires: now,
	}
}

// TestUSE6_DocumentedMetricsAreThoseServed compares the table of the document
// with what is served: name, kind, labels and words.
func TestUSE6_DocumentedMetricsAreThoseServed(t *testing.T) {
	b, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(gatehouse_[a-z_]+)` \\| (counter|gauge) \\| ([a-z_, ]*|–) \\| (.+) \\|$")
	var documented []string
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		documented = append(documented, strings.Join(m[1:], "|"))
	}
	var served []string
	for _, f := range families {
		labels := strings.Join(f.labels, ", ")
		if labels == "" {
			labels = "–"
		}
		served = append(served, strings.Join([]string{f.name, f.kind, labels, f.help}, "|"))
		if len(f.values(full())) == 0 {
			t.Errorf("%s is never served", f.name)
		}
		if (f.kind == counter) != strings.HasSuffix(f.name, "_total") {
			t.Errorf("%s: counters, and only they, end with _total", f.name)
		}
	}
	for _, s := range served {
		if !slices.Contains(documented, s) {
			t.Errorf("docs/metrics.md lacks or has otherwise: %s", s)
		}
	}
	for _, d := range documented {
		if !slices.Contains(served, d) {
			t.Errorf("docs/metrics.md promises what is not served: %s", d)
		}
	}
	if dup := slices.Compact(slices.Sorted(slices.Values(served))); len(dup) != len(served) {
		t.Error("a metric is there twice")
	}
}

var (
	metaLine   = regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`)
	sampleLine = regexp.MustCompile(`^([a-z_]+)(\{([a-z_]+="([^"\\\n]|\\["\\n])*")(,[a-z_]+="([^"\\\n]|\\["\\n])*")*\})? (-?[0-9.]+)$`)
)

// TestUSE6_FormatsAreWellFormed reads both forms line by line, with names that
// try to break out of their line.
func TestUSE6_FormatsAreWellFormed(t *testing.T) {
	s := full()
	hostile := "of\"fice\\\n} 1\nfake_metric 1"
	s.lists.Lists[0].Name, s.status.Kernel = hostile, hostile
	s.exposure.Reasons[0].Reason = hostile
	for _, open := range []bool{false, true} {
		var b strings.Builder
		write(&b, open, families, s)
		text, whole := b.String(), strings.HasSuffix(b.String(), "# EOF\n")
		if whole != open {
			t.Errorf("open %v: the end mark is there: %v", open, whole)
		}
		family := ""
		for _, line := range strings.Split(strings.TrimSuffix(strings.TrimSuffix(text, "# EOF\n"), "\n"), "\n") {
			if m := metaLine.FindStringSubmatch(line); m != nil {
				if family = m[2]; open && strings.HasSuffix(family, "_total") {
					t.Errorf("OpenMetrics names the family %s", family)
				}
				continue
			}
			m := sampleLine.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("open %v: no line of the format: %q", open, line)
			} else if m[1] != family && m[1] != family+"_total" {
				t.Errorf("open %v: %s stands under %s", open, m[1], family)
			}
		}
		for _, want := range []string{
			`gatehouse_list_packets_total{list="office"} 5`, `gatehouse_firewall_bytes_total{counter="web_refused",class="refused"} 180`,
			`gatehouse_role_running{role="agent"} 0`, `gatehouse_certificate_expiry_time_seconds 1800000000`, `gatehouse_memory_size_bytes 268435456`,
		} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("open %v: no %s in\n%s", open, want, text)
			}
		}
	}
}

func TestUSE6_UnknownIsLeftOut(t *testing.T) {
	var b strings.Builder
	write(&b, false, families, snapshot{status: control.Status{Hosted: true}})
	for _, name := range []string{"memory_size", "data_size", "expiry", "connections_opened", "start_time", "list_packets"} {
		if strings.Contains(b.String(), fmt.Sprintf("gatehouse_%s", name)) {
			t.Errorf("%s is told though it is not known", name)
		}
	}
}

// TestUSE6_DashboardAsksForWhatIsServed holds the dashboard to the names and
// labels of the metrics.
func TestUSE6_DashboardAsksForWhatIsServed(t *testing.T) {
	b, err := os.ReadFile("../../../docs/gatehouse-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil || len(d.Panels) == 0 {
		t.Fatalf("%d panels, %v", len(d.Panels), err)
	}
	name, label := regexp.MustCompile(`gatehouse_[a-z_]+`), regexp.MustCompile(`\{\{([a-z_]+)\}\}`)
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			asked := name.FindAllString(q.Expr, -1)
			if len(asked) == 0 {
				t.Errorf("%s asks for nothing of ours: %s", p.Title, q.Expr)
			}
			for _, n := range asked {
				i := slices.IndexFunc(families, func(f family) bool { return f.name == n })
				if i < 0 {
					t.Errorf("%s asks for %s, which is not served", p.Title, n)
					continue
				}
				for _, l := range label.FindAllStringSubmatch(q.LegendFormat, -1) {
					if l[1] != "instance" && !slices.Contains(families[i].labels, l[1]) {
						t.Errorf("%s names the label %s, which %s has not", p.Title, l[1], n)
					}
				}
			}
		}
	}
}
