package lamina_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/laminafs/lamina/"

// below lists, for each room, the rooms that its packages may import. Packages
// in one room may import one another.
var below = map[string]string{
	"cmd":         "mount commit view store overlay cache layer fetch image atomicfile",
	"mount":       "store fs lookahead overlay cache layer index fetch image atomicfile",
	"commit":      "overlay cache layer index fetch image",
	"fs":          "overlay cache layer index fetch",
	"store":       "push published overlay cache layer index fetch image atomicfile",
	"view":        "overlay index",
	"published":   "layer index fetch",
	"push":        "image fetch atomicfile",
	"lookahead":   "overlay cache layer index fetch",
	"overlay":     "cache layer index fetch",
	"cache":       "layer index fetch atomicfile",
	"layer":       "index fetch atomicfile",
	"image":       "fetch atomicfile",
	"index":       "atomicfile",
	"atomicfile":  "",
	"fetch":       "",
	"bench":       "cmd mount commit view store fs lookahead overlay cache layer index fetch image integration",
	"integration": "cmd mount commit view store fs lookahead overlay cache layer index fetch image",
}

// TestImportsGoDownward holds the source, tests aside, against the arrows of
// docs/design.md.
func TestImportsGoDownward(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		room, _, nested := strings.Cut(filepath.ToSlash(path), "/")
		if !nested || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		allowed, known := below[room]
		if !known {
			t.Errorf("%s: the room %s is not in this test's table nor in docs/design.md", path, room)
			return nil
		}
		seen[room] = true
		for _, imp := range f.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			target, ours := strings.CutPrefix(p, module)
			if !ours {
				continue
			}
			target, _, _ = strings.Cut(target, "/")
			if target != room && !strings.Contains(" "+allowed+" ", " "+target+" ") {
				t.Errorf("%s imports %s: the arrows go from %s to [%s] only", path, p, room, allowed)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range below {
		if !seen[room] {
			t.Errorf("the room %s has no source", room)
		}
	}
}

// TestSingleGoroutine holds the packages that the Makefile tests without the race
// detector to what it says of them: they start no goroutine and share nothing.
func TestSingleGoroutine(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(makefile), "\nSINGLE = ")
	line, _, _ := strings.Cut(rest, "\n")
	dirs := strings.Fields(line)
	if len(dirs) == 0 {
		t.Fatal("the Makefile names no packages")
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no source: %v", dir, err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range f.Imports {
				if name, _ := strconv.Unquote(i.Path.Value); name == "sync" || name == "sync/atomic" {
					t.Errorf("%s imports %s", path, name)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if _, ok := n.(*ast.GoStmt); ok {
					t.Errorf("%s starts a goroutine", path)
				}
				return true
			})
		}
	}
}
