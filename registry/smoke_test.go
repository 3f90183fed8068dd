package registry

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// A blob of each upload path and a manifest go up and come back whole.
func TestRoundTrip(t *testing.T) {
	srv := httptest.NewServer(ggcr.New())
	defer srv.Close()
	ctx := context.Background()
	ref, err := ParseReference(strings.TrimPrefix(srv.URL, "http://")+"/vm/a:1", ReferenceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, n := range []int{0, 1, 1000, uploadChunk, 2*uploadChunk + 7} {
		data := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
		d, size, err := r.UploadBlob(ctx, "vm/a", io.MultiReader(bytes.NewReader(data)))
		if err != nil || d != digestOf(data) || size != int64(n) {
			t.Fatal(n, d, size, err)
		}
		if err := r.PutBlob(ctx, "vm/b", d, bytes.NewReader(data), int64(n)); err != nil {
			t.Fatal(err)
		}
		rc, err := r.GetBlob(ctx, "vm/a", d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Fatal("not the same", n, len(got), err)
		}
		if n < 100 {
			continue
		}
		rc, start, err := r.Source("vm/a").OpenBlob(ctx, d, int64(n), 10, 33)
		if err != nil || start != 10 {
			t.Fatal(start, err)
		}
		got, err = io.ReadAll(rc)
		rc.Close()
		if err != nil || !bytes.Equal(got, data[10:43]) {
			t.Fatal("not the range", err)
		}
	}
	if err := r.PutManifest(ctx, "vm/a", "1", []byte(`{"a":1}`), "application/vnd.oci.image.manifest.v1+json"); err != nil {
		t.Fatal(err)
	}
	raw, kind, err := r.GetManifest(ctx, "vm/a", "1")
	if err != nil || string(raw) != `{"a":1}` || kind != "application/vnd.oci.image.manifest.v1+json" {
		t.Fatal(string(raw), kind, err)
	}
}
