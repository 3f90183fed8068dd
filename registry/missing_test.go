package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"golang.org/x/sync/errgroup"
)

// requests are those of one upload or more.
type requests struct{ head, post, put, other int }

// requestsOf counts what came since it was last called.
func requestsOf(f *registrytest.Front) requests {
	n := requests{head: count(f, http.MethodHead, ""), post: count(f, http.MethodPost, ""), put: count(f, http.MethodPut, "")}
	n.other = len(f.Requests()) - n.head - n.post - n.put
	f.Reset()
	return n
}

// putAll uploads blobs of what is missing, in order, and returns how many
// were there.
func putAll(t *testing.T, r *Registry, from string, blobs [][]byte) (n int) {
	t.Helper()
	for _, b := range blobs {
		there, err := r.PutMissing(t.Context(), "vm", from, digests.Of(b), b)
		if err != nil {
			t.Fatal(err)
		}
		if there {
			n++
		}
	}
	return n
}

var made atomic.Int64

// blobsOf makes blobs that no other test has.
func blobsOf(n int) [][]byte {
	blobs := make([][]byte, n)
	for i := range blobs {
		blobs[i] = random(1000 + int(made.Add(1)))
	}
	return blobs
}

func isStored(t *testing.T, r *Registry, blobs [][]byte) {
	t.Helper()
	for _, b := range blobs {
		rc, err := r.GetBlob(t.Context(), "vm", digests.Of(b))
		reads(t, "stored blob", rc, err, b)
	}
}

// A registry that mounts blobs from their own repository is not asked for
// each blob before its upload begins, as long as blobs are missing; others
// are. None gets what it has.
func TestPutMissing(t *testing.T) {
	const n, again = 12, 5
	for _, k := range []struct {
		name        string
		start       func(t *testing.T) string
		first, more requests // for n blobs of which none is there; for them, and as many new ones
	}{
		{"debian", func(t *testing.T) string {
			return registrytest.Debian(t, registrytest.DebianOptions{}).URL
		}, requests{missesInARow, n + 1, n, 0}, requests{n + missesInARow, n + 1, n, 0}},
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
			if there := putAll(t, r, "vm", blobs); there != n { // from itself is from nowhere
				t.Errorf("%d of %d are there", there, n)
			}
			if got := requestsOf(f); got != k.more {
				t.Errorf("then: %+v, want %+v", got, k.more)
			}
			isStored(t, r, blobs)
			f.Reset()
			if there := putAll(t, client(t, f.URL, Options{}), "vm", blobs[:again]); there != again {
				t.Errorf("%d of %d are there for another client", there, again)
			}
			if got := requestsOf(f); got != (requests{head: again}) {
				t.Errorf("another client: %+v", got)
			}
		})
	}
}

// Whoever uploads at the same time, one finds out about mounts.
func TestPutMissingAtOnce(t *testing.T) {
	for name, base := range map[string]string{
		"debian": registrytest.Debian(t, registrytest.DebianOptions{}).URL,
		"epoch":  registrytest.NewFront(t, &epochlike.Server{}).URL,
	} {
		t.Run(name, func(t *testing.T) {
			f := registrytest.Before(t, base)
			r := client(t, f.URL, Options{})
			blobs := blobsOf(64)
			var g errgroup.Group
			g.SetLimit(8)
			for _, b := range blobs {
				g.Go(func() error {
					lent := bytes.Clone(b)
					there, err := r.PutMissing(t.Context(), "vm", "", digests.Of(b), lent)
					clear(lent)
					if there {
						t.Error("a blob is there")
					}
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			got := requestsOf(f)
			if got.post != len(blobs)+1 || got.put != len(blobs) || got.head < missesInARow || name == "epoch" && got.head != len(blobs) {
				t.Errorf("%+v", got)
			}
			isStored(t, r, blobs)
		})
	}
}

// ofMount matches the requests that ask for a mount.
func ofMount(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("mount") }

// mounts is how often a mount was asked for.
func mounts(f *registrytest.Front) (n int) {
	for _, q := range f.Requests() {
		if strings.Contains(q.RawQuery, "mount=") && q.Method == http.MethodPost {
			n++
		}
	}
	return n
}

// oddMounts are answers to the request for a mount.
func oddMounts() map[string]*registrytest.Fault {
	return map[string]*registrytest.Fault{
		"takes over what is not there": {Status: http.StatusCreated},
		"takes over something else":    {Status: http.StatusCreated, Header: http.Header{"Docker-Content-Digest": {someDigest}}},
		"says yes":                     {Status: http.StatusOK},
		"refuses":                      {Status: http.StatusBadRequest},
		"forbids":                      {Status: http.StatusForbidden},
		"wants an account":             {Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {`Basic realm="x"`}}},
		"asks for patience":            {Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"3600"}}},
		"fails":                        {Status: http.StatusInternalServerError},
		"breaks off":                   {Drop: true},
		"no place":                     {Status: http.StatusAccepted},
		"another host":                 {Status: http.StatusAccepted, Header: http.Header{"Location": {"http://127.0.0.9/v2/vm/blobs/uploads/x"}}},
		"no session":                   {Status: http.StatusAccepted, Header: http.Header{"Location": {"/v2/vm/blobs/uploads/x"}}},
		"an old zot":                   {Status: http.StatusAccepted, Header: http.Header{"Location": {"/v2/vm/blobs/uploads/?mount=a&from=vm/x"}}},
	}
}

// Whatever a registry makes of a mount from the repository itself, before
// it was right about one or after, the blobs get there, and it is soon
// asked no more.
func TestPutMissingOddMounts(t *testing.T) {
	debian := registrytest.Debian(t, registrytest.DebianOptions{}).URL
	for name := range oddMounts() {
		for proven, before := range map[string]int{"": 0, ", once proven": missesInARow} {
			t.Run(name+proven, func(t *testing.T) {
				t.Parallel()
				f := registrytest.Before(t, debian)
				r := client(t, f.URL, Options{})
				blobs := blobsOf(missesInARow + 6)
				putAll(t, r, "", blobs[:before])
				f.Reset()
				fault := oddMounts()[name]
				fault.Match = ofMount
				f.Inject(fault)
				if there := putAll(t, r, "", blobs[before:]); there != 0 {
					t.Errorf("%d are there", there)
				}
				tries := 1
				if name == "takes over what is not there" && before == 0 {
					tries = 2 // it was right about one that is there
				}
				if n := mounts(f); n != tries {
					t.Errorf("%d mounts were tried", n)
				}
				isStored(t, r, blobs)
				if there := putAll(t, r, "", blobs); there != len(blobs) {
					t.Errorf("%d of %d are there", there, len(blobs))
				}
			})
		}
	}
}

// From another repository as well. What may pass by is tried again, and
// ends the upload where it does not.
func TestPutMissingFromOddMounts(t *testing.T) {
	debian := registrytest.Debian(t, registrytest.DebianOptions{}).URL
	for name, fault := range oddMounts() {
		t.Run(name, func(t *testing.T) {
			f := registrytest.Before(t, debian)
			r := client(t, f.URL, Options{})
			fault.Match = ofMount
			f.Inject(fault)
			b := blobsOf(1)[0]
			there, err := r.PutMissing(t.Context(), "vm", "base", digests.Of(b), b)
			switch name {
			case "takes over what is not there": // as it says
				if err != nil || !there || mounts(f) != 1 {
					t.Error(there, err)
				}
			case "takes over something else":
				wantError(t, err, ErrContent, false)
			case "asks for patience", "fails", "breaks off":
				wantError(t, err, ErrUnreachable, true)
				if !strings.Contains(err.Error(), "from base: mount blob ") {
					t.Error(err)
				}
			default:
				if err != nil || there || mounts(f) != 1 {
					t.Error(there, err, mounts(f))
				}
				more := blobsOf(3)
				putAll(t, r, "base", more)
				want := int64(len(b) + len(more[0]) + len(more[1]) + len(more[2]))
				if name == "no session" {
					want += int64(len(b)) // it was worth a try
				}
				if sent := f.Counts().Received; sent != want {
					t.Errorf("%d bytes were sent, want %d", sent, want)
				}
				isStored(t, r, append(more, b))
			}
		})
	}
}

// A blob whose upload's answer was lost is not taken for one that was
// there, and not sent again.
func TestPutMissingLostAnswer(t *testing.T) {
	debian := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	var lose atomic.Bool
	var questions atomic.Int64 // that are lost too
	f := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case q.Method == http.MethodPut && lose.CompareAndSwap(true, false):
			questions.Store(maxTries)
			debian.ServeHTTP(httptest.NewRecorder(), q)
			panic(http.ErrAbortHandler)
		case q.Method == http.MethodHead && questions.Add(-1) >= 0:
			panic(http.ErrAbortHandler)
		}
		debian.ServeHTTP(w, q)
	}))
	r := client(t, f.URL, Options{})
	blobs := blobsOf(missesInARow + 1)
	putAll(t, r, "", blobs[:missesInARow])
	f.Reset()
	lose.Store(true)
	if there := putAll(t, r, "", blobs[missesInARow:]); there != 0 {
		t.Error("a blob that was sent is taken for one that was there")
	}
	if got := requestsOf(f); lose.Load() || got != (requests{head: maxTries + 1, post: 1, put: 1}) {
		t.Errorf("%+v", got)
	}
	isStored(t, r, blobs)
}

// An upload into a mount's session that fails while the registry is away is
// tried as often as another.
func TestPutMissingRegistryAway(t *testing.T) {
	f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	r := client(t, f.URL, Options{})
	blobs := blobsOf(missesInARow + 1)
	putAll(t, r, "", blobs[:missesInARow])
	away := false
	f.Inject(&registrytest.Fault{Status: http.StatusServiceUnavailable, Times: 1 + 2*maxTries, Match: func(q *http.Request) bool {
		away = away || q.Method == http.MethodPut
		return away
	}})
	putAll(t, r, "", blobs[missesInARow:])
	isStored(t, r, blobs)
}

// Whatever answer a mount gets while the caller cancels, nothing was sent.
func TestPutMissingCancelledInTheAnswer(t *testing.T) {
	for _, status := range []int{http.StatusCreated, http.StatusAccepted, http.StatusBadRequest, http.StatusServiceUnavailable} {
		debian := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
		ctx, cancel := context.WithCancel(t.Context())
		var odd atomic.Bool
		f := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if !odd.Load() || !ofMount(q) {
				debian.ServeHTTP(w, q)
				return
			}
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(status)
			_, _ = w.Write([]byte("{"))
			_ = http.NewResponseController(w).Flush()
			cancel()
			<-q.Context().Done()
		}))
		r := client(t, f.URL, Options{})
		blobs := blobsOf(missesInARow + 1)
		putAll(t, r, "", blobs[:missesInARow])
		odd.Store(true)
		b := blobs[missesInARow]
		there, err := r.PutMissing(ctx, "vm", "", digests.Of(b), b)
		if there || !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v, %v", status, there, err)
		}
	}
}

// What a caller cancels says nothing of the registry.
func TestPutMissingCancelled(t *testing.T) {
	f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	r := client(t, f.URL, Options{})
	blobs := blobsOf(2 * missesInARow)
	ctx, cancel := context.WithCancel(t.Context())
	fault := &registrytest.Fault{Delay: time.Hour, Match: func(q *http.Request) bool {
		if ofMount(q) {
			cancel()
		}
		return ofMount(q)
	}}
	f.Inject(fault)
	for _, b := range blobs[:missesInARow] {
		if there, err := r.PutMissing(ctx, "vm", "", digests.Of(b), b); err != nil || there {
			t.Fatal(there, err)
		}
	}
	f.Clear()
	putAll(t, r, "", blobs[missesInARow:])
	if got := requestsOf(f); got.head != missesInARow+1 {
		t.Errorf("%+v", got)
	}
}

// A blob of another repository is taken over; for one that is not there
// the session which the registry opened instead is used.
func TestPutMissingFrom(t *testing.T) {
	f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	r := client(t, f.URL, Options{})
	blobs := blobsOf(6)
	for _, b := range blobs[:3] {
		if err := r.PutBlob(t.Context(), "base", digests.Of(b), bytes.NewReader(b), int64(len(b))); err != nil {
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
	isStored(t, r, blobs)
	if _, err := r.PutMissing(t.Context(), "vm", "../base", digests.Of(blobs[0]), blobs[0]); err == nil {
		t.Error("a name that is none")
	}
}
