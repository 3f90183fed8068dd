package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
	"golang.org/x/sync/errgroup"
)

// stuck is a Range that stays at the first chunk.
func stuck(before, n int64) string {
	if before > 0 {
		return fmt.Sprintf("0-%d", before-1)
	}
	return fmt.Sprintf("0-%d", n-1)
}

// particulars are registries, each with the way that large blobs go there
// once it is known, and those that are in memory.
var particulars = []struct {
	name  string
	reg   func() *registrytest.Particular
	large way
	once  way // of what can be read only once; numWays: none
	small way
	more  int64 // bytes that finding out costs besides a chunk
}{
	{"plain", func() *registrytest.Particular { return &registrytest.Particular{} }, byChunks, byChunks, byWhole, 0},
	{"416 over a small chunk", func() *registrytest.Particular {
		return &registrytest.Particular{MaxPatch: int64(smallChunk)}
	}, byWhole, bySmall, byWhole, 0},
	{"416 over a small chunk, early", func() *registrytest.Particular {
		return &registrytest.Particular{MaxPatch: int64(smallChunk), Early: true}
	}, byWhole, bySmall, byWhole, 0},
	{"416 to a chunk", func() *registrytest.Particular {
		return &registrytest.Particular{NoRanged: http.StatusRequestedRangeNotSatisfiable}
	}, byStream, byStream, byWhole, 0},
	{"201 and a stuck Range", func() *registrytest.Particular {
		return &registrytest.Particular{Taken: http.StatusCreated, Range: stuck, NoStatus: true}
	}, byStream, byStream, byWhole, 0},
	{"202 and a stuck Range", func() *registrytest.Particular { return &registrytest.Particular{Range: stuck} }, byStream, byStream, byWhole, 0},
	{"Range of the chunk", func() *registrytest.Particular {
		return &registrytest.Particular{Range: func(before, n int64) string { return fmt.Sprintf("%d-%d", before, before+n-1) }}
	}, byStream, byStream, byWhole, 0},
	{"no Range", func() *registrytest.Particular {
		return &registrytest.Particular{Range: func(int64, int64) string { return "" }}
	}, byStream, byStream, byWhole, 0},
	{"200, and a unit", func() *registrytest.Particular {
		return &registrytest.Particular{Taken: http.StatusOK, Range: func(before, n int64) string { return fmt.Sprintf("bytes=0-%d", before+n-1) }}
	}, byChunks, byChunks, byWhole, 0},
	{"204, no Location", func() *registrytest.Particular {
		return &registrytest.Particular{Taken: http.StatusNoContent, Location: func(string) string { return "" }}
	}, byChunks, byChunks, byWhole, 0},
	{"PUT only, 405", func() *registrytest.Particular {
		return &registrytest.Particular{NoPatch: http.StatusMethodNotAllowed}
	}, byWhole, numWays, byWhole, 64 << 10},
	{"PUT only, 404, early", func() *registrytest.Particular {
		return &registrytest.Particular{NoPatch: http.StatusNotFound, Early: true}
	}, byWhole, numWays, byWhole, 64 << 10},
	{"PUT only, 501", func() *registrytest.Particular {
		return &registrytest.Particular{NoPatch: http.StatusNotImplemented}
	}, byWhole, numWays, byWhole, 64 << 10},
	{"PUT only, 415", func() *registrytest.Particular {
		return &registrytest.Particular{NoPatch: http.StatusUnsupportedMediaType}
	}, byWhole, numWays, byWhole, 64 << 10},
	{"PUT only, breaks off", func() *registrytest.Particular {
		return &registrytest.Particular{NoPatch: http.StatusBadRequest, Reset: true}
	}, byWhole, numWays, byWhole, 256 << 10},
	{"one PATCH", func() *registrytest.Particular {
		return &registrytest.Particular{NoSecond: http.StatusBadRequest, NoWhole: http.StatusNotFound}
	}, byStream, byStream, byStream, 0},
	{"no Content-Range", func() *registrytest.Particular {
		return &registrytest.Particular{NoRanged: http.StatusBadRequest, NoWhole: http.StatusNotFound}
	}, byStream, byStream, byStream, 0},
	{"Content-Range only, no Range", func() *registrytest.Particular {
		return &registrytest.Particular{NoUnranged: http.StatusBadRequest, NoWhole: http.StatusMethodNotAllowed, Range: func(int64, int64) string { return "" }}
	}, bySmall, bySmall, bySmall, 2},
	{"413 over a small chunk", func() *registrytest.Particular {
		return &registrytest.Particular{MaxBody: int64(smallChunk)}
	}, bySmall, bySmall, bySmall, 0},
	{"413 over three small chunks", func() *registrytest.Particular {
		return &registrytest.Particular{MaxBody: 3 * int64(smallChunk), NoStatus: true}
	}, byChunks, byChunks, byWhole, 0},
	{"large chunks", func() *registrytest.Particular {
		return &registrytest.Particular{MinChunk: int64(uploadChunk) - 1}
	}, byChunks, byChunks, byWhole, 0},
	{"chunks that are too large", func() *registrytest.Particular {
		return &registrytest.Particular{MinChunk: int64(uploadChunk) + 1}
	}, byStream, byStream, byWhole, 0},
}

// requestsBy is how many requests a blob of n bytes takes.
func requestsBy(k way, n int, halves bool) requests {
	chunk := uploadChunk
	if halves {
		chunk /= 2
	}
	switch k {
	case byChunks:
		return requests{post: 1, put: 1, other: (n + chunk - 1) / chunk}
	case byStream:
		return requests{post: 1, put: 1, other: 1}
	case bySmall:
		return requests{post: 1, put: 1, other: (n + smallChunk - 1) / smallChunk}
	}
	return requests{post: 1, put: 1}
}

// What is read again, once, or known before goes up in the way that the
// registry takes; finding out costs one chunk, and is not done again.
func TestWays(t *testing.T) {
	large := [][]byte{random(2*uploadChunk + 5), random(uploadChunk + 7)}
	for _, c := range particulars {
		for source, put := range map[string]func(r *Registry, data []byte) error{
			"a file": func(r *Registry, data []byte) error {
				return r.PutBlob(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), int64(len(data)))
			},
			"a hashed file": func(r *Registry, data []byte) error {
				return r.PutHashed(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), int64(len(data)))
			},
			"a second export": func(r *Registry, data []byte) error {
				_, _, err := r.UploadBlob(t.Context(), "vm", bytes.NewReader(data))
				return err
			},
			"stdin": func(r *Registry, data []byte) error {
				_, _, err := r.UploadBlob(t.Context(), "vm", io.MultiReader(bytes.NewReader(data)))
				return err
			},
		} {
			t.Run(c.name+", "+source, func(t *testing.T) {
				if source == "a hashed file" || source == "a second export" {
					tier.Long(t, "sends large blobs to each of many registries")
				}
				t.Parallel()
				reg := c.reg()
				f := registrytest.NewFront(t, reg)
				r := client(t, f.URL, Options{})
				k := c.large
				if source == "stdin" {
					k = c.once
				}
				for i, data := range large {
					f.Reset()
					err := put(r, data)
					if k == numWays {
						e := wantError(t, err, err, false)
						if reg.Wasted() > int64(uploadChunk)+c.more || !strings.Contains(e.Error(), "--chunk 4MiB") {
							t.Errorf("%d bytes for nothing: %v", reg.Wasted(), err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					same(t, "stored", reg.Blob(digests.Of(data)), data)
					got, want := requestsOf(f), requestsBy(k, len(data), c.name == "413 over three small chunks")
					if k == byWhole && source == "a second export" {
						want.head = 1
					}
					if i > 0 && got != want {
						t.Errorf("%+v and not %+v", got, want)
					}
				}
				if reg.Wasted() > int64(uploadChunk)+c.more {
					t.Errorf("%d bytes for nothing", reg.Wasted())
				}
			})
		}
	}
}

// Blobs in memory need two requests where the registry takes them so; else
// they go another way, and one of them finds it out for all.
func TestWaysOfMemory(t *testing.T) {
	t.Parallel()
	for _, c := range particulars {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reg := c.reg()
			f := registrytest.NewFront(t, reg)
			r := client(t, f.URL, Options{})
			n, size := 3, 2*smallChunk+9
			blobs := make([][]byte, n)
			var g errgroup.Group
			for i := range blobs {
				blobs[i] = random(size + i)
				g.Go(func() error {
					_, err := r.PutMissing(t.Context(), "vm", "", digests.Of(blobs[i]), blobs[i])
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			for _, b := range blobs {
				same(t, "stored", reg.Blob(digests.Of(b)), b)
			}
			if reg.Wasted() > int64(uploadChunk) {
				t.Errorf("%d bytes for nothing", reg.Wasted())
			}
			f.Reset()
			last := random(size - 1)
			if err := r.PutBlob(t.Context(), "vm", digests.Of(last), bytes.NewReader(last), int64(size-1)); err != nil {
				t.Fatal(err)
			}
			if got, want := requestsOf(f), requestsBy(c.small, size-1, false); got != want {
				t.Errorf("%+v and not %+v", got, want)
			}
		})
	}
}

// Two large blobs at a time find out once.
func TestWaysAtOnce(t *testing.T) {
	t.Parallel()
	reg := &registrytest.Particular{NoPatch: http.StatusMethodNotAllowed}
	r := client(t, registrytest.NewFront(t, reg).URL, Options{})
	var g errgroup.Group
	for i := range 2 {
		data := random(2*uploadChunk + i)
		g.Go(func() error {
			return r.PutBlob(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), int64(len(data)))
		})
	}
	if err := g.Wait(); err != nil || reg.Wasted() > int64(uploadChunk) {
		t.Error(err, reg.Wasted())
	}
}

// What breaks while a way is found out, and what a registry says that is
// away for a moment, refuses nothing.
func TestWaysAndFaults(t *testing.T) {
	t.Parallel()
	data := random(2*uploadChunk + 5)
	for name, fault := range map[string]*registrytest.Fault{
		"breaks off":  {DropBody: 1 << 18},
		"503":         {Status: http.StatusServiceUnavailable},
		"500":         {Status: http.StatusInternalServerError},
		"429":         {Status: http.StatusTooManyRequests},
		"drops":       {Drop: true},
		"gateway 504": {Status: http.StatusGatewayTimeout, Body: "<title>504 Gateway Time-out</title>"},
	} {
		for nth := int64(1); nth <= 3; nth++ {
			for kind, handler := range map[string]http.Handler{"plain": &registrytest.Particular{}, "epoch": &epochlike.Server{}} {
				t.Run(fmt.Sprintf("%s, %s, PATCH %d", name, kind, nth), func(t *testing.T) {
					t.Parallel()
					f := registrytest.NewFront(t, handler)
					r := client(t, f.URL, Options{})
					var n atomic.Int64
					f.Inject(&registrytest.Fault{DropBody: fault.DropBody, Status: fault.Status, Drop: fault.Drop, Body: fault.Body, Times: 1,
						Match: func(q *http.Request) bool { return q.Method == http.MethodPatch && n.Add(1) == nth }})
					digest, _, err := r.UploadBlob(t.Context(), "vm", io.MultiReader(bytes.NewReader(data)))
					if nth == 3 && kind == "epoch" { // nobody has the bytes any more, and it cannot say which it has
						wantError(t, err, ErrUnreachable, true)
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					rc, err := r.GetBlob(t.Context(), "vm", digest)
					reads(t, "stored", rc, err, data)
					if n := r.ways.state(byChunks); n != wayDone {
						t.Errorf("state %d", n)
					}
				})
			}
		}
	}
}

// A body that is too large for whatever stands before the registry: the
// error says what makes smaller ones, in the registry's own words.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	reg := &registrytest.Particular{MaxBody: 1000}
	r := client(t, registrytest.NewFront(t, reg).URL, Options{})
	data := random(2*uploadChunk + 5)
	_, _, err := r.UploadBlob(t.Context(), "vm", bytes.NewReader(data))
	_, small := r.PutMissing(t.Context(), "vm", "", digests.Of(data[:2000]), data[:2000])
	_, more := r.PutMissing(t.Context(), "vm", "", digests.Of(data[:3000]), data[:3000])
	for _, err := range []error{err, small, more} {
		e := wantError(t, err, err, false)
		if e.Status != http.StatusRequestEntityTooLarge || e.Message != "the body exceeds the limit" || !strings.Contains(e.Error(), "--chunk 4MiB") {
			t.Errorf("%d %q: %v", e.Status, e.Message, e)
		}
	}
	if reg.Wasted() > int64(uploadChunk) {
		t.Errorf("%d bytes for nothing", reg.Wasted())
	}
}

// A session that a POST was sent on to is used without credentials, under
// the rules of any redirect.
func TestMovedPost(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		reg := &registrytest.Particular{MovedWith: status, NeedsLogin: "Basic am9lOmh1bnRlcjI="}
		here, there := registrytest.NewFront(t, reg), registrytest.NewFront(t, reg)
		reg.Elsewhere = there.URL
		r := client(t, here.URL, Options{Keychain: account("joe", "hunter2")})
		large, small := random(2*uploadChunk+5), random(1000)
		if _, _, err := r.UploadBlob(t.Context(), "vm", io.MultiReader(bytes.NewReader(large))); err != nil {
			t.Fatal(err)
		}
		if _, err := r.PutMissing(t.Context(), "vm", "", digests.Of(small), small); err != nil {
			t.Fatal(err)
		}
		same(t, "stored", reg.Blob(digests.Of(large)), large)
		same(t, "stored", reg.Blob(digests.Of(small)), small)
		for _, q := range there.Requests() {
			if h := q.Header.Get("Authorization"); h != "" {
				t.Errorf("%s elsewhere got %q", q.Method, h)
			}
		}
		if count(here, "POST", "") != 3 || count(there, "POST", "") != 2 || count(here, "PATCH", "")+count(here, "PUT", "") != 0 { // one POST was asked for an account
			t.Error(count(here, "POST", ""), count(there, "POST", ""))
		}
	}
}

// A POST is not sent on where a GET would not be.
func TestMovedPostIsRefused(t *testing.T) {
	t.Parallel()
	data := random(100)
	for name, to := range map[string]string{
		"another host":  "http://storage.example.com",
		"link-local":    "http://169.254.169.254",
		"an account":    "http://a:s1gned@127.0.0.1",
		"other schemes": "ftp://127.0.0.1",
	} {
		reg := &registrytest.Particular{MovedWith: http.StatusTemporaryRedirect, Elsewhere: to}
		d := &dialLog{}
		r := clientWith(t, registrytest.NewFront(t, reg).URL, Options{}, quickLimits(), d.dial)
		err := r.PutBlob(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), 100)
		wantError(t, err, ErrDenied, false, "s1gned")
		if out := d.outside(); len(out) > 0 {
			t.Errorf("%s: connections to %q", name, out)
		}
	}
	// One that does not keep the method is an answer like others.
	reg := &registrytest.Particular{MovedWith: http.StatusFound, Elsewhere: "http://127.0.0.1"}
	r := client(t, registrytest.NewFront(t, reg).URL, Options{})
	if err := r.PutBlob(t.Context(), "vm", digests.Of(data), bytes.NewReader(data), 100); err == nil {
		t.Error("a POST became a GET")
	}
}

// The error of an upload that breaks says what the next push sends.
func TestBrokenUploadSaysWhatIsSentAgain(t *testing.T) {
	t.Parallel()
	reg := &registrytest.Particular{}
	f := registrytest.NewFront(t, reg)
	f.Inject(&registrytest.Fault{Match: registrytest.Method("PUT", "uploads"), Status: 502, Body: `{"errors":[{"code":"UNAVAILABLE","message":"no disk today"}]}`})
	r := client(t, f.URL, Options{})
	data := random(2*uploadChunk + 5)
	_, _, err := r.UploadBlob(t.Context(), "vm", io.MultiReader(bytes.NewReader(data)))
	e := wantError(t, err, ErrUnreachable, true)
	if e.Message != "no disk today" || !strings.Contains(e.Error(), "UNAVAILABLE: no disk today") || !strings.Contains(e.Hint, "from its start") {
		t.Error(e)
	}
}

// A caller that cancels while another finds out about a way waits no more.
func TestWaysCancelled(t *testing.T) {
	t.Parallel()
	var w ways
	leave, err := w.enter(t.Context(), byChunks)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.enter(gone, byChunks); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	leave()
	if leave, err = w.enter(t.Context(), byChunks); err != nil { // the next one finds out
		t.Fatal(err)
	}
	leave()
}
