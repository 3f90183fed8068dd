package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// oddRegistry is a registry in memory that answers as odd says and has one
// blob and a manifest, vm:1, in vm.
type oddRegistry struct {
	*registrytest.Front
	*registrytest.Odd
	blob, manifest         []byte
	digest, manifestDigest string
}

func newOdd(t *testing.T, odd registrytest.Odd, blob []byte) *oddRegistry {
	t.Helper()
	odd.Registry = registrytest.NewHandler()
	inner := client(t, registrytest.NewFront(t, odd.Registry).URL, Options{})
	o := &oddRegistry{Odd: &odd, blob: blob, manifest: []byte(`{"schemaVersion":2}`)}
	o.digest, o.manifestDigest = digests.Of(blob), digests.Of(o.manifest)
	if _, _, err := inner.UploadBlob(t.Context(), "vm", bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	if err := inner.PutManifest(t.Context(), "vm", "1", o.manifest, manifestType); err != nil {
		t.Fatal(err)
	}
	o.Front = registrytest.NewFront(t, o.Odd)
	return o
}

// readsRight reads the manifest, the blob and a range of it.
func (o *oddRegistry) readsRight(t *testing.T, r *Registry) {
	t.Helper()
	for _, tag := range []string{"1", o.manifestDigest} {
		raw, _, err := r.GetManifest(t.Context(), "vm", tag)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "manifest", raw, o.manifest)
	}
	size := int64(len(o.blob))
	rc, err := r.GetBlob(t.Context(), "vm", o.digest)
	reads(t, "blob", rc, err, o.blob)
	rc, whole, err := r.Source("vm").OpenBlob(t.Context(), o.digest, size, size/3, size/4)
	reads(t, "range", rc, err, o.blob[size/3:size/3+size/4])
	if whole {
		t.Error("a range is taken for the whole")
	}
	rc, _, err = r.Source("vm").OpenBlob(t.Context(), o.digest, size, 0, size)
	reads(t, "all of it", rc, err, o.blob)
	rc, err = r.GetBlobRange(t.Context(), "vm", o.digest, 1, size-2)
	reads(t, "range of what has no size", rc, err, o.blob[1:size-1])
}

// A part that comes with the status of the whole is the part that it says,
// and ranges are known to be served.
func TestRangeWithStatus200(t *testing.T) {
	t.Parallel()
	o := newOdd(t, registrytest.Odd{RangesAre200: true}, random(10_000))
	for _, noLength := range []bool{false, true} {
		o.NoLength = noLength
		r := client(t, o.URL, Options{})
		o.readsRight(t, r)
		if known, supported := r.Ranges(); !known || !supported {
			t.Error("ranges:", known, supported)
		}
	}
}

// Where all was asked for, a part is refused, whatever its status.
func TestPartOfWhatIsWhole(t *testing.T) {
	t.Parallel()
	header := ""
	f := answers(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", header)
		w.Write([]byte(`{"tags":[]}`))
	})
	r := client(t, f.URL, Options{})
	for _, header = range []string{"bytes 0-10/11", "Bytes 0-10/11"} {
		rc, err := r.GetBlob(t.Context(), "vm", someDigest)
		readAll(t, rc, err)
		rc, whole, err := r.Source("vm").OpenBlob(t.Context(), someDigest, 11, 0, 11)
		if readAll(t, rc, err); !whole {
			t.Error("not whole")
		}
		if _, _, err := r.GetManifest(t.Context(), "vm", "1"); err != nil {
			t.Error(err)
		}
	}
	for _, header = range []string{"bytes 0-10/22", "bytes 1-11/12", "bytes 0-10/*", "bytes 0-9/10", "", "bytes */11"} {
		_, err := r.GetBlob(t.Context(), "vm", someDigest)
		wantError(t, err, ErrContent, false)
		_, _, err = r.GetManifest(t.Context(), "vm", "1")
		wantError(t, err, ErrContent, false)
		_, err = r.Tags(t.Context(), "vm")
		wantError(t, err, ErrContent, false)
		if header == "bytes 0-10/*" {
			continue // with the size known, that is all
		}
		_, _, err = r.Source("vm").OpenBlob(t.Context(), someDigest, 11, 0, 11)
		wantError(t, err, ErrContent, false)
	}
}

// What a registry announces as the digest decides nothing: neither of what
// is read nor of what was stored.
func TestAnnouncedDigests(t *testing.T) {
	t.Parallel()
	for name, announce := range map[string]func(string) string{
		"bare":          func(d string) string { return strings.TrimPrefix(d, "sha256:") },
		"quoted":        func(d string) string { return `"` + d + `"` },
		"capitals":      strings.ToUpper,
		"sha512":        func(string) string { return "sha512:" + strings.Repeat("a", 128) },
		"another's":     func(string) string { return someDigest },
		"no digest":     func(string) string { return "\tx" },
		"none":          func(string) string { return "" },
		"all of a page": func(string) string { return strings.Repeat("x", 9000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOdd(t, registrytest.Odd{Announce: announce}, random(10_000))
			r := client(t, o.URL, Options{})
			o.readsRight(t, r)
			if there, err := r.BlobExists(t.Context(), "vm", o.digest); err != nil || !there {
				t.Error("HEAD:", there, err)
			}
			more := random(3000)
			if err := r.PutBlob(t.Context(), "vm", digests.Of(more), bytes.NewReader(more), 3000); err != nil {
				t.Error(err)
			}
			if _, err := r.PutMissing(t.Context(), "other", "vm", o.digest, o.blob); err != nil {
				t.Error(err)
			}
			if err := r.PutManifest(t.Context(), "vm", "2", []byte(`{"schemaVersion":2,"a":1}`), manifestType); err != nil {
				t.Error(err)
			}
			_, _, err := r.GetManifest(t.Context(), "vm", someDigest)
			wantError(t, err, ErrNotFound, false)
		})
	}
	// One that stores something else is found out all the same.
	f := answers(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Docker-Content-Digest", someDigest)
		if req.Method == http.MethodPut {
			w.WriteHeader(http.StatusCreated)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	})
	err := client(t, f.URL, Options{}).PutManifest(t.Context(), "vm", "1", []byte(`{}`), manifestType)
	wantError(t, err, ErrContent, false)
}

// The label of an answer is ignored where its bytes are what was asked for,
// whatever these look like.
func TestLabels(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"aws-chunked", "aws-chunked, gzip", "GZIP", "x-gzip", "br", "zstd", "deflate", "utf-8", "x"} {
		for _, start := range []string{"", "\x1f\x8b\x08", "\x28\xb5\x2f\xfd", "400;chunk-signature=ab\r\n"} {
			o := newOdd(t, registrytest.Odd{Label: label}, append([]byte(start), random(10_000)...))
			r := client(t, o.URL, Options{})
			rc, err := r.GetBlob(t.Context(), "vm", o.digest)
			reads(t, label, rc, err, o.blob)
			size := int64(len(o.blob))
			rc, _, err = r.Source("vm").OpenBlob(t.Context(), o.digest, size, 0, size/2)
			reads(t, label+", a part", rc, err, o.blob[:size/2])
			o.NoLength = true
			rc, err = r.GetBlob(t.Context(), "vm", o.digest)
			reads(t, label+" without a length", rc, err, o.blob)
			rc, _, err = r.Source("vm").OpenBlob(t.Context(), o.digest, size, 0, size)
			reads(t, label+" without a length, all of it", rc, err, o.blob)
			if _, _, err := r.GetManifest(t.Context(), "vm", o.manifestDigest); err != nil {
				t.Error(err)
			}
		}
	}
}

// What is really encoded, by a proxy that does not care what it was asked
// for, is never taken for the bytes.
func TestCompressedOnTheWay(t *testing.T) {
	t.Parallel()
	for _, noLength := range []bool{false, true} {
		o := newOdd(t, registrytest.Odd{Compress: true, NoLength: noLength}, bytes.Repeat([]byte("0123456789"), 2000))
		r := client(t, o.URL, Options{})
		size := int64(len(o.blob))
		refused := func(rc io.ReadCloser, _ bool, err error) {
			t.Helper()
			if err == nil {
				_, err = io.Copy(io.Discard, rc)
				rc.Close()
			}
			wantError(t, err, ErrContent, false)
		}
		noted := func(rc io.ReadCloser, err error) (io.ReadCloser, bool, error) { return rc, false, err }
		refused(r.Source("vm").OpenBlob(t.Context(), o.digest, size, 0, size))
		refused(r.Source("vm").OpenBlob(t.Context(), o.digest, size, 100, 200))
		refused(noted(r.GetBlob(t.Context(), "vm", o.digest)))
		refused(noted(r.GetBlobRange(t.Context(), "vm", o.digest, 0, 10)))
		for _, tag := range []string{"1", o.manifestDigest} {
			_, _, err := r.GetManifest(t.Context(), "vm", tag)
			wantError(t, err, ErrContent, false)
		}
		for _, q := range o.Requests() {
			if got := q.Header.Get("Accept-Encoding"); got != "identity" {
				t.Errorf("%s %s accepts %q", q.Method, q.Path, got)
			}
		}
	}
	// Chunks of a kind of their own, as some stores leave in what they keep.
	framed := answers(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "aws-chunked")
		w.(http.Flusher).Flush()
		fmt.Fprintf(w, "2710;chunk-signature=ab\r\n%s\r\n0\r\n\r\n", random(10_000))
	})
	_, _, err := client(t, framed.URL, Options{}).Source("vm").OpenBlob(t.Context(), someDigest, 10_000, 0, 10_000)
	wantError(t, err, ErrContent, false)
}
