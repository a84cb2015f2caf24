package filter

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/lists"
	"gatehouse/netfilter/allowlist"
)

const index = "enabled = true\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"console\"]\n"

func folder(t *testing.T, list string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{allowlist.Index: index, "office.list": list, "notes.txt": "nobody's list"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func order(t *testing.T, o lists.Order) lists.Answer {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Run(string(b), &out); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("the answer is not one line: %q", out.String())
	}
	var a lists.Answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestNET2_RefusedFilesLeaveWhatWasTold(t *testing.T) {
	admission := filepath.Join(t.TempDir(), "admission")
	good := order(t, lists.Order{Folder: folder(t, "192.0.2.0/24"), Apply: true, Admission: admission})
	if good.Error != "" || !good.Enabled || good.Ranges != 1 {
		t.Fatalf("%+v", good)
	}
	before, err := os.ReadFile(admission)
	if err != nil {
		t.Fatal(err)
	}
	pipe := folder(t, "192.0.2.1")
	if err := os.Remove(filepath.Join(pipe, "office.list")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(pipe, "office.list")); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"bad line": folder(t, "192.0.2.1\n10.0.0.0/33"), "link out of the folder": pipe, "no folder": "/nowhere"} {
		a := order(t, lists.Order{Folder: dir, Apply: true, Admission: admission})
		if len(a.Report.Problems) == 0 && a.Error == "" {
			t.Errorf("%s: accepted: %+v", name, a)
		}
		if now, err := os.ReadFile(admission); err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s: the gateway was told something else", name)
		}
	}
	if err := Run("{\"folder\":1}", &bytes.Buffer{}); err == nil {
		t.Error("an order that is none was carried out")
	}
}

func TestNET3_DryRunSaysWhoIsCut(t *testing.T) {
	admission := filepath.Join(t.TempDir(), "admission")
	watch := []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.0.0.1")}
	a := order(t, lists.Order{Folder: folder(t, "10.0.0.0/8"), Before: folder(t, "192.0.2.0/24\n10.0.0.0/8"), Admission: admission, Watch: watch})
	if !a.Report.SelfCut || len(a.Report.Cut) != 1 || a.Report.Cut[0] != watch[0] || a.Admitted[1] != "office" || a.Report.Removed != 1 {
		t.Errorf("%+v", a)
	}
	if _, err := os.Stat(admission); err == nil {
		t.Error("a dry run told the gateway")
	}
	off := order(t, lists.Order{Folder: folder(t, "10.0.0.0/8"), Off: true, Watch: watch, Admission: admission, Apply: true})
	if off.Enabled || off.Report.SelfCut || !off.InForce.Off {
		t.Errorf("switched off: %+v", off)
	}
}
