package snapshot_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	ociregistry "github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// fronts are the registries that a push must get along with.
func fronts(t *testing.T) map[string]*registrytest.Front {
	return map[string]*registrytest.Front{
		"epoch":      registrytest.NewFront(t, &epochlike.Server{Token: "t0ken"}),
		"monolithic": registrytest.NewFront(t, &epochlike.Server{NoSessions: true}),
		"debian":     registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL),
	}
}

func clientOf(t *testing.T, f *registrytest.Front) *ociregistry.Registry {
	t.Helper()
	ref, err := ociregistry.ParseReference(f.Host+"/vm", ociregistry.ReferenceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ociregistry.New(ref, ociregistry.Options{EpochServer: f.URL, EpochToken: "t0ken"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// everyTenth breaks every tenth request, each time in another way.
func everyTenth() *registrytest.Fault {
	var n atomic.Int64
	fault := &registrytest.Fault{}
	fault.Match = func(r *http.Request) bool { return n.Add(1)%10 == 0 }
	return fault
}

// Pushes to real registries, whole ones and such that break every tenth
// request, a body or a session, hold what the export had.
func TestPushToRegistries(t *testing.T) {
	var pushes atomic.Uint64
	faults := map[string]func() *registrytest.Fault{
		"whole":   nil,
		"drops":   func() *registrytest.Fault { f := everyTenth(); f.Drop = true; return f },
		"refuses": func() *registrytest.Fault { f := everyTenth(); f.Status = http.StatusServiceUnavailable; return f },
		"cuts":    cutting,
		"forgets": forgetting,
	}
	// Waiting to try again takes time: not every form meets every fault.
	tried := map[string]string{"whole": "v1 zstd chunks streams", "drops": "small", "refuses": "v1", "cuts": "v1 streams", "forgets": "v1"}
	for kind, f := range fronts(t) {
		// Each registry has a front of its own; the faults of one come one
		// after the other.
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for fault, inject := range faults {
				for form, opts := range map[string]snapshot.PushOptions{"v1": {}, "zstd": {Zstd: 1}, "chunks": {Chunk: 4 * mib}, "small": {Zstd: 1, Chunk: 2 * mib}, "streams": {Zstd: 1, Chunk: 512 * mib}} {
					if !strings.Contains(tried[fault], form) {
						continue
					}
					t.Run(fault+", "+form, func(t *testing.T) {
						r := clientOf(t, f)
						opts.Name = "vm/" + fault + "/" + strings.ReplaceAll(form, " ", "-")
						files := noise(pushes.Add(1))
						cocoon := &exporting{tars: [][]byte{artifacttest.Tar(artifacttest.Envelope, files)}}
						f.Clear()
						var struck atomic.Int64
						if inject != nil {
							f.Inject(counted(inject(), &struck))
						}
						res, err := (&snapshot.Pusher{Uploader: r, Cocoon: cocoon}).Push(t.Context(), opts)
						f.Clear()
						if err != nil {
							t.Fatal(err)
						}
						sessions := kind != "monolithic" // else there is none to forget
						if inject != nil && struck.Load() == 0 && (fault != "forgets" || sessions) {
							t.Error("nothing was broken")
						}
						art, err := snapshot.Load(t.Context(), r, opts.Name, "latest", snapshot.LoadOptions{})
						if err != nil || art.Digest != res.ManifestDigest {
							t.Fatal(art, err)
						}
						for i, file := range art.Files {
							if !holds(t, snapshot.DownloaderPayloads(r, opts.Name), file, files[i].Data) {
								t.Errorf("%s has other bytes", file.Name)
							}
						}
					})
				}
			}
		})
	}
}

// noise is files that nobody has pushed yet: what a registry has is not sent.
// memory-ranges takes three requests, cow.raw one.
func noise(seed uint64) []artifacttest.File {
	data := make([]byte, 20*mib)
	artifacttest.Fill(data, seed)
	return []artifacttest.File{
		{Name: "memory-ranges", Data: data[:17*mib]}, {Name: "cow.raw", Data: data[17*mib:]}, {Name: "state.json", Data: []byte("{}")},
	}
}

// The manifest comes last, once, when all it names is there; a dry run only
// asks; and a push that the registry ends half way leaves the tag as it was.
func TestManifestIsPutLast(t *testing.T) {
	export := func(i byte) io.Reader {
		noise := pattern(5*mib + 3)
		noise[5] = i
		return bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "cow.raw", Data: noise}, {Name: "state.json", Data: []byte("{}")}}))
	}
	for form, opts := range map[string]snapshot.PushOptions{"v1": {}, "chunks": {Chunk: 2 * mib}} {
		f := registrytest.NewFront(t, &epochlike.Server{Token: "t0ken"})
		p := &snapshot.Pusher{Uploader: clientOf(t, f)}
		opts.Name, opts.Input, opts.DryRun = "vm", export(0), true
		if _, err := p.Push(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		for _, r := range f.Requests() {
			if r.Method != http.MethodHead && r.Method != http.MethodGet || r.Received() > 0 {
				t.Errorf("%s: a dry run sent %s %s", form, r.Method, r.Path)
			}
		}
		f.Reset()
		opts.Input, opts.DryRun = export(0), false
		res, err := p.Push(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		all := f.Requests()
		for i, r := range all {
			if last := i == len(all)-1; r.IsManifest() && r.Method == http.MethodPut != last {
				t.Errorf("%s: %s %s is request %d of %d", form, r.Method, r.Path, i, len(all))
			}
		}
		f.Inject(&registrytest.Fault{Match: registrytest.Method("PUT", "/blobs/"), Status: http.StatusForbidden})
		opts.Input = export(1)
		if _, err := p.Push(t.Context(), opts); !errors.Is(err, ociregistry.ErrDenied) {
			t.Errorf("%s: %v", form, err)
		}
		f.Clear()
		raw, _, err := clientOf(t, f).GetManifest(t.Context(), "vm", "latest")
		if err != nil || !bytes.Equal(raw, res.ManifestBytes) {
			t.Errorf("%s: the tag is another one, %v", form, err)
		}
	}
}

// cutting breaks off in the second large body.
func cutting() *registrytest.Fault {
	const after = 1 << 18
	var bodies atomic.Int64
	return &registrytest.Fault{Times: 1, DropBody: after, Match: func(r *http.Request) bool {
		return r.ContentLength > after && bodies.Add(1) == 2
	}}
}

// counted is a fault that is counted when it strikes.
func counted(fault *registrytest.Fault, struck *atomic.Int64) *registrytest.Fault {
	match := fault.Match
	fault.Match = func(r *http.Request) bool {
		strikes := match(r)
		if strikes {
			struck.Add(1)
		}
		return strikes
	}
	return fault
}

// forgetting ends one upload session as if the registry had restarted, when
// its third PATCH comes: the registry is known to take pieces then.
func forgetting() *registrytest.Fault {
	var patches atomic.Int64
	return &registrytest.Fault{Times: 1, Status: http.StatusNotFound, Match: func(r *http.Request) bool {
		return r.Method == http.MethodPatch && patches.Add(1) == 3
	}}
}

// A stream from standard input ends with the session it was sent to.
func TestPushFromPipeToRegistry(t *testing.T) {
	files := []artifacttest.File{{Name: "memory-ranges", Data: pattern(18 * mib)}} // three requests
	export := artifacttest.Tar(artifacttest.Envelope, files)
	f := registrytest.NewFront(t, &epochlike.Server{Token: "t0ken"})
	r := clientOf(t, f)
	for _, spool := range []bool{false, true} {
		f.Clear()
		f.Inject(forgetting())
		opts := snapshot.PushOptions{Name: "vm", Input: io.MultiReader(bytes.NewReader(export)), Spool: spool, SpoolDir: t.TempDir()}
		_, err := (&snapshot.Pusher{Uploader: r}).Push(t.Context(), opts)
		if spool != (err == nil) || !spool && !errors.Is(err, ociregistry.ErrUnreachable) {
			t.Errorf("spool %v: %v", spool, err)
		}
		_, _, err = r.GetManifest(t.Context(), "vm", "latest")
		if spool != (err == nil) {
			t.Errorf("spool %v: manifest: %v", spool, err)
		}
	}
}
