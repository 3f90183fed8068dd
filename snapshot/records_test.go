package snapshot_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// Records that nobody knows come back, beside a map and without one; what
// would mean something else in a header is refused.
func TestRecords(t *testing.T) {
	most := strings.Repeat("x", 64<<10-len("COCOON.b"))
	export := rawTar(t, artifacttest.Envelope,
		&tar.Header{Name: "a", Size: 8, PAXRecords: map[string]string{"COCOON.b": most, "OTHER.c": "1"}},
		&tar.Header{Name: "cow.raw", Size: 4, PAXRecords: map[string]string{"COCOON.sparse.map": `[{"o":4,"l":4}]`, "COCOON.sparse.size": "12", "COCOON.new": "ä\n="}},
	)
	store := artifacttest.NewStore()
	if _, err := pushTo(t, store, bytes.NewReader(export)); err != nil {
		t.Fatal(err)
	}
	files, _ := untarred(t, store, "vm", "latest")
	if a := files["a"].PAX; len(a) != 1 || a["COCOON.b"] != most {
		t.Errorf("%d records, of %d bytes", len(a), len(a["COCOON.b"]))
	}
	if c := files["cow.raw"].PAX; len(c) != 3 || c["COCOON.new"] != "ä\n=" {
		t.Errorf("%q", c)
	}
	large := rawTar(t, artifacttest.Envelope, &tar.Header{Name: "a", Size: 8, PAXRecords: map[string]string{"COCOON.b": most + "x"}})
	if _, err := pushTo(t, artifacttest.NewStore(), bytes.NewReader(large)); !errors.Is(err, layout.ErrContent) {
		t.Errorf("more than is kept: %v", err)
	}
	for key, value := range map[string]string{"COCOON.b": "\xff", "COCOON.\xff": "b"} {
		odd := rawTar(t, artifacttest.Envelope, &tar.Header{Name: "a", Size: 8, PAXRecords: map[string]string{key: value}})
		if _, err := pushTo(t, artifacttest.NewStore(), bytes.NewReader(odd)); !errors.Is(err, layout.ErrContent) {
			t.Errorf("record %q is %q, which JSON cannot keep: %v", key, value, err)
		}
	}
	for key, value := range map[string]string{
		"path": "/etc/passwd", "COCOON.sparse.map": "[]", "COCOON.sparse.size": "1", "GNU.sparse.major": "1", "": "",
		"COCOON.a=b": "", "COCOON.a\x00": "", "COCOON.b": most + "x",
	} {
		a := artifacttest.Snapshot(cow(), artifacttest.Options{Edit: meta(func(f *manifest.SnapshotFile) { f.Records = map[string]string{key: value} })})
		store := artifacttest.NewStore()
		store.Add("vm", "latest", a)
		if _, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%q: %v", key, err)
		}
	}
}
