//go:build !race

package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The box's program is for arm64, too: its packages are typed as the compiler would
// for that, those of others without the bodies of their functions. To compile it all
// in each run from a fresh clone would take thirty times as long; make soak does. The
// race detector would find nothing here, and make it three times as long.
func TestBOX1_ProgramIsForARM64(t *testing.T) {
	const processor = "arm64"
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Module", "./cmd/gatehoused")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+processor)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	typed := map[string]*types.Package{"unsafe": types.Unsafe}
	files := token.NewFileSet()
	ours, wrong := 0, 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; { // each after those it imports
		var p struct {
			ImportPath, Dir string
			GoFiles         []string
			ImportMap       map[string]string
			Module          *struct{ Main bool }
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath == "unsafe" {
			continue
		}
		own := p.Module != nil && p.Module.Main
		if own {
			ours++
		}
		var parsed []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, f)
		}
		c := types.Config{
			IgnoreFuncBodies: !own, Sizes: types.SizesFor("gc", processor),
			Importer: imports(func(path string) (*types.Package, error) {
				if to := p.ImportMap[path]; to != "" {
					path = to
				}
				return typed[path], nil
			}),
			Error: func(err error) {
				if wrong++; wrong < 20 {
					t.Error(err)
				}
			},
		}
		typed[p.ImportPath], _ = c.Check(p.ImportPath, files, parsed, nil)
	}
	if ours < 50 {
		t.Errorf("only %d packages of this repository are in the program", ours)
	}
}

// imports is an importer of packages that are typed already.
type imports func(path string) (*types.Package, error)

func (i imports) Import(path string) (*types.Package, error) { return i(path) }
