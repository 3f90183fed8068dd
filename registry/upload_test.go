package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

var noTime time.Time

// count is how many requests have a method and a text in their path.
func count(f *registrytest.Front, method, path string) int {
	n := 0
	for _, r := range f.Requests() {
		if r.Method == method && strings.Contains(r.Path, path) {
			n++
		}
	}
	return n
}

func TestUploadRequests(t *testing.T) {
	srv := &epochlike.Server{Token: "t0ken"}
	f := registrytest.NewFront(t, srv)
	r := client(t, f.URL, Options{EpochServer: f.URL, EpochToken: "t0ken"})
	ctx := context.Background()
	small := random(5000)
	if err := r.PutBlob(ctx, "vm", digests.Of(small), bytes.NewReader(small), 5000); err != nil {
		t.Fatal(err)
	}
	if n := len(f.Requests()); n != 2 {
		t.Errorf("%d requests for a small blob", n)
	}
	// It is there: looked for, not sent again.
	f.Reset()
	if _, _, err := r.UploadBlob(ctx, "vm", bytes.NewReader(small)); err != nil {
		t.Fatal(err)
	}
	if n := len(f.Requests()); n != 1 || f.Counts().Received != 0 {
		t.Errorf("%d requests, %d bytes", n, f.Counts().Received)
	}
	f.Reset()
	before := r.Stats().Sent
	large := random(2*uploadChunk + 5)
	if _, _, err := r.UploadBlob(ctx, "vm", io.MultiReader(bytes.NewReader(large))); err != nil {
		t.Fatal(err)
	}
	if post, patch, put := count(f, "POST", ""), count(f, "PATCH", ""), count(f, "PUT", ""); post != 1 || patch != 4 || put != 1 { // the first chunk in halves
		t.Error(post, patch, put)
	}
	for _, q := range f.Requests() {
		if q.Received() > int64(uploadChunk) {
			t.Errorf("a %s of %d bytes", q.Method, q.Received())
		}
	}
	if n := r.Stats().Sent - before; n != int64(len(large)) {
		t.Error("sent:", n)
	}
	same(t, "stored", srv.Blob(digests.Of(large)), large)
}

// nthPatch matches the nth PATCH, after which it is known that a registry
// takes chunks.
func nthPatch(nth int64) func(*http.Request) bool {
	var n atomic.Int64
	return func(r *http.Request) bool { return r.Method == http.MethodPatch && n.Add(1) == nth }
}

// Sessions that break off are begun anew where that is possible, against
// registries that append a repeated body and such that end the session.
func TestBrokenUploads(t *testing.T) {
	ctx := context.Background()
	for name, base := range map[string]string{
		"epoch":  registrytest.NewFront(t, &epochlike.Server{}).URL,
		"debian": registrytest.Debian(t, registrytest.DebianOptions{}).URL,
	} {
		for fault, make := range map[string]func() *registrytest.Fault{
			"patch breaks off": func() *registrytest.Fault {
				return &registrytest.Fault{Match: nthPatch(3), Times: 1, DropBody: 4}
			},
			"session is gone": func() *registrytest.Fault {
				return &registrytest.Fault{Match: nthPatch(3), Times: 1, Status: 404}
			},
			"registry restarts": func() *registrytest.Fault {
				return &registrytest.Fault{Match: registrytest.Method("PUT", ""), Times: 1, Status: 503}
			},
			"patch is refused": func() *registrytest.Fault {
				return &registrytest.Fault{Match: nthPatch(3), Times: 1, Status: 503}
			},
			"bytes are lost": func() *registrytest.Fault {
				return &registrytest.Fault{Match: nthPatch(3), Times: 1, Status: 202,
					Header: http.Header{"Range": {"0-99"}}}
			},
		} {
			t.Run(name+": "+fault, func(t *testing.T) {
				t.Parallel()
				large := random(2*uploadChunk + len(fault))
				digest := digests.Of(large)
				f := registrytest.Before(t, base)
				r := client(t, f.URL, Options{})
				f.Inject(make())
				// A repository of its own: nothing is there yet.
				repo := "vm" + strings.ReplaceAll(fault, " ", "")
				if err := r.PutBlob(ctx, repo, digest, bytes.NewReader(large), int64(len(large))); err != nil {
					t.Fatal(err)
				}
				// A registry that can say what it has of a session goes on
				// with it.
				resumed := name == "debian"
				if n := count(f, "POST", ""); n != 2 && !resumed || n != 1 && resumed {
					t.Errorf("%d sessions", n)
				}
				rc, err := r.GetBlob(ctx, repo, digest)
				reads(t, "stored", rc, err, large)

				// What can be read once only is up to the caller.
				f.Inject(make())
				_, _, err = r.UploadBlob(ctx, repo+"2", io.MultiReader(bytes.NewReader(large[1:])))
				var e *Error
				if !resumed && (!errors.As(err, &e) || !e.Temporary()) || resumed && err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// An upload whose last answer is lost is looked for before it is done
// again.
func TestLostAnswer(t *testing.T) {
	srv := &epochlike.Server{}
	f := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		srv.ServeHTTP(w, r)
		if r.Method == http.MethodPut {
			panic(http.ErrAbortHandler)
		}
	}))
	r := client(t, f.URL, Options{})
	data := random(1000)
	if err := r.PutBlob(context.Background(), "vm", digests.Of(data), bytes.NewReader(data), 1000); err != nil {
		t.Fatal(err)
	}
	if post, put := count(f, "POST", ""), count(f, "PUT", ""); post != 1 || put != 1 {
		t.Error(post, put)
	}
}

func TestUploadLocations(t *testing.T) {
	srv := &epochlike.Server{}
	data := random(100)
	var front *registrytest.Front
	var location func(path string) string
	thief := answers(t, func(w http.ResponseWriter, r *http.Request) { t.Error("somebody came:", r.URL) })
	front = answers(t, func(w http.ResponseWriter, r *http.Request) {
		rec := w
		if r.Method == http.MethodPost {
			rec = &relocated{w, location}
		}
		srv.ServeHTTP(rec, r)
	})
	for _, c := range []struct {
		name     string
		location func(path string) string
		ok       bool
	}{
		{"relative", func(p string) string { return p }, true},
		{"absolute", func(p string) string { return front.URL + p }, true},
		{"with a query", func(p string) string { return p + "?_state=abc" }, true},
		{"another scheme", func(p string) string { return "https://" + front.Host + p }, true},
		{"another host", func(p string) string { return thief.URL + p }, false},
		{"with an account", func(p string) string { return "http://a:b@" + front.Host + p }, false},
		{"none", func(string) string { return "" }, false},
	} {
		location = c.location
		r := client(t, front.URL, Options{EpochServer: front.URL, EpochToken: "t0ken"})
		err := r.PutBlob(context.Background(), "vm", digests.Of(data), bytes.NewReader(data), 100)
		if c.ok {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		wantError(t, err, ErrContent, false, "t0ken")
	}
}

// relocated changes the Location of an answer.
type relocated struct {
	http.ResponseWriter
	location func(string) string
}

func (r *relocated) WriteHeader(status int) {
	h := r.Header()
	h.Set("Location", r.location(h.Get("Location")))
	r.ResponseWriter.WriteHeader(status)
}

func TestUploadsThatAreWrong(t *testing.T) {
	for _, sessions := range []bool{true, false} {
		srv := &epochlike.Server{NoSessions: !sessions}
		f := registrytest.NewFront(t, srv)
		r := client(t, f.URL, Options{})
		ctx := context.Background()
		for _, n := range []int{100, uploadChunk + 100} {
			data := random(n)
			size := int64(n)
			for name, err := range map[string]error{
				"wrong digest": r.PutBlob(ctx, "vm", someDigest, io.MultiReader(bytes.NewReader(data)), size),
				"too short":    r.PutBlob(ctx, "vm", digests.Of(data), io.MultiReader(bytes.NewReader(data[1:])), size),
			} {
				if !errors.Is(err, ErrContent) {
					t.Errorf("%s of %d bytes: %v", name, n, err)
				}
			}
			broken := io.MultiReader(bytes.NewReader(data[:n-10]), errReader{})
			if err := r.PutBlob(ctx, "vm", digests.Of(data), broken, size); !errors.Is(err, errSource) || errors.Is(err, ErrUnreachable) {
				t.Errorf("a source that fails after %d bytes: %v", n, err)
			}
			if srv.Blob(digests.Of(data)) != nil || srv.Blob(someDigest) != nil {
				t.Error("something of it was stored")
			}
		}
	}
}

var errSource = errors.New("the source fails")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errSource }

func TestPutManifestChecks(t *testing.T) {
	f := answers(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", someDigest)
		w.WriteHeader(http.StatusCreated)
	})
	r := client(t, f.URL, Options{})
	err := r.PutManifest(context.Background(), "vm", "1", []byte(`{}`), manifestType)
	wantError(t, err, ErrContent, false)
	f.Reset()
	err = r.PutManifest(context.Background(), "vm", someDigest, []byte(`{}`), manifestType)
	wantError(t, err, ErrContent, false)
	if n := len(f.Requests()); n != 0 {
		t.Error("requests:", n)
	}
}

// A registry without sessions gets a stream after it was read once for its
// digest, and one that can be read once only not at all.
func TestStreamsWithoutSessions(t *testing.T) {
	ctx := context.Background()
	srv := &epochlike.Server{NoSessions: true}
	f := registrytest.NewFront(t, srv)
	r := client(t, f.URL, Options{})
	data := random(16<<20 + 77)
	f.Inject(&registrytest.Fault{Match: registrytest.Method("PUT", ""), Times: 1, DropBody: 1 << 20})
	digest, size, err := r.UploadBlob(ctx, "vm", bytes.NewReader(data))
	if err != nil || digest != digests.Of(data) || size != int64(len(data)) {
		t.Error(digest, size, err)
	}
	same(t, "stored", srv.Blob(digests.Of(data)), data)
	_, _, err = r.UploadBlob(ctx, "vm", io.MultiReader(bytes.NewReader(data)))
	wantError(t, err, ErrUnreachable, false)
}

// Bytes lent to PutMissing are the caller's again when it returns, whatever
// happened to the connections.
func TestPutMissingLends(t *testing.T) {
	ctx := context.Background()
	srv := &epochlike.Server{}
	f := registrytest.NewFront(t, srv)
	r := client(t, f.URL, Options{})
	data := random(16<<20 + 3)
	keep := bytes.Clone(data)
	for range 3 {
		f.Inject(&registrytest.Fault{Match: registrytest.Method("PUT", ""), Times: 1, DropBody: 1 << 20})
	}
	if _, err := r.PutMissing(ctx, "vm", "", digests.Of(data), data); err != nil {
		t.Fatal(err)
	}
	clear(data) // the race detector looks for readers
	same(t, "stored", srv.Blob(digests.Of(keep)), keep)
	gone, cancel := context.WithCancel(ctx)
	f.Inject(&registrytest.Fault{Delay: time.Hour})
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := r.PutMissing(gone, "vm", "", someDigest, data); err == nil {
		t.Error("cancelled and yet done")
	}
	clear(data)
	if _, err := r.PutMissing(ctx, "vm", "", "sha256:x", data); !errors.Is(err, ErrContent) {
		t.Error(err)
	}
}

// A registry that goes away in the middle of an upload, for longer than its
// tries last, is waited for; one that was never there is not.
func TestRegistryComesBack(t *testing.T) {
	large := random(2*uploadChunk + 77)
	for _, patience := range []time.Duration{0, 20 * time.Second} {
		srv := &epochlike.Server{}
		f := registrytest.NewFront(t, srv)
		r := client(t, f.URL, Options{Patience: patience})
		var patches atomic.Int64
		var back atomic.Pointer[time.Time]
		f.Inject(&registrytest.Fault{Drop: true, Match: func(r *http.Request) bool {
			if r.Method == http.MethodPatch && patches.Add(1) == 2 {
				end := time.Now().Add(1500 * time.Millisecond)
				if patience == 0 {
					end = time.Now().Add(time.Hour)
				}
				back.Store(&end)
			}
			end := back.Load()
			return end != nil && time.Now().Before(*end)
		}})
		err := r.PutBlob(t.Context(), "vm", digests.Of(large), bytes.NewReader(large), int64(len(large)))
		switch {
		case patience == 0 && !errors.Is(err, ErrUnreachable):
			t.Errorf("without patience: %v", err)
		case patience > 0 && err != nil:
			t.Error(err)
		case patience > 0:
			same(t, "stored", srv.Blob(digests.Of(large)), large)
		}
	}
	f := registrytest.NewFront(t, &epochlike.Server{})
	f.Inject(&registrytest.Fault{Drop: true})
	r := client(t, f.URL, Options{Patience: time.Hour})
	if _, err := r.BlobExists(t.Context(), "vm", digests.Of(large)); !errors.Is(err, ErrUnreachable) {
		t.Errorf("never there: %v", err)
	}
}
