package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDocumentedTable compares the table in the documentation with the
// newest figures that are stored beside it.
func TestDocumentedTable(t *testing.T) {
	files, err := filepath.Glob("../../docs/benchmarks/*-read.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stored figures (%v)", err)
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
	if len(r.Failed) > 0 || len(r.Lines) < len(allRows) {
		t.Errorf("%s: %d lines, failed: %q", newest, len(r.Lines), r.Failed)
	}
	var table bytes.Buffer
	r.print(&table)
	doc, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), table.String()) {
		t.Errorf("docs/performance.md does not have the table of %s:\n%s", newest, table.String())
	}
}
