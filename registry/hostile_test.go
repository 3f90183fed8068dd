package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// answers starts a server that answers every request with h.
func answers(t *testing.T, h http.HandlerFunc) *registrytest.Front {
	return registrytest.NewFront(t, h)
}

func TestManifestDigests(t *testing.T) {
	body := []byte(`{"schemaVersion":2}`)
	good := digests.Of(body)
	for _, c := range []struct {
		ref, announced string
		ok             bool
	}{
		{"latest", "", true},
		{"latest", good, true},
		{good, "", true},
		{good, good, true},
		{"latest", someDigest, true},
		{good, someDigest, true},
		{someDigest, "", false},
		{someDigest, someDigest, false},
		{someDigest, good, false},
		{"latest", "sha512:" + strings.Repeat("a", 128), true},
		{good, "sha512:" + strings.Repeat("a", 128), true},
		{good, strings.TrimPrefix(good, "sha256:"), true},
		{good, strings.ToUpper(good), true},
		{good, `"` + good + `"`, true},
		{"latest", "nonsense", true},
	} {
		f := answers(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Docker-Content-Digest"] = []string{c.announced}
			w.Write(body)
		})
		r := client(t, f.URL, Options{})
		got, _, err := r.GetManifest(context.Background(), "vm", c.ref)
		if c.ok {
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s, %q announced: %v", c.ref, c.announced, err)
			}
			continue
		}
		wantError(t, err, ErrContent, false)
		if n := len(f.Requests()); n != 1 {
			t.Errorf("%d requests for wrong content", n)
		}
	}
}

func TestBodiesWithoutEnd(t *testing.T) {
	f := answers(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "" && strings.Contains(r.URL.Path, "gone") {
			w.WriteHeader(http.StatusNotFound)
		}
		for chunk := bytes.Repeat([]byte(" "), 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	r := client(t, f.URL, Options{})
	ctx := context.Background()
	_, _, err := r.GetManifest(ctx, "vm", "latest")
	wantError(t, err, ErrContent, false)
	_, err = r.Tags(ctx, "vm")
	wantError(t, err, ErrContent, false)
	_, _, err = r.GetManifest(ctx, "gone", "latest")
	wantError(t, err, ErrNotFound, false)

	// A blob's bytes end where they should.
	body, whole, err := r.Source("vm").OpenBlob(ctx, someDigest, 1<<20, 0, 1<<20)
	if got := readAll(t, body, err); len(got) != 1<<20 || !whole {
		t.Error(len(got), whole)
	}
	body, err = r.GetBlobRange(ctx, "vm", someDigest, 100, 18)
	if got := readAll(t, body, err); len(got) != 18 {
		t.Error(len(got))
	}
	if n := r.Stats().Bytes; n > 2*maxManifest+8<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

// rangeAnswer is a server's answer to a request for bytes 100-199 of a
// blob of 1000.
type rangeAnswer struct {
	name   string
	status int
	header map[string]string
	send   int
	kind   error // nil: fine
	again  bool
	got    int // bytes before the error
	whole  bool
}

func TestRangeAnswers(t *testing.T) {
	h := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, c := range []rangeAnswer{
		{"right", 206, h("Content-Range", "bytes 100-199/1000"), 100, nil, false, 100, false},
		{"unknown total", 206, h("Content-Range", "bytes 100-199/*"), 100, nil, false, 100, false},
		{"less", 206, h("Content-Range", "bytes 100-149/1000"), 50, ErrUnreachable, true, 50, false},
		{"other start", 206, h("Content-Range", "bytes 101-200/1000"), 100, ErrContent, false, 0, false},
		{"from 0", 206, h("Content-Range", "bytes 0-99/1000"), 100, ErrContent, false, 0, false},
		{"more", 206, h("Content-Range", "bytes 100-299/1000"), 200, ErrContent, false, 0, false},
		{"other total", 206, h("Content-Range", "bytes 100-199/1001"), 100, ErrContent, false, 0, false},
		{"no range", 206, h(), 100, ErrContent, false, 0, false},
		{"multipart", 206, h("Content-Type", "multipart/byteranges; boundary=x"), 100, ErrContent, false, 0, false},
		{"other length", 206, h("Content-Range", "bytes 100-199/1000", "Content-Length", "99"), 99, ErrContent, false, 0, false},
		{"cut", 206, h("Content-Range", "bytes 100-199/1000", "Content-Length", "100"), 60, ErrUnreachable, true, 60, false},
		{"less than said", 206, h("Content-Range", "bytes 100-199/1000"), 90, ErrUnreachable, true, 90, false},
		{"more than said", 206, h("Content-Range", "bytes 100-149/1000"), 100, ErrUnreachable, true, 50, false},
		{"two ranges", 206, h("Content-Type", "multipart/byteranges; boundary=x", "Content-Range", "bytes 100-199/1000"), 100, ErrContent, false, 0, false},
		{"labelled", 206, h("Content-Range", "bytes 100-199/1000", "Content-Encoding", "gzip"), 100, nil, false, 100, false},
		{"200, right", 200, h("Content-Range", "bytes 100-199/1000"), 100, nil, false, 100, false},
		{"200, right, with length", 200, h("Content-Range", "bytes 100-199/1000", "Content-Length", "100"), 100, nil, false, 100, false},
		{"200, unknown total", 200, h("Content-Range", "bytes 100-199/*"), 100, nil, false, 100, false},
		{"200, less", 200, h("Content-Range", "bytes 100-149/1000"), 50, ErrUnreachable, true, 50, false},
		{"200, from 0", 200, h("Content-Range", "bytes 0-99/1000"), 100, ErrContent, false, 0, false},
		{"200, other start", 200, h("Content-Range", "bytes 101-200/1000"), 100, ErrContent, false, 0, false},
		{"200, more", 200, h("Content-Range", "bytes 100-299/1000"), 200, ErrContent, false, 0, false},
		{"200, other total", 200, h("Content-Range", "bytes 100-199/999"), 100, ErrContent, false, 0, false},
		{"200, length of all", 200, h("Content-Range", "bytes 100-199/1000", "Content-Length", "1000"), 1000, ErrContent, false, 0, false},
		{"200, unreadable", 200, h("Content-Range", "100-199"), 100, ErrContent, false, 0, false},
		{"200, of everything", 200, h("Content-Range", "bytes 0-999/1000", "Content-Length", "1000"), 1000, ErrContent, false, 0, false},
		{"whole", 200, h("Content-Length", "1000"), 1000, nil, false, 1000, true},
		{"whole, no length", 200, h(), 1000, nil, false, 1000, true},
		{"whole, too long", 200, h("Content-Length", "1001"), 1001, ErrContent, false, 0, false},
		{"whole, too short", 200, h("Content-Length", "999"), 999, ErrContent, false, 0, false},
		{"whole, short without length", 200, h(), 999, ErrUnreachable, true, 999, true},
		{"whole, endless", 200, h(), 5000, nil, false, 1000, true},
		{"empty", 204, h(), 0, ErrContent, false, 0, false},
		{"no such range", 416, h("Content-Range", "bytes */50"), 0, ErrContent, false, 0, false},
		{"gone", 404, h(), 0, ErrNotFound, false, 0, false},
		{"gone for good", 410, h(), 0, ErrNotFound, false, 0, false},
		{"forbidden", 403, h(), 0, ErrDenied, false, 0, false},
		{"unauthorized", 401, h(), 0, ErrDenied, false, 0, false},
		{"later", 429, h("Retry-After", "17"), 0, ErrUnreachable, true, 0, false},
		{"broken", 500, h(), 0, ErrUnreachable, true, 0, false},
		{"gateway", 502, h(), 0, ErrUnreachable, true, 0, false},
		{"away", 503, h("Retry-After", "17"), 0, ErrUnreachable, true, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) { testRangeAnswer(t, c) })
	}
}

func testRangeAnswer(t *testing.T, c rangeAnswer) {
	f := answers(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Range"); got != "bytes=100-199" {
			t.Errorf("asked for %q", got)
		}
		for k, v := range c.header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(c.status)
		http.NewResponseController(w).Flush() // no length but what is set
		w.Write(random(c.send))
		http.NewResponseController(w).Flush()
		if c.header["Content-Length"] != "" && c.header["Content-Length"] != fmt.Sprint(c.send) {
			panic(http.ErrAbortHandler)
		}
	})
	r := client(t, f.URL, Options{})
	body, whole, err := r.Source("vm").OpenBlob(context.Background(), someDigest, 1000, 100, 100)
	var got []byte
	if err == nil {
		got, err = io.ReadAll(body)
		body.Close()
	}
	if len(got) != c.got || whole != c.whole && c.kind == nil {
		t.Errorf("%d bytes, whole: %v", len(got), whole)
	}
	if c.kind == nil {
		if err != nil {
			t.Error(err)
		}
		return
	}
	e := wantError(t, err, c.kind, c.again)
	if want := c.header["Retry-After"]; want != "" && e.RetryAfter() != 17*time.Second {
		t.Error("to be tried again after", e.RetryAfter())
	}
	if c.got > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v: not an unexpected EOF", err)
	}
	if n := len(f.Requests()); n != 1 {
		t.Errorf("%d requests: streams are not tried again here", n)
	}
}

func TestRangesOutOfBounds(t *testing.T) {
	r := client(t, "http://127.0.0.1:1", Options{})
	ctx := context.Background()
	for _, c := range [][3]int64{{10, -1, 5}, {10, 0, -1}, {10, 6, 5}, {10, 11, 0}, {-1, 0, 0}, {1 << 62, 1<<63 - 1, 1<<63 - 1}} {
		_, _, err := r.Source("vm").OpenBlob(ctx, someDigest, c[0], c[1], c[2])
		wantError(t, err, ErrContent, false)
	}
	for _, d := range []string{"", "sha256:", "sha512:" + strings.Repeat("a", 128), "../../x", someDigest + "?x"} {
		_, _, err := r.Source("vm").OpenBlob(ctx, d, 1, 0, 1)
		wantError(t, err, ErrContent, false)
		_, err = r.GetBlob(ctx, "vm", d)
		wantError(t, err, ErrContent, false)
		err = r.PutBlob(ctx, "vm", d, nil, 0)
		wantError(t, err, ErrContent, false)
	}
	for _, name := range []string{"", "..", "a/../b", "a b", "a?b", "A"} {
		if _, _, err := r.GetManifest(ctx, name, "latest"); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if n := r.Stats().Requests; n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestStalledBody(t *testing.T) {
	data := random(1 << 20)
	reg := registrytest.NewHandler()
	f := registrytest.NewFront(t, reg)
	lim := quickLimits()
	lim.stall = 200 * time.Millisecond
	hasty := clientWith(t, f.URL, Options{}, lim, nil)
	// What does not stall may take its time on a busy machine.
	lim.stall = time.Second
	r := clientWith(t, f.URL, Options{}, lim, nil)
	ctx := context.Background()
	digest, _, err := r.UploadBlob(ctx, "vm", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	f.Inject(&registrytest.Fault{Match: registrytest.Method("GET", "/blobs/"), Stall: 1000})
	body, err := hasty.GetBlob(ctx, "vm", digest)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(body)
	body.Close()
	wantError(t, err, ErrUnreachable, true)
	same(t, "before it stalled", got, data[:len(got)])
	if len(got) != 1000 {
		t.Error(len(got))
	}
	f.Clear()
	// A reader that takes its time is not a stall.
	body, _, err = r.Source("vm").OpenBlob(ctx, digest, int64(len(data)), 1, 1<<19)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 10)
	io.ReadFull(body, first)
	<-time.After(2 * lim.stall)
	same(t, "after a pause", append(first, readAll(t, body, nil)...), data[1:1+1<<19])

	// Cut and changed bodies: the one is an error, the other is for whoever
	// verifies.
	f.Inject(&registrytest.Fault{Times: 1, Match: registrytest.Method("GET", "/blobs/"), Cut: 5000})
	body, err = r.GetBlob(ctx, "vm", digest)
	if err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(body)
	body.Close()
	wantError(t, err, ErrUnreachable, true)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got, data[:5000]) {
		t.Error(err, len(got))
	}
}

func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts in the kernel, and says nothing
	lim := quickLimits()
	lim.answer = 50 * time.Millisecond
	r := clientWith(t, "http://"+l.Addr().String(), Options{}, lim, nil)
	_, _, err = r.Source("vm").OpenBlob(context.Background(), someDigest, 10, 0, 10)
	wantError(t, err, ErrUnreachable, true)
	if n := r.Stats().Requests; n != 1 {
		t.Error("requests:", n)
	}
	_, _, err = r.GetManifest(context.Background(), "vm", "latest")
	wantError(t, err, ErrUnreachable, true)
	if s := r.Stats(); s.Requests != 1+maxTries || s.Retries != maxTries-1 {
		t.Errorf("%+v", s)
	}
}

func TestQuickRetries(t *testing.T) {
	f := registrytest.InMemory(t)
	r := client(t, f.URL, Options{})
	ctx := context.Background()
	if err := r.PutManifest(ctx, "vm", "1", []byte(`{}`), manifestType); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []*registrytest.Fault{
		{Times: 2, Status: 503},
		{Times: 1, Status: 429, Header: http.Header{"Retry-After": {"0"}}},
		{Times: 1, Drop: true},
		{Times: 1, Cut: 1},
	} {
		f.Reset()
		times := fault.Times
		f.Inject(fault)
		if _, _, err := r.GetManifest(ctx, "vm", "1"); err != nil {
			t.Error(err)
		}
		// The transport may repeat a GET whose connection was dropped.
		if n := len(f.Requests()); n < times+1 || n > times+2 {
			t.Errorf("%d requests after %d faults", n, times)
		}
		f.Clear()
	}
	// Who asks for much patience gets none here.
	f.Reset()
	f.Inject(&registrytest.Fault{Status: 429, Header: http.Header{"Retry-After": {"120"}}})
	_, _, err := r.GetManifest(ctx, "vm", "1")
	if e := wantError(t, err, ErrUnreachable, true); e.RetryAfter() != 2*time.Minute {
		t.Error(e.RetryAfter())
	}
	if n := len(f.Requests()); n != 1 {
		t.Error("requests:", n)
	}
}

func TestCancelled(t *testing.T) {
	f := registrytest.InMemory(t)
	f.Inject(&registrytest.Fault{Delay: time.Hour})
	r := client(t, f.URL, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		eventually(t, func() bool { return len(f.Requests()) > 0 })
		cancel()
	}()
	_, _, err := r.GetManifest(ctx, "vm", "1")
	wantError(t, err, context.Canceled, true)
	if errors.Is(err, ErrUnreachable) {
		t.Error("a cancelled request is no dead network:", err)
	}
	if n := len(f.Requests()); n != 1 {
		t.Error("requests:", n)
	}
	f.Clear()

	// Closing a body ends a read that is under way.
	f.Inject(&registrytest.Fault{Match: registrytest.Method("GET", "/blobs/"), Stall: 10})
	digest, _, err := client(t, f.URL, Options{}).UploadBlob(context.Background(), "vm", bytes.NewReader(random(1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	body, err := r.GetBlob(context.Background(), "vm", digest)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(body, make([]byte, 10))
	done := make(chan error)
	go func() {
		_, err := body.Read(make([]byte, 10))
		done <- err
	}()
	body.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}

func TestTagsAreCleaned(t *testing.T) {
	f := answers(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"tags":["a","\u001b[31m","b/c","-x","b"`+strings.Repeat(`,"t"`, 500)+`]}`)
	})
	tags, err := client(t, f.URL, Options{}).Tags(context.Background(), "vm")
	if err != nil || len(tags) != maxTags || tags[0] != "a" || tags[1] != "b" || tags[2] != "t" {
		t.Error(len(tags), err)
	}
}
