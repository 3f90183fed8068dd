package registry

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cocoonstack/epochfs/internal/epochlike"
	"github.com/cocoonstack/epochfs/internal/registrytest"
)

// requests are those of one upload or more.
type requests struct{ head, post, put, other int }

func requestsOf(f *registrytest.Front) (n requests) {
	for _, r := range f.Requests() {
		switch r.Method {
		case http.MethodHead:
			n.head++
		case http.MethodPost:
			n.post++
		case http.MethodPut:
			n.put++
		default:
			n.other++
		}
	}
	f.Reset()
	return n
}

// putAll uploads blobs of what is missing, in order, and returns how many
// were there.
func putAll(t *testing.T, r *Registry, from string, blobs [][]byte) (n int) {
	t.Helper()
	for _, b := range blobs {
		there, err := r.PutMissing(t.Context(), "vm", from, digestOf(b), b)
		if err != nil {
			t.Fatal(err)
		}
		if there {
			n++
		}
	}
	return n
}

func blobsOf(n int) [][]byte {
	blobs := make([][]byte, n)
	for i := range blobs {
		blobs[i] = random(1000 + i)
	}
	return blobs
}

func isStored(t *testing.T, r *Registry, name string, blobs [][]byte) {
	t.Helper()
	for _, b := range blobs {
		rc, err := r.GetBlob(t.Context(), name, digestOf(b))
		reads(t, "stored blob", rc, err, b)
	}
}

// A registry that mounts blobs from their own repository is not asked for
// each blob before its upload begins; others are, and no registry gets
// what it has.
func TestPutMissing(t *testing.T) {
	const n, again = 12, 5
	for _, k := range []struct {
		name        string
		start       func(t *testing.T) string
		first, more requests // for n blobs of which none is there; for them, and as many new ones
	}{
		{"debian", func(t *testing.T) string {
			return registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL).URL
		}, requests{missedBlobs, n + 1, n, 0}, requests{0, 2 * n, n, 0}},
		{"epoch", func(t *testing.T) string {
			return registrytest.NewFront(t, &epochlike.Server{}).URL
		}, requests{n, n + 1, n, 1}, requests{2 * n, n, n, 0}},
	} {
		t.Run(k.name, func(t *testing.T) {
			f := registrytest.Before(t, k.start(t))
			r := client(t, f.URL, Options{})
			blobs := blobsOf(2 * n)
			if there := putAll(t, r, "", blobs[:n]); there != 0 {
				t.Errorf("%d of what was never sent are there", there)
			}
			if got := requestsOf(f); got != k.first {
				t.Errorf("first: %+v, want %+v", got, k.first)
			}
			if there := putAll(t, r, "", blobs); there != n {
				t.Errorf("%d of %d are there", there, n)
			}
			if got := requestsOf(f); got != k.more {
				t.Errorf("then: %+v, want %+v", got, k.more)
			}
			isStored(t, r, "vm", blobs)
			f.Reset()
			if there := putAll(t, client(t, f.URL, Options{}), "", blobs[:again]); there != again {
				t.Errorf("%d of %d are there for another client", there, again)
			}
			if got := requestsOf(f); got != (requests{head: again}) {
				t.Errorf("another client: %+v", got)
			}
		})
	}
}

// What a registry says to a mount from the repository itself is only
// believed where it was right about what is known, and never in the way of
// an upload.
func TestPutMissingOddMounts(t *testing.T) {
	isMount := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("mount") }
	for name, fault := range map[string]*registrytest.Fault{
		"takes over what is not there": {Status: http.StatusCreated},
		"refuses":                      {Status: http.StatusBadRequest},
		"forbids":                      {Status: http.StatusForbidden},
		"fails":                        {Status: http.StatusInternalServerError},
		"breaks off":                   {Drop: true},
		"no place":                     {Status: http.StatusAccepted},
	} {
		t.Run(name, func(t *testing.T) {
			f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
			fault.Match = isMount
			f.Inject(fault)
			r := client(t, f.URL, Options{})
			blobs := blobsOf(10)
			if there := putAll(t, r, "", blobs); there != 0 {
				t.Errorf("%d are there", there)
			}
			mounts := 0
			for _, q := range f.Requests() {
				if strings.Contains(q.RawQuery, "mount=") {
					mounts++
				}
			}
			if mounts > missedBlobs+maxTries {
				t.Errorf("%d mounts were tried", mounts)
			}
			isStored(t, r, "vm", blobs)
		})
	}
}

// Once mounts are trusted, faults neither end an upload nor have it send
// what is there.
func TestPutMissingWithFaults(t *testing.T) {
	debian := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	var lose, lost atomic.Bool
	f := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case q.Method == http.MethodPut && lose.CompareAndSwap(true, false):
			lost.Store(true)
			debian.ServeHTTP(httptest.NewRecorder(), q)
			panic(http.ErrAbortHandler)
		case q.Method == http.MethodHead && lost.Load():
			panic(http.ErrAbortHandler)
		}
		debian.ServeHTTP(w, q)
	}))
	r := client(t, f.URL, Options{})
	blobs := blobsOf(missedBlobs + 1)
	putAll(t, r, "", blobs[:missedBlobs])
	f.Reset()
	for _, fault := range []*registrytest.Fault{{Drop: true}, {Status: http.StatusServiceUnavailable}} {
		fault.Match, fault.Times = registrytest.Method(http.MethodPost, ""), 1
		f.Inject(fault)
		if there := putAll(t, r, "", blobs[:1]); there != 1 {
			t.Error("a blob that is there is sent again")
		}
		if got := requestsOf(f); got != (requests{post: 2}) {
			t.Errorf("%+v", got)
		}
	}

	// The answer is lost, not the blob, and so is each question about it.
	lose.Store(true)
	if there := putAll(t, r, "", blobs[missedBlobs:]); there != 0 {
		t.Error("a blob that was sent is taken for one that was there")
	}
	if got := requestsOf(f); !lost.Load() || got.post != 2 || got.put != 1 {
		t.Errorf("%+v", got)
	}
	isStored(t, r, "vm", blobs)
}

// A blob of another repository is taken over; for one that is not there
// the session which the registry opened instead is used.
func TestPutMissingFrom(t *testing.T) {
	f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	r := client(t, f.URL, Options{})
	blobs := blobsOf(6)
	for _, b := range blobs[:3] {
		if err := r.PutBlob(t.Context(), "base", digestOf(b), bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	f.Reset()
	if there := putAll(t, r, "base", blobs); there != 3 {
		t.Errorf("%d of 3 are there", there)
	}
	if got := requestsOf(f); got != (requests{head: 6, post: 6, put: 3}) {
		t.Errorf("%+v", got)
	}
	isStored(t, r, "vm", blobs)
	if _, err := r.PutMissing(t.Context(), "vm", "../base", digestOf(blobs[0]), blobs[0]); err == nil {
		t.Error("a name that is none")
	}
}
