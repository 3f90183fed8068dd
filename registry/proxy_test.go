package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// askedByChild makes this test binary ask for one blob and nothing else:
// the environment's proxies are read once in a process.
const askedByChild = "EPOCHFS_TEST_PROXY_CHILD"

func TestProxy(t *testing.T) {
	if os.Getenv(askedByChild) != "" {
		proxyChild()
		return
	}
	front := answers(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "registry.example.com" {
			t.Error("the proxy was asked for", r.Host)
		}
		io.WriteString(w, "through the proxy")
	})
	run := func(proxy string) string {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$")
		cmd.Env = append(os.Environ(), askedByChild+"=1", "HTTP_PROXY="+proxy, "NO_PROXY=", "REQUEST_METHOD=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := run(front.URL); !strings.Contains(out, "got: through the proxy") {
		t.Error(out)
	}
	if n := len(front.Requests()); n != 1 {
		t.Error("requests:", n)
	}
	// One that is not there, with a password that is nobody's business.
	if out := run("http://user:hunter2@127.0.0.1:1"); strings.Contains(out, "hunter2") || !strings.Contains(out, "127.0.0.1:1") {
		t.Error(out)
	}
}

func proxyChild() {
	r, err := newRegistry(Reference{Scheme: "http", Host: "registry.example.com"}, Options{PlainHTTP: true, Keychain: &keys{}}, quickLimits(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	rc, err := r.GetBlob(context.Background(), "vm", someDigest)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	fmt.Printf("got: %s %v\n", b, err)
}

// A proxy that wants credentials, or others, is not the registry's refusal.
func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusProxyAuthRequired, http.StatusForbidden} {
		proxy := answers(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Proxy-Authenticate", `Basic realm="proxy"`)
			w.WriteHeader(status)
		})
		for _, base := range []string{"http://registry.example.com", "https://registry.example.com"} {
			for _, user := range []*url.Userinfo{nil, url.UserPassword("joe", "hunter2")} {
				if status == http.StatusForbidden && base[:5] == "http:" {
					continue // nothing tells it from the registry's
				}
				r := client(t, base, Options{PlainHTTP: true})
				r.inner.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy.Host, User: user})
				_, getErr := r.GetBlob(t.Context(), "vm", someDigest)
				_, headErr := r.BlobExists(t.Context(), "vm", someDigest)
				for _, err := range []error{getErr, headErr} {
					e := wantError(t, err, ErrUnreachable, true, "hunter2")
					if !strings.Contains(e.Hint, "_PROXY") || user == nil && status == 407 && !strings.Contains(e.Hint, proxy.Host) {
						t.Errorf("%s: hint %q", base, e.Hint)
					}
				}
			}
		}
	}
	// One that nobody knows of.
	hidden := answers(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) })
	_, err := client(t, hidden.URL, Options{}).GetBlob(t.Context(), "vm", someDigest)
	if e := wantError(t, err, ErrUnreachable, true); e.Hint == "" {
		t.Error("no hint")
	}
}

// Requests that are under way at the same time have connections of their
// own, and none of them is closed while there is work.
func TestSeveralConnections(t *testing.T) {
	const parallel = 6
	f := registrytest.InMemory(t)
	d := &dialLog{}
	r := clientWith(t, f.URL, Options{Concurrency: parallel}, quickLimits(), d.dial)
	ctx := context.Background()
	data := random(1 << 20)
	digest, _, err := r.UploadBlob(ctx, "vm", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var wg, open sync.WaitGroup
		open.Add(parallel)
		for i := range int64(parallel) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				body, _, err := r.Source("vm").OpenBlob(ctx, digest, 1<<20, i*1000, 500_000)
				open.Done()
				open.Wait()
				reads(t, "range", body, err, data[i*1000:i*1000+500_000])
			}()
		}
		wg.Wait()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.at); n < parallel || n > parallel+2 {
		t.Errorf("%d connections for %d requests at a time, thrice", n, parallel)
	}
}
