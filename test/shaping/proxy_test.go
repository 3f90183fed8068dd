package shaping

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// serve starts a proxy before a server that has a blob, with ranges at
// /blob and without a length at /stream; /echo tells what it was sent.
func serve(t *testing.T, opts Options) (*Proxy, []byte) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	blob := make([]byte, 3<<20+17)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rng.Read(blob)

	mux := http.NewServeMux()
	mux.HandleFunc("/blob", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for b := blob; len(b) > 0; b = b[min(len(b), 100_000):] {
			_, _ = w.Write(b[:min(len(b), 100_000)])
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Host, r.Header.Get("User-Agent"), len(body))
	})
	server := httptest.NewServer(mux)
	p, err := Start(strings.TrimPrefix(server.URL, "http://"), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		_ = p.Close() // an error if the test has closed it
		server.Close()
		goleak.VerifyNone(t)
	})
	return p, blob
}

func do(t *testing.T, p *Proxy, method, path string, header http.Header, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+p.Addr()+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, got
}

func TestBodiesPassUnchangedAndAreCounted(t *testing.T) {
	for name, opts := range map[string]Options{
		"plain":      {},
		"per conn":   {PerConn: 200 << 20},
		"total":      {Total: 200 << 20, Delay: time.Millisecond},
		"small rate": {PerConn: 40 << 20, Total: 60 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			p, blob := serve(t, opts)
			_, got := do(t, p, "GET", "/blob", nil, nil)
			if !bytes.Equal(got, blob) {
				t.Fatal("the blob came changed")
			}
			resp, got := do(t, p, "GET", "/blob", http.Header{"Range": {"bytes=1000-70000"}}, nil)
			if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, blob[1000:70001]) {
				t.Fatalf("status %d, %d bytes", resp.StatusCode, len(got))
			}
			_, got = do(t, p, "GET", "/stream", nil, nil)
			if !bytes.Equal(got, blob) {
				t.Fatal("the stream came changed")
			}
			resp, _ = do(t, p, "HEAD", "/blob", nil, nil)
			if resp.ContentLength != int64(len(blob)) {
				t.Fatalf("HEAD says %d bytes", resp.ContentLength)
			}
			want := Counts{Requests: 4, Body: 2*int64(len(blob)) + 69001, Connections: 1}
			if got := p.Counts(); got != want {
				t.Fatalf("counted %+v, want %+v", got, want)
			}
		})
	}
}

func TestRequestsPassUnchanged(t *testing.T) {
	p, _ := serve(t, Options{})
	_, got := do(t, p, "PUT", "/echo", http.Header{"User-Agent": {"tester"}}, bytes.NewReader(make([]byte, 1<<20)))
	if want := p.Addr() + " tester 1048576"; string(got) != want {
		t.Fatalf("the server saw %q, want %q", got, want)
	}
	_, got = do(t, p, "PATCH", "/echo", http.Header{"User-Agent": {""}}, io.MultiReader(strings.NewReader("chunked")))
	if want := p.Addr() + "  7"; string(got) != want {
		t.Fatalf("the server saw %q, want %q", got, want)
	}
}

func TestIgnoreRanges(t *testing.T) {
	p, blob := serve(t, Options{IgnoreRanges: true})
	resp, got := do(t, p, "GET", "/blob", http.Header{"Range": {"bytes=5-9"}}, nil)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(got, blob) {
		t.Fatalf("status %d, %d bytes", resp.StatusCode, len(got))
	}
}

func TestCloseBreaksWhatIsUnderWay(t *testing.T) {
	p, blob := serve(t, Options{PerConn: 1 << 20})
	resp, err := http.Get("http://" + p.Addr() + "/blob")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil || n >= int64(len(blob)) {
		t.Fatalf("read %d bytes, error %v", n, err)
	}
}

func TestNegativeOptions(t *testing.T) {
	for _, opts := range []Options{{Delay: -1}, {PerConn: -1}, {Total: -1}} {
		if p, err := Start("127.0.0.1:1", opts); err == nil {
			p.Close()
			t.Errorf("%+v was taken", opts)
		}
	}
}

func TestPace(t *testing.T) {
	p := newPace(1000)
	now := time.Unix(1000, 0)
	if d := p.take(now, 105); d != 100*time.Millisecond {
		t.Fatalf("first wait %v", d) // 105 ms, less the credit
	}
	if d := p.take(now, 100); d != 200*time.Millisecond {
		t.Fatalf("second wait %v", d)
	}
	if d := p.take(now.Add(time.Second), 10); d != 5*time.Millisecond {
		t.Fatalf("wait after a pause %v", d)
	}
	if d := (*pace)(nil).take(now, 1<<40); d != 0 {
		t.Fatalf("no limit waits %v", d)
	}
}
