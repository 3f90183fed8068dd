package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// tripRegistries are what packed artifacts are tried with: one of Debian's,
// one as odd as epoch's, which ignores Range, and one that is particular about
// uploads.
var tripRegistries = map[string]func(t *testing.T) *registrytest.Front{
	"debian": func(t *testing.T) *registrytest.Front {
		return registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	},
	"epoch": func(t *testing.T) *registrytest.Front {
		return registrytest.NewFront(t, &epochlike.Server{Token: epochToken})
	},
	"particular": func(t *testing.T) *registrytest.Front {
		return registrytest.NewFront(t, &registrytest.Particular{NoPatch: http.StatusMethodNotAllowed, MaxBody: 20 << 20})
	},
}

// trip runs the program on one registry.
type trip struct {
	t     *testing.T
	front *registrytest.Front
	dir   string
}

func newTrip(t *testing.T, front *registrytest.Front) *trip {
	return &trip{t: t, front: front, dir: t.TempDir()}
}

// command is the program with a cache that no other run has.
func (p *trip) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), "epochfs", append([]string{"--quiet", "--read-timeout", "60s"}, args...)...)
	cmd.Env = append(os.Environ(), mounting.CacheDirEnv+"="+p.t.TempDir(), control.DirEnv+"="+p.dir,
		"EPOCH_SERVER="+p.front.URL, "EPOCH_REGISTRY_TOKEN="+epochToken)
	return cmd
}

func (p *trip) run(args ...string) []byte {
	p.t.Helper()
	cmd := p.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("epochfs %s: %v: %s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

func (p *trip) ref(tag string) string { return p.front.Host + "/vm:" + tag }

// manifest returns what a tag names.
func (p *trip) manifest(tag string) *manifest.OCIManifest {
	p.t.Helper()
	cfg := mounting.Config{EpochServer: p.front.URL, EpochToken: epochToken}
	ref, err := cfg.Reference(p.ref(tag))
	must(p.t, err)
	reg, err := cfg.Registry(ref)
	must(p.t, err)
	defer reg.Close()
	raw, _, err := reg.GetManifest(p.t.Context(), ref.Repository, tag)
	must(p.t, err)
	m, err := manifest.Parse(raw)
	must(p.t, err)
	return m
}

// layers returns the digests of an artifact's layers, in their order.
func (p *trip) layers(tag string) (all []string) {
	for _, d := range p.manifest(tag).Layers {
		all = append(all, d.Digest)
	}
	return all
}

// tar returns the digest of the tar of an artifact.
func (p *trip) tar(tag string) [32]byte {
	return sha256.Sum256(p.run("materialize", "--name", "vm", "-o", "-", p.ref(tag)))
}

// breakEvery has every nth request end in some error.
func (p *trip) breakEvery(n int64) (broken *atomic.Int64) {
	var count, hit atomic.Int64
	broken = &hit
	every := func(phase int64) func(*http.Request) bool {
		return func(*http.Request) bool {
			if count.Load()%(3*n) != phase {
				return false
			}
			hit.Add(1)
			return true
		}
	}
	p.front.Inject(&registrytest.Fault{Match: func(*http.Request) bool { count.Add(1); return false }})
	p.front.Inject(&registrytest.Fault{Match: every(0), Status: http.StatusServiceUnavailable})
	p.front.Inject(&registrytest.Fault{Match: every(n), Drop: true})
	p.front.Inject(&registrytest.Fault{Match: every(2 * n), Cut: 1})
	return broken
}

// tripFiles are the files of a VM, with a second version of them.
func tripFiles(rng *rand.Rand) (first, second []artifacttest.File) {
	first = []artifacttest.File{
		{Name: "config.json", Data: []byte(`{"cpus":1}`)},
		artifacttest.RandomFile(rng, "cow.raw", 12<<20),
		artifacttest.RandomFile(rng, "memory-ranges", 20<<20),
	}
	for _, f := range first {
		f.Data = bytes.Clone(f.Data)
		second = append(second, f)
	}
	m := second[2]
	for _, s := range m.Map.Segments() {
		if rng.IntN(4) == 0 {
			m.Data[s.Offset] ^= 1
		}
	}
	return first, second
}

// What goes through the packed format is what it was, on every registry, with
// every tenth request broken.
func TestPackedTrips(t *testing.T) {
	tier.Long(t, "runs the program many times")
	t.Parallel()
	for kind, start := range tripRegistries {
		for _, faults := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/faults=%v", kind, faults), func(t *testing.T) {
				t.Parallel()
				seed := uint64(time.Now().UnixNano())
				t.Logf("seed %d", seed)
				p := newTrip(t, start(t))
				p.trips(rand.New(rand.NewPCG(seed, 1)), faults)
			})
		}
	}
}

func (p *trip) trips(rng *rand.Rand, faults bool) {
	first, second := tripFiles(rng)
	exports := [2]string{filepath.Join(p.dir, "first.tar"), filepath.Join(p.dir, "second.tar")}
	for i, files := range [][]artifacttest.File{first, second} {
		must(p.t, os.WriteFile(exports[i], artifacttest.Tar(artifacttest.Envelope, files), 0o600))
	}
	p.run("push", "--input", exports[0], p.ref("v1"))
	p.run("push", "--zstd", "1", "--chunk", "1MiB", "--input", exports[0], p.ref("v2"))
	broken := new(atomic.Int64)
	if faults {
		broken = p.breakEvery(10)
	}
	// There and back.
	for _, format := range []string{"v1", "v2"} {
		back := []string{"convert", "--format", format, p.ref(format + "p"), p.ref(format + "back")}
		if format == "v2" {
			back = append(back, "--zstd", "1", "--chunk", "1MiB")
		}
		p.run("convert", "--format", "packed", p.ref(format), p.ref(format+"p"))
		p.run(back...)
	}
	// A second snapshot, with the first as its base, and once more.
	p.run("push", "--format", "packed", "--base", p.ref("v1p"), "--input", exports[1], p.ref("child"))
	p.run("convert", "--format", "packed", "--base", p.ref("v1p"), p.ref("child"), p.ref("copy"))
	p.run("push", "--input", exports[1], p.ref("second"))
	tars := map[string][32]byte{}
	for _, tag := range []string{"v1", "v1p", "v1back", "v2", "v2p", "v2back", "child", "copy"} {
		tars[tag] = p.tar(tag)
	}
	if faults {
		p.front.Clear()
		if broken.Load() < 5 {
			p.t.Errorf("only %d requests were broken", broken.Load())
		}
	}
	for _, same := range [][]string{{"v1", "v1p", "v1back"}, {"v2", "v2p", "v2back"}, {"child", "copy"}} {
		for _, tag := range same[1:] {
			if tars[tag] != tars[same[0]] {
				p.t.Errorf("the tar of %s is not that of %s", tag, same[0])
			}
		}
	}
	for _, format := range []string{"v1", "v2"} {
		if was, is := p.layers(format), p.layers(format+"back"); !slices.Equal(was, is) {
			p.t.Errorf("%s: layers %v became %v", format, was, is)
		}
	}
	for _, tag := range []string{"child", "copy"} {
		for i, f := range second {
			if got := p.run("cat", p.ref(tag), f.Name); !bytes.Equal(got, second[i].Data) {
				p.t.Errorf("%s of %s differs", f.Name, tag)
			}
		}
		base := p.layers("v1p")
		if !slices.ContainsFunc(p.layers(tag), func(d string) bool { return slices.Contains(base, d) }) {
			p.t.Errorf("%s shares nothing with its base", tag)
		}
	}
}

// A convert that is killed in the middle tags nothing, and sends only what the
// target lacks when it is started again.
func TestConvertKilled(t *testing.T) {
	tier.Long(t, "kills the program")
	t.Parallel()
	for kind, start := range tripRegistries {
		for _, format := range []string{"packed", "v1"} {
			t.Run(kind+" to "+format, func(t *testing.T) {
				t.Parallel()
				newTrip(t, start(t)).killed(format)
			})
		}
	}
}

func (p *trip) killed(format string) {
	// Four packs, and four files of v1, of bytes that hardly compress.
	var files []artifacttest.File
	for i := range 4 {
		data := make([]byte, 7<<20)
		artifacttest.Fill(data, uint64(i+1))
		files = append(files, artifacttest.File{Name: fmt.Sprintf("disk%d.raw", i), Data: data})
	}
	export := filepath.Join(p.dir, "export.tar")
	must(p.t, os.WriteFile(export, artifacttest.Tar(artifacttest.Envelope, files), 0o600))
	from := map[string]string{"packed": "v1", "v1": "packed"}[format]
	p.run("push", "--format", from, "--input", export, p.ref("from"))
	args := []string{"--concurrency", "1", "convert", "--format", format, p.ref("from"), p.ref("to")}

	p.front.Reset()
	cmd := p.command(args...)
	must(p.t, cmd.Start())
	if !poll(func() bool { return len(p.stored()) >= 2 }) {
		p.t.Fatal("nothing is stored")
	}
	must(p.t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	before := p.stored()
	tagged := slices.ContainsFunc(p.front.Requests(), func(r *registrytest.Request) bool { return r.Method == http.MethodPut && r.IsManifest() })
	if !tagged && p.command("inspect", p.ref("to")).Run() == nil {
		p.t.Error("there is an artifact of a convert that was killed")
	}
	p.front.Reset()
	p.run(args...)
	for _, digest := range p.stored() {
		if slices.Contains(before, digest) {
			p.t.Errorf("%s was sent again", digest)
		}
	}
	if p.tar("to") != p.tar("from") {
		p.t.Error("the tar differs")
	}
}

// stored returns the digests of blobs of a MiB and more that were uploaded
// since the front was reset.
func (p *trip) stored() (all []string) {
	sent := map[string]int64{} // by upload session
	for _, r := range p.front.Requests() {
		if !strings.Contains(r.Path, "/blobs/uploads/") {
			continue
		}
		sent[r.Path] += r.Received()
		if _, digest, ok := strings.Cut(r.RawQuery, "digest=sha256"); ok && r.Status() == http.StatusCreated && sent[r.Path] > 1<<20 {
			all = append(all, strings.TrimPrefix(strings.TrimPrefix(digest, "%3A"), ":")[:64])
		}
	}
	return all
}

// A base that has lost a pack, or whose pack is rotten: see docs/operations.md.
func TestRottenBase(t *testing.T) {
	tier.Long(t, "runs the program many times")
	t.Parallel()
	server := &registrytest.Particular{}
	p := newTrip(t, registrytest.NewFront(t, server))
	files := []artifacttest.File{{Name: "cow.raw", Data: make([]byte, 3<<20)}, {Name: "memory-ranges", Data: make([]byte, 3<<20)}}
	for i := range files {
		artifacttest.FillBits(files[i].Data, uint64(i+1), 0x0f) // another level makes other frames
	}
	export := filepath.Join(p.dir, "export.tar")
	push := func(tag string, args ...string) {
		must(t, os.WriteFile(export, artifacttest.Tar(artifacttest.Envelope, files), 0o600))
		p.run(append([]string{"push", "--format", "packed", "--input", export, p.ref(tag)}, args...)...)
	}
	push("base")
	files[1].Data = bytes.Clone(files[1].Data)
	files[1].Data[1<<20] ^= 1
	push("child", "--base", p.ref("base"))

	// The first pack, that of cow.raw, is wrong from now on.
	var packs []string
	for _, d := range p.manifest("child").Layers {
		if d.MediaType == manifest.MediaTypePack {
			packs = append(packs, d.Digest)
		}
	}
	if len(packs) != 3 {
		t.Fatalf("%d packs", len(packs))
	}
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path(packs[0]), Flip: 1})
	for _, tag := range []string{"base", "child"} {
		cmd := p.command("cat", p.ref(tag), "cow.raw")
		got, err := cmd.Output()
		if exitOf(err) != exitContent || !bytes.HasPrefix(files[0].Data, got) {
			t.Errorf("%s: a rotten pack is read with %v, %d bytes came", tag, err, len(got))
		}
		if tag == "child" {
			if got := p.run("cat", p.ref(tag), "memory-ranges"); !bytes.Equal(got, files[1].Data) {
				t.Error("what does not lie in the rotten pack is not read")
			}
		}
	}
	// Another push shares it too: it is trusted to the registry.
	push("grandchild", "--base", p.ref("child"))
	if got := p.layers("grandchild"); !slices.Contains(got, packs[0]) {
		t.Errorf("the rotten pack is not shared: %v", got)
	}
	// Without a base and with other frames it is not.
	push("anew", "--base", "none", "--zstd", "9")
	if got := p.run("cat", p.ref("anew"), "cow.raw"); !bytes.Equal(got, files[0].Data) {
		t.Error("a push without a base is not read")
	}
	// A pack that is gone is sent again.
	p.front.Clear()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Method(http.MethodHead, packs[0]), Status: http.StatusNotFound})
	p.front.Reset()
	push("whole", "--base", p.ref("child"))
	if got := p.run("cat", p.ref("whole"), "cow.raw"); !bytes.Equal(got, files[0].Data) {
		t.Error("what was sent again is not read")
	}
}

// pushPair pushes two snapshots of a VM, the second with the first as its
// base, and returns the files of the second.
func (p *trip) pushPair() []artifacttest.File {
	seed := uint64(time.Now().UnixNano())
	p.t.Logf("seed %d", seed)
	first, second := tripFiles(rand.New(rand.NewPCG(seed, 2)))
	export := filepath.Join(p.dir, "export.tar")
	for i, files := range [][]artifacttest.File{first, second} {
		must(p.t, os.WriteFile(export, artifacttest.Tar(artifacttest.Envelope, files), 0o600))
		p.run("push", "--format", "packed", "--input", export, p.ref([]string{"first", "second"}[i]), "--base", []string{"none", p.ref("first")}[i])
	}
	return second
}

// check reads an artifact by cat, and through a mount where there can be one.
func (p *trip) check(tag string, files []artifacttest.File) {
	p.t.Helper()
	for _, f := range files {
		if got := p.run("cat", p.ref(tag), f.Name); !bytes.Equal(got, f.Data) {
			p.t.Errorf("%s of %s differs", f.Name, tag)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		return
	}
	p.run("doctor", p.ref(tag))
	dir := p.t.TempDir()
	p.run("mount", p.ref(tag), dir)
	defer p.run("umount", dir)
	for _, f := range files {
		if got, err := os.ReadFile(filepath.Join(dir, f.Name)); err != nil || !bytes.Equal(got, f.Data) {
			p.t.Errorf("%s of %s differs in the mount: %v", f.Name, tag, err)
		}
	}
}

// What copies artifacts without knowing the format copies all of a packed one.
func TestCraneCopiesPacked(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	from := newTrip(t, registrytest.InMemory(t))
	files := from.pushPair()
	to := newTrip(t, registrytest.NewFront(t, &registrytest.Particular{}))
	must(t, crane.Copy(from.ref("second"), to.ref("copied"), crane.Insecure, crane.WithContext(t.Context())))
	to.check("copied", files)
	if a, b := from.layers("second"), to.layers("copied"); !slices.Equal(a, b) {
		t.Errorf("layers %v became %v", a, b)
	}
}

// A garbage collection keeps a child whole whose base's manifest was deleted.
func TestCollectionKeepsChildren(t *testing.T) {
	tier.Long(t, "runs Debian's docker-registry")
	t.Parallel()
	debian := registrytest.Debian(t, registrytest.DebianOptions{})
	p := newTrip(t, registrytest.Before(t, debian.URL))
	files := p.pushPair()
	base, shared := p.manifest("first"), 0
	for _, d := range p.layers("second") {
		if slices.Contains(p.layers("first"), d) {
			shared++
		}
	}
	if shared == 0 {
		t.Fatal("the child shares nothing")
	}
	blob := func() int {
		resp, err := http.Get(debian.URL + "/v2/vm/blobs/" + base.Config.Digest)
		must(t, err)
		must(t, resp.Body.Close())
		return resp.StatusCode
	}
	if got := blob(); got != http.StatusOK {
		t.Fatalf("the base's config: status %d", got)
	}
	digest, err := crane.Digest(p.ref("first"), crane.Insecure, crane.WithContext(t.Context()))
	must(t, err)
	must(t, crane.Delete(p.front.Host+"/vm@"+digest, crane.Insecure, crane.WithContext(t.Context())))
	debian.Collect(t)
	if got := blob(); got != http.StatusNotFound {
		t.Errorf("the base's config after the collection: status %d", got)
	}
	p.check("second", files)
}
