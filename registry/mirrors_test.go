package registry

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/registry/hosts"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

func TestMirrorInPlaceOfRegistry(t *testing.T) {
	own, mirror := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	m := mirrored(t, own.URL, nil, Options{Keychain: account("joe", "hunter2")}, at(mirror.Front))
	for _, id := range []string{"1", own.manifest} {
		if raw, _, err := m.GetManifest(t.Context(), "vm", id); err != nil || digests.Of(raw) != own.manifest {
			t.Fatal(err)
		}
	}
	body, err := m.GetBlob(t.Context(), "vm", own.digest)
	reads(t, "blob", body, err, own.blob)
	own.read(t, m, 10, 1000)
	own.readTrusted(t, m, 10, 1000) // loopback
	for _, r := range mirror.Requests() {
		if r.RawQuery != "ns="+strings.Replace(own.Host, ":", "%3A", 1) {
			t.Errorf("%s was asked for with %q", r.Path, r.RawQuery)
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the mirror got credentials that it did not ask for")
		}
	}
	if got := mirror.counts(); got != [2]int{2, 3} {
		t.Errorf("the mirror was asked for %v", got)
	}
	if got := own.counts(); got != [2]int{} {
		t.Errorf("the registry was asked for %v", got)
	}
	if s := m.Stats(); s.Requests != 5 || s.Bytes < 100_000 {
		t.Errorf("stats: %+v", s)
	}
}

// Each way in which a mirror fails leads to the next, and it is left alone
// for a while.
func TestMirrorThatFails(t *testing.T) {
	for name, fault := range map[string]*registrytest.Fault{
		"503":          {Status: 503},
		"429":          {Status: 429, Header: http.Header{"Retry-After": {"30"}}},
		"401":          {Status: 401},
		"403":          {Status: 403},
		"drops":        {Drop: true},
		"an odd range": {Status: 206, Header: http.Header{"Content-Range": {"bytes 5-10/11"}}},
	} {
		t.Run(name, func(t *testing.T) {
			own, mirror := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
			m := mirrored(t, own.URL, nil, Options{}, at(mirror.Front))
			mirror.Inject(fault)
			began := time.Now()
			own.read(t, m, 10, 1000)
			prolong(t, m, began)
			own.read(t, m, 10, 1000)
			if got := mirror.counts(); got != [2]int{0, 1} {
				t.Errorf("the mirror was asked for %v", got)
			}
			if got := own.counts(); got != [2]int{0, 2} {
				t.Errorf("the registry was asked for %v", got)
			}
		})
	}
}

func TestMirrorThatIsGone(t *testing.T) {
	own := stock(t, registrytest.InMemory(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuses := l.Addr().String()
	l.Close()
	m := mirrored(t, own.URL, nil, Options{},
		hosts.Host{Scheme: "http", Host: refuses, Path: "/v2", Pull: true, Resolve: true},
		hosts.Host{Scheme: "https", Host: "nobody.invalid", Path: "/v2", Pull: true, Resolve: true},
		hosts.Host{Scheme: "https", Host: "x.invalid", Path: "/v2", Pull: true, CA: []string{"/no/such/file"}})
	own.read(t, m, 10, 1000)
	if raw, _, err := m.GetManifest(t.Context(), "vm", "1"); err != nil || digests.Of(raw) != own.manifest {
		t.Error(err)
	}
}

// A body that breaks is the caller's to take up; then the mirror is left
// alone.
func TestMirrorBreaksOff(t *testing.T) {
	for name, fault := range map[string]*registrytest.Fault{"cut": {Cut: 500}, "stall": {Stall: 500}} {
		t.Run(name, func(t *testing.T) {
			own, mirror := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
			m := mirrored(t, own.URL, nil, Options{}, at(mirror.Front))
			m.upstreams[0].reg.limits.stall = 300 * time.Millisecond
			mirror.Inject(fault)
			began := time.Now()
			body, _, err := m.Source("vm").OpenBlob(t.Context(), own.digest, int64(len(own.blob)), 0, 50_000)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			wantError(t, err, ErrUnreachable, true)
			same(t, "before it broke", got, own.blob[:500])
			prolong(t, m, began)
			own.read(t, m, 500, 49_500)
			if got := own.counts(); got != [2]int{0, 1} {
				t.Errorf("the registry was asked for %v", got)
			}
		})
	}
}

// A cache that has a reader wait for half a second, as nginx does while it
// fetches a slice for another, is asked again.
func TestMirrorThatLetsWait(t *testing.T) {
	own, mirror := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	m := mirrored(t, own.URL, nil, Options{}, at(mirror.Front))
	mirror.Inject(&registrytest.Fault{Delay: time.Minute, Times: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	if _, _, err := m.Source("vm").OpenBlob(ctx, own.digest, int64(len(own.blob)), 0, 10); err == nil {
		t.Fatal("a mirror that hangs has answered")
	}
	own.read(t, m, 0, 10)
	if got := mirror.counts(); got != [2]int{0, 2} {
		t.Errorf("the mirror was asked for %v", got)
	}
	if got := own.counts(); got != [2]int{} {
		t.Errorf("the registry was asked for %v", got)
	}
}

// A request that was given up because the mirror does not answer counts
// against it.
func TestMirrorThatHangs(t *testing.T) {
	own, mirror := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	m := mirrored(t, own.URL, nil, Options{}, at(mirror.Front))
	mirror.Inject(&registrytest.Fault{Delay: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), tooLong+100*time.Millisecond)
	defer cancel()
	if _, _, err := m.Source("vm").OpenBlob(ctx, own.digest, int64(len(own.blob)), 0, 10); err == nil {
		t.Fatal("a mirror that hangs has answered")
	}
	own.read(t, m, 0, 10)
}

func TestMirrorWithoutTheBlob(t *testing.T) {
	own, mirror := stock(t, registrytest.InMemory(t)), registrytest.InMemory(t)
	m := mirrored(t, own.URL, nil, Options{}, at(mirror))
	for range 3 {
		began := time.Now()
		own.read(t, m, 10, 1000)
		prolong(t, m, began)
	}
	if c := mirror.Counts(); c.Blobs != 1 {
		t.Errorf("it was asked for it %d times", c.Blobs)
	}
	if _, _, err := m.GetManifest(t.Context(), "vm", "1"); err != nil || mirror.Counts().Manifests != 1 {
		t.Errorf("%v; %+v", err, mirror.Counts()) // it did not fail
	}
	_, _, err := m.GetManifest(t.Context(), "vm", "none")
	wantError(t, err, ErrNotFound, false)
}

func TestMirrorWithWrongBytes(t *testing.T) {
	own, first, second := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	m := mirrored(t, own.URL, nil, Options{}, at(first.Front), at(second.Front))
	src := m.Source("vm")
	open := func() io.ReadCloser {
		body, _, err := src.OpenBlob(t.Context(), own.digest, int64(len(own.blob)), 0, 10)
		readAll(t, body, err)
		return body
	}
	if more := src.Blame(own.digest, open()); !more {
		t.Error("blamed the first: no more")
	}
	open()
	if more := src.Blame(own.digest, nil); !more { // the second: the first that is not blamed
		t.Error("blamed the second: no more")
	}
	if more := src.Blame(own.digest, open()); more {
		t.Error("blamed the registry: more")
	}
	open() // and all over again
	for name, c := range map[string][2]int{"first": first.counts(), "second": second.counts(), "registry": own.counts()} {
		if want := map[string]int{"first": 2, "second": 1, "registry": 1}[name]; c[1] != want {
			t.Errorf("%s was asked %d times, want %d", name, c[1], want)
		}
	}
}

// What no digest vouches for in time comes from who proves who he is.
func TestMirrorThatIsNotTrusted(t *testing.T) {
	ca := registrytest.NewCA(t)
	for name, c := range map[string]struct {
		host    hosts.Host
		tls     bool
		trusted bool
	}{
		"plain":       {host: hosts.Host{Scheme: "http", Host: "mirror.example.com"}},
		"skip_verify": {host: hosts.Host{Scheme: "https", Host: "mirror.example.com", SkipVerify: true}, tls: true},
		"verified":    {host: hosts.Host{Scheme: "https", Host: "mirror.example.com", CA: []string{ca.File}}, tls: true, trusted: true},
	} {
		t.Run(name, func(t *testing.T) {
			own, backend := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
			front := registrytest.Before(t, backend.URL)
			if c.tls {
				front = registrytest.NewTLSFront(t, front, ca.Config(t, "mirror.example.com"))
			}
			mirror := stocked{Front: front}
			c.host.Path, c.host.Pull, c.host.Resolve = "/v2", true, true
			n := names{"mirror.example.com:80": front.Host, "mirror.example.com:443": front.Host}
			m := mirrored(t, own.URL, n, Options{}, c.host)
			own.read(t, m, 10, 1000)
			if _, _, err := m.GetManifest(t.Context(), "vm", own.manifest); err != nil {
				t.Fatal(err)
			}
			if got := mirror.counts(); got != [2]int{1, 1} {
				t.Fatalf("the mirror was asked for %v, of what has digests", got)
			}
			if got := own.counts(); got != [2]int{} {
				t.Errorf("the registry was asked for %v, of what has digests", got)
			}
			own.readTrusted(t, m, 10, 1000)
			body, err := m.GetBlobRange(t.Context(), "vm", own.digest, 5, 18)
			reads(t, "header", body, err, own.blob[5:23])
			if _, _, err := m.GetManifest(t.Context(), "vm", "1"); err != nil {
				t.Fatal(err)
			}
			want := [2]int{}
			if c.trusted {
				want = [2]int{1, 2}
			}
			if got := mirror.counts(); got != want {
				t.Errorf("the mirror was asked for %v, of what has none", got)
			}
		})
	}
}

// skip_verify is about one host, and not about where it leads to.
func TestSkipVerifyIsForOneHost(t *testing.T) {
	ca := registrytest.NewCA(t)
	other := registrytest.NewTLSFront(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a host with an unknown certificate was spoken to")
	}), ca.Config(t, "other.example.com"))
	front := registrytest.NewTLSFront(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://other.example.com/x")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}), ca.Config(t, "mirror.example.com"))
	own := stock(t, registrytest.InMemory(t))
	m := mirrored(t, own.URL, names{"mirror.example.com:443": front.Host, "other.example.com:443": other.Host}, Options{},
		hosts.Host{Scheme: "https", Host: "mirror.example.com", Path: "/v2", Pull: true, SkipVerify: true})
	own.read(t, m, 10, 1000)
	if len(front.Requests()) != 1 {
		t.Error("the mirror was not asked")
	}
}

func TestMirrorIgnoresRange(t *testing.T) {
	own := stock(t, registrytest.InMemory(t))
	front := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(own.blob) }))
	m := mirrored(t, own.URL, nil, Options{}, at(front))
	for range 3 {
		began := time.Now()
		own.read(t, m, 10, 1000)
		prolong(t, m, began)
	}
	if n := len(front.Requests()); n != 1 {
		t.Errorf("the mirror was asked for %d ranges", n)
	}
	own.read(t, m, 0, int64(len(own.blob)))
	if n := len(front.Requests()); n != 2 {
		t.Error("the mirror was not asked for a whole blob")
	}
}

func TestCapabilitiesAndPath(t *testing.T) {
	own, backend := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	front := registrytest.NewFront(t, http.StripPrefix("/some", backend.Front))
	h := at(front)
	h.Path, h.Resolve = "/some/v2", false
	h.Header = http.Header{"X-Dragonfly-Registry": {"https://r.example.com"}}
	none := h
	none.Pull = false
	m := mirrored(t, own.URL, nil, Options{}, none, h)
	own.read(t, m, 10, 1000)
	if _, _, err := m.GetManifest(t.Context(), "vm", "1"); err != nil {
		t.Fatal(err)
	}
	if got := front.Requests()[0].Header.Get("X-Dragonfly-Registry"); got != "https://r.example.com" {
		t.Errorf("the header is %q", got)
	}
	if got := own.Requests()[0].Header.Get("X-Dragonfly-Registry"); got != "" {
		t.Errorf("the registry got the header of its mirror: %q", got)
	}
	if c := front.Counts(); c.Blobs != 1 || c.Manifests != 0 {
		t.Errorf("the mirror was asked for %+v", c)
	}
}

// The server of a hosts.toml takes the registry's place; nobody asks it
// last.
func TestServer(t *testing.T) {
	ca := registrytest.NewCA(t)
	backend := stock(t, registrytest.InMemory(t))
	front := registrytest.NewTLSFront(t, backend.Front, ca.Config(t, "stand-in.example.com"))
	conf := &hosts.Config{Server: &hosts.Host{Scheme: "https", Host: "stand-in.example.com", Path: "/v2", Pull: true, Resolve: true, CA: []string{ca.File}}}
	m, err := newMirrors(Reference{Scheme: "https", Host: "registry.invalid", Repository: "vm", Tag: "1"}, conf,
		Options{Keychain: &keys{}}, quickLimits(), names{"stand-in.example.com:443": front.Host}.dial)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	backend.readTrusted(t, m, 10, 1000)
	conf.Server.CA = []string{"/no/such/file"}
	if _, err := newMirrors(Reference{Scheme: "https", Host: "registry.invalid"}, conf, Options{}, quickLimits(), nil); err == nil {
		t.Error("a server without its certificate was accepted")
	}
}

// Who stands for bytes without a digest, and whether it has proved to be
// it.
func TestOrigin(t *testing.T) {
	mirrors := func(ref string, conf *hosts.Config, opts Options) *MirrorSource {
		t.Helper()
		r, err := ParseReference(ref, ReferenceOptions{PlainHTTP: opts.PlainHTTP})
		if err != nil {
			t.Fatal(err)
		}
		m, err := NewMirrors(r, conf, opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m.Source("vm")
	}
	none := &hosts.Config{}
	lax := &hosts.Config{Server: &hosts.Host{Scheme: "https", Host: "reg.example", Path: "/v2/", SkipVerify: true}}
	for _, c := range []struct {
		ref    string
		conf   *hosts.Config
		plain  bool
		proven bool
	}{
		{"reg.example/vm", none, false, true},
		{"127.0.0.1:5000/vm", none, false, true},
		{"localhost:5000/vm", none, true, true},
		{"reg.example/vm", none, true, false},
		{"192.0.2.1:5000/vm", none, true, false},
		{"reg.example/vm", lax, false, false},
	} {
		s := mirrors(c.ref, c.conf, Options{PlainHTTP: c.plain})
		if s.Proven() != c.proven {
			t.Errorf("%s, plain HTTP %v: proven %v", c.ref, c.plain, s.Proven())
		}
	}
	tls, plain := mirrors("reg.example/vm", none, Options{}), mirrors("reg.example/vm", none, Options{PlainHTTP: true})
	other := mirrors("other.example/vm", none, Options{})
	if tls.Origin() == plain.Origin() || tls.Origin() == other.Origin() || tls.Origin() != mirrors("reg.example/vm", none, Options{}).Origin() {
		t.Errorf("origins: %q, %q, %q", tls.Origin(), plain.Origin(), other.Origin())
	}
}
