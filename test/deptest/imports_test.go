package deptest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of imports into docs/architecture.md")

// TestImportsAreInTheDocs compares the table in docs/architecture.md with the
// one that counts.
func TestImportsAreInTheDocs(t *testing.T) {
	const name, first, last = top + "/docs/architecture.md", "| package | may import of this module |\n| --- | --- |\n", "\n\n"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(first))
	table, after, ended := bytes.Cut(rest, []byte(last))
	if !ok || !ended {
		t.Fatalf("%s has no table of imports", name)
	}
	want := importTable()
	if string(table) == want {
		return
	}
	if !*update {
		t.Fatalf("%s has another table of imports than allowed: make generate", name)
	}
	if err := os.WriteFile(name, slices.Concat(before, []byte(first+want+last), after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// importTable is allowed, less what is for tests, as a table in Markdown.
func importTable() string {
	quoted := func(names []string) string {
		all := slices.Sorted(slices.Values(names))
		for i := range all {
			all[i] = "`" + all[i] + "`"
		}
		return strings.Join(all, ", ")
	}
	var leaves, others []string
	for pkg, imports := range allowed {
		switch {
		case strings.HasPrefix(pkg, "test/"):
		case len(imports) == 0:
			leaves = append(leaves, pkg)
		default:
			others = append(others, pkg)
		}
	}
	rows := []string{fmt.Sprintf("| %s | nothing |", quoted(leaves))}
	slices.Sort(others)
	for _, pkg := range others {
		rows = append(rows, fmt.Sprintf("| `%s` | %s |", pkg, quoted(allowed[pkg])))
	}
	return strings.Join(rows, "\n")
}
