package lookahead

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/laminafs/lamina/index"
)

// python is what was learnt of the Python programs that run from a tree.
type python struct {
	mu    sync.Mutex
	roots []string        // where modules are looked for, as sys.path
	seen  map[string]bool // paths of the modules that were wished for
	named map[string]int  // how many of a folder were named for certain
}

const (
	// fewModules is how many modules of a folder are named before the others are
	// guessed. A program that takes some of a folder takes more, one after the other,
	// and each is a round trip: the last ten of `import numpy` took 350 ms of 2.2 s.
	// The folder is one request. Its size is bounded by the budget for guesses.
	fewModules = 4
	// maxFolder bounds how many modules one folder makes us look for.
	maxFolder = 1 << 10
)

// importing is an import statement: of `from ..a.b import c, d` level is 2, name
// a.b, and from c and d.
type importing struct {
	level int
	name  string
	from  []string
}

// module is what a compiled module says.
type module struct {
	minor    int    // compiled by Python 3.minor
	filename string // of its source
	imports  []importing
}

// headerLen is the length of what is before the code: magic number, flags, and
// time and size or hash of the source (PEP 552).
const headerLen = 16

// isCompiled tells by its first bytes whether a file may be a compiled module
// that parseModule understands.
func isCompiled(head []byte) bool { return versionOf(head) != 0 }

// versionOf returns n for a file that was compiled by Python 3.n, and 0 for any
// other. The magic numbers are those of importlib/_bootstrap_external.py.
func versionOf(head []byte) int {
	if len(head) < headerLen || head[2] != '\r' || head[3] != '\n' {
		return 0
	}
	switch magic := int(head[0]) | int(head[1])<<8; {
	case magic >= 3400 && magic < 3420:
		return 8
	case magic >= 3420 && magic < 3430:
		return 9
	case magic >= 3430 && magic < 3450:
		return 10
	case magic >= 3495 && magic < 3650: // 2900 + 50n and what is added in its betas
		return (magic - 2900) / 50
	}
	return 0
}

// operations are the numbers of the instructions that matter (dis, opcode).
type operations struct{ extendedArg, importName, loadConst, loadSmallInt byte }

func operationsOf(minor int) operations {
	switch {
	case minor >= 14:
		return operations{extendedArg: 69, importName: 73, loadConst: 82, loadSmallInt: 94}
	case minor == 13:
		return operations{extendedArg: 71, importName: 75, loadConst: 83}
	}
	return operations{extendedArg: 144, importName: 108, loadConst: 100}
}

// parseModule reads a compiled module.
func parseModule(b []byte) (*module, error) {
	m := &module{minor: versionOf(b)}
	if m.minor == 0 {
		return nil, errNotCompiled
	}
	c, err := unmarshal(b[headerLen:], m.minor)
	if err != nil {
		return nil, err
	}
	m.filename, m.imports = c.filename, c.imports(operationsOf(m.minor))
	return m, nil
}

// imports returns what the module with the code c imports when it is loaded:
// what its functions import is in code of their own. Before it imports, a level
// and the names to import are loaded.
func (c *code) imports(op operations) (list []importing) {
	var last, before any // what was loaded
	arg, left := 0, maxImports
	for i := 0; i+1 < len(c.ops) && left > 0; i += 2 {
		arg = arg<<8 | int(c.ops[i+1])
		switch o := c.ops[i]; {
		case o == op.extendedArg:
			arg &= 0xffffff
			continue
		case o == op.loadConst && arg < len(c.consts):
			before, last = last, c.consts[arg]
		case o == op.loadSmallInt && op.loadSmallInt != 0:
			before, last = last, any(arg)
		case o == op.importName && arg < len(c.names):
			m := importing{}
			m.level, _ = before.(int)
			from, _ := last.([]any)
			from = from[:min(len(from), left)]
			left -= 1 + len(from)
			for _, f := range from {
				if s, ok := moduleName(f); ok {
					m.from = append(m.from, s)
				}
			}
			var ok bool
			if m.name, ok = moduleName(c.names[arg]); ok {
				list = append(list, m)
			}
		}
		arg = 0
	}
	return list
}

// moduleName reports whether v is a string that may name a module.
func moduleName(v any) (name string, ok bool) {
	name, ok = v.(string)
	return name, ok && len(name) <= maxNameLen
}

// imports returns the modules that the compiled module f imports, as far as
// they are found.
func imports(ctx context.Context, s *scene, f file) ([]wish, error) {
	if f.len > maxModule {
		return nil, errNotCompiled
	}
	b := make([]byte, f.len)
	if _, err := io.ReadFull(io.NewSectionReader(s.reader(ctx, f), 0, f.len), b); err != nil {
		return nil, fmt.Errorf("imports of data at %d of layer %d: %w", f.off, f.layer, err)
	}
	m, err := parseModule(b)
	if err != nil {
		return nil, fmt.Errorf("imports of data at %d of layer %d: %w", f.off, f.layer, err)
	}
	i := importer{s: s, module: m, tag: fmt.Sprintf("cpython-3%d", m.minor), sure: f.sure, left: maxPlaces}
	i.dir = path.Dir(path.Clean(m.filename))
	// The name was written when the module was compiled, maybe elsewhere.
	at, err := s.tree.Locate(i.compiled(i.dir, strings.TrimSuffix(path.Base(m.filename), ".py")))
	if err != nil || !path.IsAbs(i.dir) || len(at) == 0 || !s.begins(f, at[0]) {
		return nil, fmt.Errorf("imports of data at %d of layer %d: %w: it is not at %s", f.off, f.layer, errNotCompiled, m.filename)
	}
	s.python.mu.Lock()
	defer s.python.mu.Unlock()
	i.addRoot()
	for _, m := range m.imports {
		if i.left < 0 {
			break
		}
		if err := ctx.Err(); err != nil { // there may be many, and Close waits
			return nil, fmt.Errorf("imports of data at %d of layer %d: %w", f.off, f.layer, err)
		}
		i.find(m)
	}
	return i.wishes, nil
}

// importer looks for what one module imports. The lock of the scene's python is
// held.
type importer struct {
	s      *scene
	module *module
	tag    string // in the names of compiled modules
	dir    string // the folder of the module, and of its package
	sure   bool   // it is loaded for certain, and so is what it imports
	left   int    // how many more paths are looked at
	wishes []wish
}

// compiled returns the path of the compiled module name of the folder dir: PEP
// 3147.
func (i *importer) compiled(dir, name string) string {
	return dir + "/__pycache__/" + name + "." + i.tag + ".pyc"
}

// exists tells whether there is a regular file.
func (i *importer) exists(path string) bool {
	_, err := i.s.tree.Locate(path)
	return err == nil
}

// addRoot adds the folder in which the outermost package of the module is to
// the places where modules are looked for, and those that go with it.
func (i *importer) addRoot() {
	p := &i.s.python
	root := i.dir
	for root != "/" && i.exists(i.compiled(root, "__init__")) {
		root = path.Dir(root)
	}
	if slices.Contains(p.roots, root) || len(p.roots) >= maxRoots {
		return
	}
	p.roots = append(p.roots, root)
	if !i.exists(i.compiled(root, "os")) {
		return
	}
	// It is the standard library: add what site.py adds, and Debian's does.
	version := fmt.Sprintf("python3.%d", i.module.minor)
	for _, dir := range []string{
		root + "/lib-dynload",
		"/usr/local/lib/" + version + "/dist-packages",
		root + "/site-packages",
		path.Dir(root) + "/python3/dist-packages",
	} {
		if _, err := i.s.tree.Resolve(dir); err == nil && !slices.Contains(p.roots, dir) {
			p.roots = append(p.roots, dir)
		}
	}
}

// find wishes for what m imports.
func (i *importer) find(m importing) {
	places := i.s.python.roots
	if m.level > 0 {
		dir := i.dir
		for n := 1; n < m.level && dir != "/"; n++ {
			dir = path.Dir(dir)
		}
		places = []string{dir}
	}
	for _, place := range places {
		dir, found := i.descend(place, m.name)
		if !found {
			continue
		}
		for _, name := range m.from {
			if dir != "" && !strings.Contains(name, ".") {
				i.descend(dir, name)
			}
		}
		return
	}
}

// descend wishes for the modules along a dotted name below dir, and returns the
// folder of the last one if it is a package. It reports whether the first one is
// there; so it does of an empty name.
func (i *importer) descend(dir, name string) (folder string, found bool) {
	if name == "" {
		return dir, true
	}
	for n, part := range strings.Split(name, ".") {
		if part == "" || strings.Contains(part, "/") {
			return "", n > 0
		}
		switch inner := dir + "/" + part; {
		case i.want(i.compiled(inner, "__init__")):
			dir = inner
		case i.extension(inner), i.want(i.compiled(dir, part)):
			return "", true
		default:
			return "", n > 0
		}
	}
	return dir, true
}

// extension wishes for the module at stem if it is a library: PEP 3149.
func (i *importer) extension(stem string) bool {
	for _, suffix := range []string{
		"." + i.tag + "-x86_64-linux-gnu.so", "." + i.tag + "-aarch64-linux-gnu.so",
		"." + i.tag + "-x86_64-linux-musl.so", "." + i.tag + "-aarch64-linux-musl.so",
		".abi3.so", ".so",
	} {
		if i.want(stem + suffix) {
			return true
		}
	}
	return false
}

// want wishes for the file at path, once, and reports whether it is there.
func (i *importer) want(path string) bool {
	p := &i.s.python
	if p.seen[path] {
		return true
	}
	if i.left--; i.left < 0 || len(p.seen) == maxSeen {
		return false
	}
	extents, err := i.s.tree.Locate(path)
	if err != nil {
		return false
	}
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	p.seen[path] = true
	i.wishes = append(i.wishes, wish{extents: extents, ends: true, sure: i.sure})
	if i.sure && strings.HasSuffix(path, ".pyc") {
		i.count(path)
	}
	return true
}

// count notes that the compiled module file was named. When enough of its folder were
// it wishes for the folder's other modules, as guesses that lead no further: most of
// them import what this program never needs.
func (i *importer) count(file string) {
	p, dir := &i.s.python, path.Dir(file)
	if p.named == nil {
		p.named = make(map[string]int)
	}
	if p.named[dir]++; p.named[dir] != fewModules {
		return
	}
	nid, err := i.s.tree.Resolve(dir)
	if err != nil {
		return
	}
	left := maxFolder
	// What cannot be listed is not guessed.
	_ = i.s.tree.ReadDir(nid, 0, func(d *index.Dirent) bool {
		name := string(d.Name)
		if strings.HasSuffix(name, "."+i.tag+".pyc") {
			if extents, err := i.s.tree.Locate(dir + "/" + name); err == nil {
				i.wishes = append(i.wishes, wish{extents: extents, ends: true, alone: true})
			}
		}
		left--
		return left > 0
	})
}
