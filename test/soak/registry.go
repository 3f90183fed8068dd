package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// sick is a registry in this process that fails as told: requests for
// blobs meet a fault with a given chance.
type sick struct {
	inner   http.Handler
	server  *http.Server
	host    string
	chance  atomic.Int64 // of a fault, in thousandths
	flips   bool         // wrong bytes too
	lies    atomic.Int64 // chance of a wrong bit in the answer for a range, in thousandths
	wholes  atomic.Bool  // ranges are ignored
	present sync.RWMutex // held by what cannot do without it; exclusive while it is away
	configs []string     // blobs that come as they should: a mount may not begin without them
	atOnce  []string     // blobs in which one byte is wrong, once: their granules lie across pieces

	mu     sync.Mutex
	rng    *rand.Rand
	counts map[string]int  // faults, by kind
	blobs  int             // requests for blobs
	spoilt map[string]bool // pieces that were wrong once
}

// fault is one way to fail. It answers instead of the registry, or
// prepares w, and reports whether the registry is asked at all.
type fault struct {
	name string
	do   func(s *sick, w *sickWriter, r *http.Request) (ask bool)
}

// flipKind is the fault that only campaigns with flips have.
const flipKind = "bit flipped"

var faults = []fault{
	{"429 with Retry-After", func(_ *sick, w *sickWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "0")
		http.Error(w.ResponseWriter, "later", http.StatusTooManyRequests)
		return false
	}},
	{"500", func(_ *sick, w *sickWriter, _ *http.Request) bool {
		http.Error(w.ResponseWriter, "broken", http.StatusInternalServerError)
		return false
	}},
	{"503", func(_ *sick, w *sickWriter, _ *http.Request) bool {
		http.Error(w.ResponseWriter, "away", http.StatusServiceUnavailable)
		return false
	}},
	{"dropped before the answer", func(*sick, *sickWriter, *http.Request) bool { panic(http.ErrAbortHandler) }},
	{"body cut", func(s *sick, w *sickWriter, _ *http.Request) bool {
		w.cut = 1 + s.upTo(300_000)
		return true
	}},
	{"late", func(s *sick, _ *sickWriter, r *http.Request) bool {
		select {
		case <-time.After(time.Duration(s.upTo(200)) * time.Millisecond):
		case <-r.Context().Done():
		}
		return true
	}},
	{"no range, all of it", func(_ *sick, _ *sickWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return true
	}},
	{flipKind, func(s *sick, w *sickWriter, r *http.Request) bool {
		if at := 1 + s.upTo(200_000); s.spoil(r, at) {
			w.flip = at
		}
		return true
	}},
	{"stalled", func(s *sick, w *sickWriter, r *http.Request) bool {
		w.stall, w.ctx = 1+s.upTo(100_000), r.Context()
		return true
	}},
}

func startSick(seed uint64, flips bool) (*sick, error) {
	s := &sick{
		inner:  ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))),
		rng:    rand.New(rand.NewPCG(seed, 1)),
		counts: map[string]int{},
		spoilt: map[string]bool{},
		flips:  flips,
	}
	l, err := registrytest.Listen() // it will be away, and come back to its port
	if err != nil {
		return nil, err
	}
	s.serve(l)
	return s, nil
}

func (s *sick) serve(l net.Listener) {
	s.host = l.Addr().String()
	s.server = &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
	go s.server.Serve(l)
}

// away takes the registry off the network for a while.
func (s *sick) away(d time.Duration) error {
	s.present.Lock()
	defer s.present.Unlock()
	s.note("registry away")
	if err := s.server.Close(); err != nil {
		return err
	}
	time.Sleep(d)
	l, err := net.Listen("tcp", s.host)
	if err != nil {
		return err
	}
	s.serve(l)
	return nil
}

func (s *sick) close() { _ = s.server.Close() }

func (s *sick) upTo(n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Int64N(n)
}

func (s *sick) note(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[kind]++
}

// told returns what was injected and requested so far. A process without
// readers may still send requests.
func (s *sick) told() (faults map[string]int, blobs int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts), s.blobs
}

// injected reports whether there were n faults, and one of each kind.
func (s *sick) injected(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		if s.counts[f.name] == 0 && (s.flips || f.name != flipKind) {
			return false
		}
	}
	for _, c := range s.counts {
		n -= c
	}
	return n <= 0
}

// start is the first byte that a request asks for.
func start(r *http.Request) (n int64) {
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &n)
	return n
}

// spoil reports whether byte at of an answer may be wrong: each piece of a
// blob once, because twice would be wrong for good.
func (s *sick) spoil(r *http.Request, at int64) bool {
	const piece = 256 << 10
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprint(r.URL.Path, " ", (start(r)+at-1)/piece)
	if r.Header.Get("Range") == "" || s.among(s.atOnce, r) {
		key = r.URL.Path // hashed as a whole
	}
	ok := !s.spoilt[key]
	s.spoilt[key] = true
	return ok
}

// among reports whether a request is for one of some blobs.
func (s *sick) among(blobs []string, r *http.Request) bool {
	return slices.ContainsFunc(blobs, func(d string) bool { return strings.HasSuffix(r.URL.Path, d) })
}

func (s *sick) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
		s.inner.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	s.blobs++
	s.mu.Unlock()
	out := &sickWriter{ResponseWriter: w}
	config := s.among(s.configs, r)
	if !config && s.upTo(1000) < s.chance.Load() {
		f := faults[s.upTo(int64(len(faults)))]
		if f.name == flipKind && !s.flips {
			f = faults[0]
		}
		s.note(f.name)
		if !f.do(s, out, r) {
			return
		}
	}
	switch {
	case config:
	case s.wholes.Load():
		s.note(wholesKind)
		r.Header.Del("Range")
	case r.Header.Get("Range") != "" && s.upTo(1000) < s.lies.Load():
		s.note(liesKind)
		out.flip, out.again = 1+s.upTo(100_000), 300_000
	}
	s.inner.ServeHTTP(out, r)
}

// Kinds of faults of a lying campaign.
const (
	liesKind   = "wrong bits of what cannot be checked"
	wholesKind = "whole blobs after them"
)

// sickWriter passes a body on and does something to it.
type sickWriter struct {
	http.ResponseWriter
	sent             int64
	cut, flip, stall int64 // after how many bytes; 0: never
	again            int64 // how far it is from one flip to the next; 0: there is one
	ctx              context.Context
}

func (w *sickWriter) Write(p []byte) (int, error) {
	if end := w.sent + int64(len(p)); w.flip > w.sent && w.flip <= end {
		p = append([]byte(nil), p...)
		for p[w.flip-w.sent-1] ^= 0x20; w.again > 0 && w.flip+w.again <= end; p[w.flip-w.sent-1] ^= 0x20 {
			w.flip += w.again
		}
		w.flip += w.again
	}
	if w.stall > 0 && w.sent+int64(len(p)) >= w.stall {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // what came before arrives
		<-w.ctx.Done()
		panic(http.ErrAbortHandler)
	}
	if w.cut > 0 && w.sent+int64(len(p)) >= w.cut {
		_, _ = w.ResponseWriter.Write(p[:w.cut-w.sent])
		panic(http.ErrAbortHandler)
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// sample is an artifact and what its one large file should read as.
type sample struct {
	tag  string
	flat []byte
}

const fileName = "memory-ranges"

// form is what an artifact is stored as.
type form struct {
	artifacttest.Options
	packed bool
}

// unchecked is the form without a digest of anything smaller than the whole.
var unchecked = form{}

// push makes artifacts in all forms and stores them.
func (s *sick) push(ctx context.Context, rng *rand.Rand, size int64, n int) ([]sample, error) {
	forms := []form{
		{Options: artifacttest.Options{Piece: 256 << 10}},
		{packed: true},
		{Options: artifacttest.Options{Chunk: 1 << 20, Zstd: true}},
		unchecked,
		{Options: artifacttest.Options{Chunk: 1 << 20}},
	}
	if s.flips {
		forms = slices.Delete(forms, 3, 4)
	}
	return s.pushAs(ctx, rng, size, n, forms...)
}

// pushAs makes artifacts in those forms and stores them.
func (s *sick) pushAs(ctx context.Context, rng *rand.Rand, size int64, n int, forms ...form) ([]sample, error) {
	ref, err := registry.ParseReference(s.host+"/soak/vm", registry.ReferenceOptions{})
	if err != nil {
		return nil, err
	}
	r, err := registry.New(ref, registry.Options{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out []sample
	for i := range n {
		f := artifacttest.RandomFile(rng, fileName, size)
		for f.Map.DataSize() < size/4 {
			f = artifacttest.RandomFile(rng, fileName, size)
		}
		tag := fmt.Sprint(i)
		if err := s.put(ctx, r, tag, f, forms[i%len(forms)]); err != nil {
			return nil, err
		}
		out = append(out, sample{tag, f.Data})
	}
	return out, nil
}

// put stores the artifact of a file.
func (s *sick) put(ctx context.Context, r *registry.Registry, tag string, f artifacttest.File, as form) error {
	files := []artifacttest.File{f}
	if as.packed {
		_, err := (&snapshot.Pusher{Uploader: r}).Push(ctx, snapshot.PushOptions{
			Name: "soak/vm", Tag: tag, Packed: true, Input: bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, files)),
		})
		if err != nil {
			return err
		}
	} else if err := artifacttest.Snapshot(files, as.Options).Push(ctx, r, "soak/vm", tag); err != nil {
		return err
	}
	raw, _, err := r.GetManifest(ctx, "soak/vm", tag)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return err
	}
	s.configs = append(s.configs, m.Config.Digest)
	for _, d := range m.Layers {
		if as.packed {
			s.atOnce = append(s.atOnce, d.Digest)
		}
	}
	return nil
}
