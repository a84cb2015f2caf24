package arch

import (
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// promises is how many each group of docs/features.md has. A promise is given
// up by saying so in its row, not by leaving the row out.
var promises = map[string]int{"BOX": 16, "KEY": 12, "NET": 10, "ACC": 10, "HUB": 9, "SES": 11, "AUD": 7, "VID": 1, "USE": 6}

// promise is one row of docs/features.md.
type promise struct {
	id, group, state string
	tests            map[string][]string // by folder; a folder alone stands for what is in it
}

var (
	featureRow = regexp.MustCompile(`^\| ([A-Z]{3}\d+)\+? \| (.+) \| (.+) \| (.+) \|$`)
	groupTitle = regexp.MustCompile(`^## ([A-Z]{3}) `)
	testsPart  = regexp.MustCompile("^`([a-z0-9/]+)`(?:: (Test\\w+(?:, Test\\w+)*))?$")
	testID     = regexp.MustCompile(`^Test([A-Z]{3}\d+)_`)
)

// features parses docs/features.md and refuses every row that is not in form.
func features(t *testing.T) map[string]promise {
	t.Helper()
	rows := map[string]promise{}
	group := ""
	for line := range strings.Lines(read(t, "docs/features.md")) {
		line = strings.TrimSpace(line)
		if m := groupTitle.FindStringSubmatch(line); m != nil {
			group = m[1]
		}
		if group == "" || !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| id ") {
			continue
		}
		m := featureRow.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("docs/features.md: not a row of id, promise, state, tests: %s", line)
			continue
		}
		p := promise{id: m[1], group: group, state: m[3], tests: map[string][]string{}}
		if _, twice := rows[p.id]; twice {
			t.Errorf("docs/features.md has %s twice", p.id)
		}
		for part := range strings.SplitSeq(m[4], "; ") {
			if m[4] == "–" {
				break
			}
			m := testsPart.FindStringSubmatch(part)
			if m == nil {
				t.Errorf("docs/features.md, %s: %q is not a folder with tests in it", p.id, part)
				continue
			}
			p.tests[m[1]] = strings.Split(m[2], ", ")
		}
		rows[p.id] = p
	}
	return rows
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testsInTree is every test by the folder it is in.
func testsInTree(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	files(t, func(path string, file *ast.File, _ string) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				found[folder] = append(found[folder], fn.Name.Name)
			}
		}
	})
	return found
}

func TestEveryPromiseHasARow(t *testing.T) {
	rows := features(t)
	for group, n := range promises {
		for i := range n {
			id := fmt.Sprint(group, i+1)
			p, ok := rows[id]
			if !ok {
				t.Errorf("docs/features.md has no row %s", id)
				continue
			}
			delete(rows, id)
			if p.group != group {
				t.Errorf("docs/features.md has %s under %s", id, p.group)
			}
			word, rest, _ := strings.Cut(p.state, ":")
			switch {
			case word == "done" || word == "partly" && rest != "":
				if len(p.tests) == 0 {
					t.Errorf("docs/features.md: %s is %q without a test", id, word)
				}
			case word != "not yet":
				t.Errorf("docs/features.md: the state of %s is %q: done, partly: what works and what is missing, or not yet", id, p.state)
			}
		}
	}
	for id := range rows {
		t.Errorf("docs/features.md: %s is not a promise", id)
	}
}

func TestPromisedTestsExist(t *testing.T) {
	tree := testsInTree(t)
	for id, p := range features(t) {
		for folder, names := range p.tests {
			if len(tree[folder]) == 0 {
				t.Errorf("docs/features.md, %s: there are no tests in %s", id, folder)
				continue
			}
			for _, name := range names {
				if name != "" && !slices.Contains(tree[folder], name) {
					t.Errorf("docs/features.md, %s: there is no %s in %s", id, name, folder)
				}
			}
		}
	}
}

func TestTestsKeepTheirPromises(t *testing.T) {
	rows := features(t)
	for folder, names := range testsInTree(t) {
		for _, name := range names {
			m := testID.FindStringSubmatch(name)
			if m == nil {
				continue
			}
			p, known := rows[m[1]]
			if !known {
				t.Errorf("%s in %s: %s is not a promise of docs/features.md", name, folder, m[1])
			} else if _, named := p.tests[folder]; !named {
				t.Errorf("%s proves %s, whose row in docs/features.md does not name the folder %s", name, m[1], folder)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	inCode  = regexp.MustCompile("`((?:docs|appliance|cmd|tpm|netfilter|image|tests|\\.ci)/[\\w./*-]+)`")
	machine = regexp.MustCompile(`(?:^|[\s"'(=` + "`" + `])/(?:work|home|root|Users)/`)
)

// pages are the README and everything below docs.
func pages(t *testing.T) []string {
	t.Helper()
	found := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md", "docs/*.toml"} {
		match, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range match {
			rel, err := filepath.Rel(root, m)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, rel)
		}
	}
	if len(found) < 10 {
		t.Fatalf("only %d pages were found: %v", len(found), found)
	}
	return found
}

func TestPagesNameWhatExists(t *testing.T) {
	for _, page := range pages(t) {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			to := page
			if target != "" {
				to = path.Join(path.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(read(t, to)), anchor) {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], to)
			}
		}
		for _, m := range inCode.FindAllStringSubmatch(text, -1) {
			if found, err := filepath.Glob(filepath.Join(root, m[1])); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which is not there", page, m[1])
			}
		}
		if m := machine.FindString(text); m != "" {
			t.Errorf("%s has a path of somebody's machine: %q", page, m)
		}
	}
}

// anchors are the names that headings get in a rendered page.
func anchors(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		found = append(found, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(strings.TrimLeft(line, "#"))))
	}
	return found
}

// TestMapIsWhole holds the map of docs/architecture.md against the packages. A
// folder without a line of its own may stand below one that has it.
func TestMapIsWhole(t *testing.T) {
	_, rest, ok := strings.Cut(read(t, "docs/architecture.md"), "\n## Map\n")
	if !ok {
		t.Fatal("docs/architecture.md has no section Map")
	}
	section, _, _ := strings.Cut(rest, "\n## ")
	entry := regexp.MustCompile("(?m)^\\| (`[^|]+) \\|")
	name := regexp.MustCompile("`([a-z/]+)`")
	mapped := map[string]bool{}
	for _, row := range entry.FindAllStringSubmatch(section, -1) {
		for _, m := range name.FindAllStringSubmatch(row[1], -1) {
			mapped[m[1]] = false
		}
	}
	for _, p := range list(t, "./...") {
		folder := strings.TrimPrefix(p.ImportPath, "gatehouse/")
		found := false
		for f := folder; f != "."; f = path.Dir(f) {
			if _, ok := mapped[f]; ok {
				mapped[f], found = true, true
			}
		}
		if !found {
			t.Errorf("docs/architecture.md: the map does not show %s", folder)
		}
	}
	for f := range maps.Keys(mapped) {
		if !mapped[f] {
			t.Errorf("docs/architecture.md: the map shows %s, which has no package", f)
		}
	}
}
