// Package arch keeps the rules of docs/architecture.md: who may import whom, and what the box's program may hold.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// A listed package, as go list tells it.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
	Standard   bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,Module,Standard"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// within says whether path is folder or lies below it.
func within(path string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return path == f || strings.HasPrefix(path, f+"/") })
}

// A rule forbids imports, directly or through others where deep is set.
type rule struct {
	from, to []string
	except   []string
	deep     bool
	reason   string
}

var roles = []string{"gatehouse/appliance/network", "gatehouse/appliance/gateway", "gatehouse/appliance/console", "gatehouse/appliance/agent", "gatehouse/appliance/boot"}

var rules = []rule{
	{from: []string{"gatehouse/cmd/gatehoused"}, to: []string{"gatehouse/image"}, deep: true,
		reason: "the box's program does not carry the program that builds boxes"},
	{from: []string{"gatehouse/appliance", "gatehouse/tpm", "gatehouse/netfilter", "gatehouse/firmware"}, to: []string{"gatehouse/cmd", "gatehouse/image", "gatehouse/tests"},
		reason: "imports run one way, from programs to what they are made of"},
	{from: []string{"gatehouse/tpm", "gatehouse/netfilter", "gatehouse/firmware"}, to: []string{"gatehouse/appliance"},
		except: []string{"gatehouse/appliance/control"},
		reason: "sealing, filtering and firmware know nothing of the appliance but the words its faces use"},
	{from: []string{"gatehouse/appliance/vault", "gatehouse/appliance/host", "gatehouse/appliance/durable", "gatehouse/appliance/volume"},
		to:     []string{"gatehouse/appliance/store", "gatehouse/appliance/account", "gatehouse/appliance/audit", "gatehouse/appliance/monitor", "gatehouse/appliance/supervise", "gatehouse/appliance/enroll"},
		reason: "doors to the machine do not lean on services"},
	{from: []string{"gatehouse/appliance/control", "gatehouse/appliance/task", "gatehouse/appliance/setup/proof", "gatehouse/appliance/config"},
		to:     []string{"gatehouse/appliance/host", "gatehouse/appliance/volume", "gatehouse/appliance/vault", "gatehouse/appliance/supervise", "gatehouse/tpm"},
		reason: "pure packages open no doors"},
	{from: []string{"gatehouse/appliance/gateway", "gatehouse/appliance/console", "gatehouse/appliance/agent", "gatehouse/appliance/network"},
		to:     []string{"gatehouse/appliance/vault", "gatehouse/appliance/volume", "gatehouse/tpm", "gatehouse/netfilter/nft", "gatehouse/netfilter/xdp", "gatehouse/appliance/supervise", "gatehouse/appliance/monitor"},
		except: []string{"gatehouse/tpm/pcr"}, // digests alone, which a manifest names
		deep:   true, reason: "a role that faces the network holds no TPM handle, no volume and no filter; it asks over the control socket"},
	{from: []string{"gatehouse/appliance/monitor", "gatehouse/appliance/agent", "gatehouse/appliance/gateway", "gatehouse/appliance/network"},
		to:     []string{"database/sql", "modernc.org/sqlite", "gatehouse/appliance/store"},
		except: []string{"database/sql/driver"}, // interfaces alone, which a module of unique numbers names
		deep:   true, reason: "only the console parses a database"},
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, r := range rules {
			if !within(p.ImportPath, r.from...) {
				continue
			}
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			for _, i := range imports {
				if within(i, r.to...) && !within(i, r.except...) {
					t.Errorf("%s imports %s: %s", p.ImportPath, i, r.reason)
				}
			}
		}
		if slices.Contains(roles, p.ImportPath) || within(p.ImportPath, roles...) {
			for _, i := range p.Imports {
				own := slices.IndexFunc(roles, func(r string) bool { return within(p.ImportPath, r) })
				other := slices.IndexFunc(roles, func(r string) bool { return within(i, r) })
				if other >= 0 && other != own {
					t.Errorf("%s imports %s: roles are processes of their own and never import each other", p.ImportPath, i)
				}
			}
		}
	}
}

// TestModulesOfTheBox keeps the third-party modules of the box's program in a
// checked-in list: a new one is a decision, not an accident.
func TestModulesOfTheBox(t *testing.T) {
	var found []string
	for _, p := range list(t, "-deps", "./cmd/gatehoused") {
		if p.Module != nil && p.Module.Path != "gatehouse" && !slices.Contains(found, p.Module.Path) {
			found = append(found, p.Module.Path)
		}
	}
	slices.Sort(found)
	b, err := os.ReadFile("modules.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(b))
	for _, m := range found {
		if !slices.Contains(want, m) {
			t.Errorf("gatehoused now holds module %s: if that is meant, add it to tests/arch/modules.txt", m)
		}
	}
	for _, m := range want {
		if !slices.Contains(found, m) {
			t.Errorf("tests/arch/modules.txt names %s, which gatehoused no longer holds", m)
		}
	}
}

// files calls f for every Go file of ours.
func files(t *testing.T, f func(path string, file *ast.File, src string)) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n == "build" || n == "node_modules" || n == "testdata" || (strings.HasPrefix(n, ".") && path != root) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(set, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		f(path, file, string(src))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNoInitAndNoWeakRandomness(t *testing.T) {
	files(t, func(path string, file *ast.File, src string) {
		test := strings.HasSuffix(path, "_test.go")
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s: func init(): every role shares one binary and must not run another's code", path)
			}
		}
		for _, i := range file.Imports {
			if p := strings.Trim(i.Path.Value, `"`); strings.HasPrefix(p, "math/rand") && !test {
				t.Errorf("%s imports %s: randomness comes from crypto/rand", path, p)
			}
		}
		if strings.Contains(src, "no"+"lint") || strings.Contains(src, "lint:"+"ignore") {
			t.Errorf("%s silences a linter: mend the code", path)
		}
	})
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	said := map[string]bool{}
	files(t, func(path string, file *ast.File, _ string) {
		dir := filepath.Dir(path)
		said[dir] = said[dir] || (file.Doc != nil && (strings.HasPrefix(file.Doc.Text(), "Package ") || strings.HasPrefix(file.Doc.Text(), "Command ")))
	})
	for dir, ok := range said {
		if !ok {
			t.Errorf("%s: no sentence that begins with Package or Command", dir)
		}
	}
}

func TestTopLevelIsAgreed(t *testing.T) {
	agreed := strings.Fields("cmd appliance tpm netfilter image firmware tests docs .ci go.mod go.sum Makefile README.md LICENSE .git .gitignore build")
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(agreed, e.Name()) {
			t.Errorf("%s at the top level is not in the agreed layout", e.Name())
		}
	}
}
