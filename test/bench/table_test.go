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
	for kind, rows := range map[string][]row{
		"read": allRows, "push": slices.Concat(pushRows, materializeRows), "vm": vmRows, "touches": startRows, "cold": copiesRows,
	} {
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
	r, base := newest(t, kind)
	if r == nil {
		return ""
	}
	if len(r.Failed) > 0 || len(r.Lines) < len(rows) {
		t.Errorf("%s: %d lines, failed: %q", base, len(r.Lines), r.Failed)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nThe figures are those of [%s](benchmarks/%s),\nand a test compares this table with that file:\n\n", base, base)
	r.print(&b)
	fmt.Fprintln(&b)
	return b.String()
}

// newest reads the newest stored figures of a kind, or returns nil.
func newest(t *testing.T, kind string) (r *report, base string) {
	t.Helper()
	files, err := filepath.Glob("../../docs/benchmarks/*-" + kind + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		return nil, ""
	}
	name := slices.Max(files) // names begin with dates
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	r = new(report)
	if err := json.Unmarshal(text, r); err != nil {
		t.Fatal(err)
	}
	return r, filepath.Base(name)
}

// TestStartPicture compares the picture in the README with the newest figures of
// a real guest.
func TestStartPicture(t *testing.T) {
	r, base := newest(t, "vm")
	if r == nil {
		t.Fatal("no figures of a real guest are stored")
	}
	want, err := startPicture(r)
	if err != nil {
		t.Fatalf("%s: %v", base, err)
	}
	const name = "../../docs/start.svg"
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not drawn from %s (-update draws it)", name, base)
	}
}
