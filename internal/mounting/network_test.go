package mounting

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// largeFile is the size of a file that takes several requests, in bytes: 24
// MiB, of which make test has half.
func largeFile() int64 {
	if tier.Shorter() == 1 {
		return 24 << 20
	}
	return 12 << 20
}

// big is a snapshot whose memory takes several requests. It is made once:
// nobody writes to it.
var big = sync.OnceValues(func() (*artifacttest.Artifact, []byte) {
	data := make([]byte, largeFile())
	artifacttest.Fill(data, 9)
	return artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{Piece: 256 << 10}), data
})

// readAt reads all of the first file by random accesses of several
// readers, and compares.
func readAt(t *testing.T, o *Opened, want []byte) {
	t.Helper()
	f, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	const step = 1 << 20
	var readers sync.WaitGroup
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(want) / step) {
		readers.Go(func() {
			buf := make([]byte, step)
			off := int64(i) * step
			if _, err := f.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+step]) {
				t.Errorf("read at %d: %v", off, err)
			}
		})
	}
	readers.Wait()
}

// Whatever breaks on the way, the read goes on where it broke and brings
// the right bytes, without a whole second download.
func TestFaultsOfTheNetwork(t *testing.T) {
	t.Parallel()
	blob := registrytest.Path("/blobs/")
	for name, fault := range map[string]*registrytest.Fault{
		"bodies are cut":       {Match: blob, Cut: 700_000, Times: 12},
		"connections break":    {Match: blob, Drop: true, Times: 8},
		"a body stalls":        {Match: blob, Stall: 300_000, Times: 1},
		"500":                  {Match: blob, Status: 500, Times: 8},
		"503 with Retry-After": {Match: blob, Status: 503, Header: http.Header{"Retry-After": {"1"}}, Times: 1},
		"429":                  {Match: blob, Status: 429, Times: 8},
		"a byte is changed":    {Match: blob, Flip: 1000, Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, data := big()
			p := newPlace(t, registrytest.NewHandler(), a)
			p.cfg.ReadTimeout = 0
			if fault.Stall > 0 {
				p.cfg.Tardy = time.Second
			}
			o := p.mustOpen(p.ref)
			p.front.Reset()
			p.front.Inject(fault)
			readAt(t, o, data)
			if c := p.front.Counts(); c.BlobBytes > int64(len(data))*3/2 {
				t.Errorf("%d bytes were fetched for %d", c.BlobBytes, len(data))
			}
		})
	}
}

// signer is a registry that redirects blobs to storage with URLs that are
// good for one request, and whose tokens can be called in.
type signer struct {
	registry http.Handler
	storage  string
	epoch    atomic.Int64 // of tokens; older ones are refused
	next     atomic.Int64
	mu       sync.Mutex
	good     map[string]bool
}

func (s *signer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		fmt.Fprintf(w, `{"token":"t%d","expires_in":3600}`, s.epoch.Load())
	case r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", s.epoch.Load()):
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
		id := fmt.Sprint(s.next.Add(1))
		s.mu.Lock()
		s.good[id] = true
		s.mu.Unlock()
		w.Header().Set("Location", s.storage+r.URL.Path+"?sig="+id)
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		s.registry.ServeHTTP(w, r)
	}
}

// store serves what was signed, once, and breaks each body off after cut.
func (s *signer) store(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("sig")
	s.mu.Lock()
	good := s.good[id]
	delete(s.good, id)
	s.mu.Unlock()
	if !good {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	r.URL.RawQuery = ""
	s.registry.ServeHTTP(w, r)
}

func TestExpiringSignaturesAndTokens(t *testing.T) {
	t.Parallel()
	s := &signer{registry: registrytest.NewHandler(), good: map[string]bool{}}
	storage := registrytest.NewFront(t, http.HandlerFunc(s.store))
	s.storage = storage.URL
	a, data := big()
	p := newPlace(t, s, a)
	o := p.mustOpen(p.ref)
	var cuts atomic.Int64
	s.epoch.Add(1) // the token is good no more
	storage.Inject(&registrytest.Fault{Cut: 900_000, Times: 10, Match: func(*http.Request) bool {
		if cuts.Add(1)%4 == 1 {
			s.epoch.Add(1)
		}
		return true
	}})
	// Some signatures are refused although they are new: a clock is wrong.
	storage.Inject(&registrytest.Fault{Status: http.StatusForbidden, Times: 5})
	readAt(t, o, data)
	for _, r := range storage.Requests() {
		if h := r.Header.Get("Authorization"); h != "" {
			t.Fatalf("storage got %q", h)
		}
	}
}

// A real registry goes away for a while, then comes back.
func TestRegistryRestarts(t *testing.T) {
	t.Parallel()
	reg := registrytest.Debian(t, registrytest.DebianOptions{})
	a, data := big()
	cfg := Config{CacheDir: filepath.Join(t.TempDir(), "cache")}
	push(t, &cfg, reg.Host+"/team/vm:v1", a)
	o, err := Open(t.Context(), reg.Host+"/team/vm:v1", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	reg.Stop()
	f, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	got := make([]byte, len(data))
	go func() {
		_, err := f.ReadAt(t.Context(), got, 0)
		done <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if w := f.Waiting(); len(w) > 0 && errors.Is(w[0].Err, registry.ErrUnreachable) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody waits for the registry: %+v", f.Waiting())
		}
	}
	// Meanwhile the tag is what it was.
	again, err := Open(t.Context(), reg.Host+"/team/vm:v1", cfg)
	if err != nil || len(again.Notes) != 1 {
		t.Fatalf("open without the registry: %v", err)
	}
	again.Close()
	reg.Start(t)
	if err := <-done; err != nil || !bytes.Equal(got, data) {
		t.Errorf("read over a restart: %v", err)
	}
}

func push(t *testing.T, cfg *Config, ref string, a *artifacttest.Artifact) {
	t.Helper()
	r, err := cfg.Reference(ref)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := cfg.Registry(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	if err := a.Push(t.Context(), reg, r.Repository, r.Tag); err != nil {
		t.Fatal(err)
	}
}

// A tag falls back where nobody answered, with its age, and nowhere else.
func TestTagFallsBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault *registrytest.Fault
		falls bool
		is    error
	}{
		"500":       {&registrytest.Fault{Status: 500}, true, nil},
		"503":       {&registrytest.Fault{Status: 503, Header: http.Header{"Retry-After": {"60"}}}, true, nil},
		"429":       {&registrytest.Fault{Status: 429, Header: http.Header{"Retry-After": {"60"}}}, true, nil},
		"dropped":   {&registrytest.Fault{Drop: true}, true, nil},
		"401":       {&registrytest.Fault{Status: 401}, false, registry.ErrDenied},
		"403":       {&registrytest.Fault{Status: 403}, false, registry.ErrDenied},
		"404":       {&registrytest.Fault{Status: 404}, false, registry.ErrNotFound},
		"410":       {&registrytest.Fault{Status: 410}, false, registry.ErrNotFound},
		"an answer": {&registrytest.Fault{Status: 200, Body: "{"}, false, layout.ErrContent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, registrytest.NewHandler(), simple())
			p.mustOpen(p.ref)
			p.front.Inject(c.fault)
			o, err := p.open(p.ref)
			switch {
			case !c.falls && !errors.Is(err, c.is):
				t.Errorf("open = %v", err)
			case c.falls && (err != nil || len(o.Notes) != 1 || !strings.Contains(o.Notes[0], " seconds ago")):
				t.Errorf("open = %v", err)
			}
		})
	}
}

// The same with a name that is in no DNS, and with a certificate that is
// not the registry's.
func TestTagFallsBackByName(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	impostor := registrytest.NewTLSFront(t, registrytest.NewHandler(), registrytest.NewCA(t).Config(t))
	impostorHost := strings.Replace(impostor.Host, "127.0.0.1", "127.0.0.2", 1)
	for _, name := range []string{"registry.invalid/team/vm:v1", impostorHost + "/team/vm:v1"} {
		if err := o.Cache.PutRef(name, o.Artifact.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := p.open("registry.invalid/team/vm:v1"); err != nil || len(o.Notes) != 1 {
		t.Errorf("a name that is not there: %v", err)
	}
	p.cfg.EpochServer = "https://" + impostor.Host
	if err := o.Cache.PutRef(impostor.Host+"/team/vm:v1", o.Artifact.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := p.open(impostor.Host + "/team/vm:v1"); !errors.Is(err, registry.ErrUnreachable) {
		t.Errorf("an impostor: %v", err)
	}
	if len(impostor.Requests()) != 0 {
		t.Error("an impostor was spoken to")
	}
}

// A blob that is gone or forbidden fails at once, in plain words; what is
// present and other files are served; and the next read asks again.
func TestGoneAndForbidden(t *testing.T) {
	t.Parallel()
	for status, kind := range map[int]error{404: registry.ErrNotFound, 403: registry.ErrDenied} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			p := newPlace(t, registrytest.NewHandler(), simple())
			p.cfg.ReadTimeout = 0
			o := p.mustOpen(p.ref)
			first, second := o.Artifact.Files[0], o.Artifact.Files[1]
			read(t, o, first)
			p.front.Inject(&registrytest.Fault{Match: registrytest.Path(second.Parts[0].Digest), Status: status})
			f, err := o.File(second)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			_, err = f.ReadAt(t.Context(), buf, 0)
			if !errors.Is(err, kind) || !strings.Contains(err.Error(), "what is in the cache stays readable") {
				t.Errorf("read = %v", err)
			}
			if got := read(t, o, first); !bytes.Equal(got, files[0].Data) {
				t.Error("another file is not served")
			}
			p.front.Clear()
			if _, err := f.ReadAt(t.Context(), buf, 0); err != nil || !bytes.Equal(buf, files[1].Data[:100]) {
				t.Errorf("the next read: %v", err)
			}
		})
	}
}

// Debian's registry as a pull-through cache before another: nothing of the
// artifact is asked of the registry itself, and when the mirror dies its
// registry takes over.
func TestPullThroughMirror(t *testing.T) {
	t.Parallel()
	a, data := big()
	p := newPlace(t, registrytest.NewHandler(), a)
	upstream := registrytest.Before(t, p.front.URL) // what the mirror asks
	mirror := registrytest.Debian(t, registrytest.DebianOptions{Proxy: upstream.URL})
	dir := t.TempDir()
	conf := filepath.Join(dir, p.front.Host, "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "server = \"" + p.front.URL + "\"\n[host.\"" + mirror.URL + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p.cfg.HostsDirs = []string{dir}
	p.cfg.EpochServer, p.cfg.EpochToken = "", ""
	// The first who comes is served by the registry meanwhile: the mirror
	// sends whole blobs as long as it does not have them.
	first, err := Open(t.Context(), p.ref, p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	readAt(t, first, data)
	if err := first.Close(); err != nil { // no request of it comes later
		t.Fatal(err)
	}
	blob := mirror.URL + "/v2/team/vm/blobs/" + first.Artifact.Files[0].Parts[0].Digest
	for deadline := time.Now().Add(20 * time.Second); rangeStatus(t, blob) != http.StatusPartialContent; {
		if time.Now().After(deadline) {
			t.Fatal("the mirror does not come to have the blob")
		}
	}
	p.front.Reset()
	upstream.Reset()
	p.cfg.CacheDir = filepath.Join(t.TempDir(), "another node")
	o := p.mustOpen(p.ref)
	f, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, len(data)/2)
	if _, err := f.ReadAt(t.Context(), half, 0); err != nil || !bytes.Equal(half, data[:len(half)]) {
		t.Fatalf("by the mirror: %v", err)
	}
	if c := p.front.Counts(); c.Blobs != 0 || c.Manifests != upstream.Counts().Manifests {
		t.Errorf("the registry was asked for %+v, by the mirror for %+v", c, upstream.Counts())
	}
	mirror.Stop()
	readAt(t, o, data)
}

// rangeStatus is how a server answers to a range.
func rangeStatus(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-9")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// A mirror whose disk has rotted costs a second request, not a wrong byte.
func TestRottenMirror(t *testing.T) {
	t.Parallel()
	a, data := big()
	p := newPlace(t, registrytest.NewHandler(), a)
	mirror := registrytest.Before(t, p.front.URL)
	dir := t.TempDir()
	conf := filepath.Join(dir, "_default", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("[host.\""+mirror.URL+"\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.cfg.HostsDirs = []string{dir}
	mirror.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Flip: 10})
	readAt(t, p.mustOpen(p.ref), data)
	if n := mirror.Counts().Blobs; n == 0 || n > 40 {
		t.Errorf("the mirror was asked for %d blobs", n)
	}
}

// hush drops what is logged.
var hush = slog.New(slog.NewTextHandler(io.Discard, nil))

// A hosts.toml that cannot be read is told, and offline nobody asks for it.
func TestBrokenHostsFile(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	p.cfg.Log = hush
	p.mustOpen(p.ref)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte("["), 0o644); err != nil {
		t.Fatal(err)
	}
	p.cfg.HostsDirs = []string{dir}
	if _, err := p.open(p.ref); err == nil || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("open = %v", err)
	}
	p.cfg.Offline = true
	p.front.Reset()
	if _, err := p.open(p.ref); err != nil || len(p.front.Requests()) != 0 {
		t.Errorf("offline: %v, %d requests", err, len(p.front.Requests()))
	}
}
