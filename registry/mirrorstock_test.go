package registry

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/registry/hosts"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// names leads host names of a test to its servers, by host:port.
type names map[string]string

func (n names) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if to, ok := n[addr]; ok {
		addr = to
	} else if !isLoopback(addr) {
		return nil, &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// stocked is a registry with one blob and one tagged manifest.
type stocked struct {
	*registrytest.Front
	blob     []byte
	digest   string
	manifest string // digest of what the tag "1" stands for
}

func stock(t *testing.T, front *registrytest.Front) stocked {
	t.Helper()
	s := stocked{Front: front, blob: random(100_000)}
	s.digest = digests.Of(s.blob)
	raw := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a/b","digest":"` + s.digest + `","size":100000},"layers":[]}`)
	s.manifest = digests.Of(raw)
	r := client(t, front.URL, Options{})
	ctx := context.Background()
	if err := r.PutBlob(ctx, "vm", s.digest, bytes.NewReader(s.blob), int64(len(s.blob))); err != nil {
		t.Fatal(err)
	}
	if err := r.PutManifest(ctx, "vm", "1", raw, "application/vnd.oci.image.manifest.v1+json"); err != nil {
		t.Fatal(err)
	}
	front.Reset()
	return s
}

// mirrored makes a client of own with mirrors.
func mirrored(t *testing.T, own string, n names, opts Options, mirrors ...hosts.Host) *Mirrors {
	t.Helper()
	if opts.Keychain == nil {
		opts.Keychain = &keys{}
	}
	scheme, host, _ := strings.Cut(own, "://")
	lim := quickLimits()
	lim.dial, lim.answer = 5*time.Second, 5*time.Second
	m, err := newMirrors(Reference{Scheme: scheme, Host: host, Repository: "vm", Tag: "1"}, &hosts.Config{Mirrors: mirrors}, opts, lim, n.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func at(front *registrytest.Front) hosts.Host {
	return hosts.Host{Scheme: "http", Host: front.Host, Path: "/v2", Pull: true, Resolve: true}
}

func (s stocked) read(t *testing.T, m *Mirrors, off, n int64) {
	t.Helper()
	body, _, err := m.Source("vm").OpenBlob(t.Context(), s.digest, int64(len(s.blob)), off, n)
	reads(t, "range", body, err, s.blob[off:off+n])
}

func (s stocked) readTrusted(t *testing.T, m *Mirrors, off, n int64) {
	t.Helper()
	body, _, err := m.Source("vm").OpenTrusted(t.Context(), s.digest, int64(len(s.blob)), off, n)
	reads(t, "trusted range", body, err, s.blob[off:off+n])
}

// prolong makes an hour of each time for which the first mirror is left
// alone: a second may be over before a busy machine sends the next request.
// Before that it looks whether they are as long as they should be, counted
// from began, which is before the first of them.
func prolong(t *testing.T, m *Mirrors, began time.Time) {
	t.Helper()
	hour := func(until *time.Time, least time.Duration) {
		if until.IsZero() {
			return
		}
		if until.Before(began.Add(least)) {
			t.Errorf("left alone for less than %v", least)
		}
		*until = began.Add(time.Hour)
	}
	p := m.upstreams[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	hour(&p.until, time.Second)
	for digest, s := range p.blobs {
		hour(&s.whole, 2*time.Second)
		hour(&s.missing, 30*time.Second)
		p.blobs[digest] = s
	}
}

// counts is what a registry was asked for since it was asked last.
func (s stocked) counts() [2]int {
	c := s.Counts()
	s.Reset()
	return [2]int{c.Manifests, c.Blobs}
}
