package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// A registry that has taken a small blob in a way may refuse a large one in
// it. That costs a piece at most, and another way is found.
func TestWaysOfOtherSizes(t *testing.T) {
	t.Parallel()
	limit := int64(smallChunk)
	for name, reg := range map[string]func() *registrytest.Particular{
		"416 over a small chunk, no bytes in PUT": func() *registrytest.Particular {
			return &registrytest.Particular{MaxPatch: limit, NoWhole: http.StatusMethodNotAllowed}
		},
		"416 over a small chunk, no bytes in PUT, early": func() *registrytest.Particular {
			return &registrytest.Particular{MaxPatch: limit, NoWhole: http.StatusRequestedRangeNotSatisfiable, Early: true}
		},
		"PATCH is 500": func() *registrytest.Particular {
			return &registrytest.Particular{NoPatch: http.StatusInternalServerError}
		},
		"PATCH is 502": func() *registrytest.Particular {
			return &registrytest.Particular{NoPatch: http.StatusBadGateway}
		},
	} {
		for _, once := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, once %v", name, once), func(t *testing.T) {
				t.Parallel()
				p := reg()
				r := client(t, registrytest.NewFront(t, p).URL, Options{})
				for _, n := range []int{100, int(limit) + 100, 3*uploadChunk + 5} {
					data := random(n)
					var body io.Reader = bytes.NewReader(data)
					if once {
						body = io.MultiReader(body)
					}
					_, _, err := r.UploadBlob(t.Context(), "vm", body)
					if once && p.NoPatch != 0 && n > uploadChunk {
						wantError(t, err, ErrUnreachable, false)
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					same(t, "stored", p.Blob(digests.Of(data)), data)
				}
				if p.Wasted() > int64(uploadChunk)+256<<10 {
					t.Errorf("%d bytes for nothing", p.Wasted())
				}
			})
		}
	}
}

// Pieces that are taken at first, and of which no blob is made, are given up
// after a second session. A way that has stored blobs is not.
func TestPiecesThatLeadNowhere(t *testing.T) {
	t.Parallel()
	late := func(q *http.Request) bool {
		var from int
		_, err := fmt.Sscanf(q.Header.Get("Content-Range"), "%d-", &from)
		return q.Method == http.MethodPatch && err == nil && from >= uploadChunk
	}
	end := func(q *http.Request) bool { return q.Method == http.MethodPut && q.ContentLength == 0 }
	for name, fault := range map[string]*registrytest.Fault{
		"third PATCH is 404":       {Match: late, Status: http.StatusNotFound},
		"third PATCH is 400":       {Match: late, Status: http.StatusBadRequest},
		"PUT is 400":               {Match: end, Status: http.StatusBadRequest, Times: 2},
		"PUT finds another digest": {Match: end, Status: http.StatusBadRequest, Times: 2, Body: `{"errors":[{"code":"DIGEST_INVALID"}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &registrytest.Particular{}
			f := registrytest.NewFront(t, p)
			f.Inject(fault)
			r := client(t, f.URL, Options{})
			data := random(3*uploadChunk + 5)
			if err := r.PutBlob(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), int64(len(data))); err != nil {
				t.Fatal(err)
			}
			same(t, "stored", p.Blob(digests.Of(data)), data)
			if n := p.Wasted(); n > 2*int64(len(data)) {
				t.Errorf("%d bytes for nothing", n)
			}
			if r.ways.state(byChunks) != wayRefused {
				t.Error("the way is not refused")
			}
		})
	}
}

// A server that refuses to be asked before a body is sent is sent the body.
func TestExpectationRefused(t *testing.T) {
	t.Parallel()
	p := &registrytest.Particular{}
	f := registrytest.NewFront(t, p)
	f.Inject(&registrytest.Fault{
		Match:  func(q *http.Request) bool { return q.Header.Get("Expect") != "" },
		Status: http.StatusExpectationFailed,
	})
	r := client(t, f.URL, Options{})
	data := random(2*uploadChunk + 5)
	if _, _, err := r.UploadBlob(t.Context(), "vm", io.MultiReader(bytes.NewReader(data))); err != nil {
		t.Fatal(err)
	}
	same(t, "stored", p.Blob(digests.Of(data)), data)
	if p.Wasted() != 0 || r.ways.state(byChunks) != wayDone {
		t.Error(p.Wasted(), r.ways.state(byChunks))
	}
}
