package deptest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
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

// mostMethods bounds the methods of a type of the cache. A function whose first
// parameter is the type counts as one.
const mostMethods = 45

// checked is a type-checked package.
type checked struct {
	files []*ast.File
	info  *types.Info
	fset  *token.FileSet
}

// checkRooms type-checks the packages of the cache, by what the compiler has
// exported of those that they import.
func checkRooms(t *testing.T) map[string]checked {
	t.Helper()
	out, err := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles", module+"/cache/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	type pkg struct {
		ImportPath, Export, Dir string
		GoFiles                 []string
	}
	exports := map[string]string{}
	var rooms []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if strings.HasPrefix(p.ImportPath, module+"/cache") {
			rooms = append(rooms, p)
		}
	}
	all := map[string]checked{}
	for _, p := range rooms {
		c := checked{fset: token.NewFileSet(), info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			c.files = append(c.files, f)
		}
		imports := importer.ForCompiler(c.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
		if _, err := (&types.Config{Importer: imports}).Check(p.ImportPath, c.fset, c.files, c.info); err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module+"/")] = c
	}
	return all
}

// file returns the name of the file that an object stands in.
func (c checked) file(at token.Pos) string { return filepath.Base(c.fset.Position(at).Filename) }

// TestMethodsOfTheCache counts the methods of the cache's types.
func TestMethodsOfTheCache(t *testing.T) {
	t.Parallel()
	count := map[string]int{}
	for _, c := range checkRooms(t) {
		for _, f := range c.files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					sig := c.info.Defs[fn.Name].Type().(*types.Signature)
					first := sig.Recv()
					if first == nil && sig.Params().Len() > 0 {
						first = sig.Params().At(0)
					}
					if first != nil && strings.Contains(first.Type().String(), module+"/cache") {
						count[strings.TrimPrefix(first.Type().String(), "*")]++
					}
				}
			}
		}
	}
	if len(count) < 20 {
		t.Fatalf("%d types are found", len(count))
	}
	for name, n := range count {
		if n > mostMethods {
			t.Errorf("%s has %d methods, more than %d", strings.TrimPrefix(name, module+"/"), n, mostMethods)
		}
	}
}

// TestFilesOfTheCache follows the calls between the files of each of the
// cache's packages: they go one way, so that nobody has to read up and down.
func TestFilesOfTheCache(t *testing.T) {
	t.Parallel()
	for name, c := range checkRooms(t) {
		calls := map[string]map[string]string{} // from file to file, one name that is called
		for id, o := range c.info.Uses {
			fn, ok := o.(*types.Func)
			if !ok || fn.Pkg() == nil || fn.Pkg().Path() != module+"/"+name {
				continue
			}
			from, to := c.file(id.Pos()), c.file(fn.Pos())
			if from == to || !strings.HasSuffix(to, ".go") {
				continue
			}
			if calls[from] == nil {
				calls[from] = map[string]string{}
			}
			calls[from][to] = fn.Name()
		}
		if name == "cache" && len(calls) < 20 {
			t.Fatalf("calls of %d files are found", len(calls))
		}
		for from := range calls {
			if path := circle(calls, from, from, map[string]bool{}); path != "" {
				t.Errorf("%s: %s%s", name, from, path)
			}
		}
	}
}

// circle returns how calls lead from a file back to goal, or "".
func circle(calls map[string]map[string]string, from, goal string, seen map[string]bool) string {
	for to, name := range calls[from] {
		if to == goal {
			return " -" + name + "-> " + to
		}
		if seen[to] {
			continue
		}
		seen[to] = true
		if rest := circle(calls, to, goal, seen); rest != "" {
			return " -" + name + "-> " + to + rest
		}
	}
	return ""
}
