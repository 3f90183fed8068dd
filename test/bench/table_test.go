package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables into the documentation")

// TestDocumentedTable compares the tables in the documentation with the
// newest figures that are stored beside it.
func TestDocumentedTable(t *testing.T) {
	for kind, rows := range map[string][]row{"read": allRows, "push": slices.Concat(pushRows, materializeRows)} {
		t.Run(kind, func(t *testing.T) {
			want := documented(t, kind, rows)
			const name = "../../docs/performance.md"
			doc, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			before, rest, begins := strings.Cut(string(doc), "<!-- "+kind+" -->\n")
			got, after, ends := strings.Cut(rest, "<!-- end of "+kind+" -->\n")
			if !begins || !ends {
				t.Fatalf("%s has no place for the table", name)
			}
			if got == want {
				return
			}
			if !*update {
				t.Fatalf("%s does not have the table of its newest figures (-update writes it):\n%s", name, want)
			}
			text := before + "<!-- " + kind + " -->\n" + want + "<!-- end of " + kind + " -->\n" + after
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// documented is what the documentation says of the newest figures; nothing
// where there are none.
func documented(t *testing.T, kind string, rows []row) string {
	files, err := filepath.Glob("../../docs/benchmarks/*-" + kind + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		return ""
	}
	newest := slices.Max(files) // names begin with dates
	text, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Failed) > 0 || len(r.Lines) < len(rows) {
		t.Errorf("%s: %d lines, failed: %q", newest, len(r.Lines), r.Failed)
	}
	var b bytes.Buffer
	base := filepath.Base(newest)
	fmt.Fprintf(&b, "\nThe figures are those of [%s](benchmarks/%s),\nand a test compares this table with that file:\n\n", base, base)
	r.print(&b)
	fmt.Fprintln(&b)
	return b.String()
}
