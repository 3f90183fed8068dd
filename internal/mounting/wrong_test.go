package mounting

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// large is an artifact of one file that can be checked only as a whole.
func large(seed byte) (*artifacttest.Artifact, []byte) {
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	return artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{}), data
}

// TestWrongBitsThenWholeBlobs has one range of a blob come wrong, which is
// read and mapped. Then the registry ignores ranges, and all of the blob
// passes: from then on all readers have right bytes, those with the file open
// or mapped too, and what was wrong is counted.
func TestWrongBitsThenWholeBlobs(t *testing.T) {
	t.Parallel()
	artifact, data := large(6)
	p := newPlace(t, registrytest.NewHandler(), artifact)
	p.cfg.ReadTimeout = 0
	o, m, end := p.mounted()
	defer end()
	blob := registrytest.Path(o.Artifact.Files[0].Parts[0].Digest)
	p.front.Inject(&registrytest.Fault{Match: blob, Flip: 5, Times: 1})
	name := filepath.Join(m.Dir(), "memory-ranges")
	reader := startMapper(t, name)
	defer reader.end()
	if bytes.Equal(reader.ask("map", 0, 4096), data[:4096]) {
		t.Fatal("the source does not lie")
	}
	reader.write(8192, data[8192]^1) // a page of the guest's own
	p.front.Inject(&registrytest.Fault{Match: blob, Whole: true})
	reader.ask("read", len(data)-4096, 4096)

	open, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	p.poll("the seal", func() bool { _, sealed := open.Backing(); return sealed }, func() {})
	backing, _ := open.Backing()
	if onDisk, err := io.ReadAll(io.NewSectionReader(backing, 0, 1<<40)); err != nil || !bytes.Equal(onDisk, data) {
		t.Errorf("the sealed file has wrong bytes: %v", err)
	}
	var got []byte
	p.poll("right bytes in the mapping", func() bool { got = reader.ask("map", 0, 4096); return bytes.Equal(got, data[:4096]) }, func() {})
	if got = reader.ask("read", 0, 4096); !bytes.Equal(got, data[:4096]) {
		t.Error("who has the file open reads wrong bytes")
	}
	if got = reader.ask("map", 8192, 4096); got[0] != data[8192]^1 || !bytes.Equal(got[1:], data[8193:8192+4096]) {
		t.Error("a page that was written to is another")
	}
	if got, err = exec.Command("cat", name).Output(); err != nil || !bytes.Equal(got, data) {
		t.Errorf("a new open reads wrong bytes, or %v", err)
	}
	s := o.Status(m, time.Now())
	if s.Wrong.Pieces != 1 || s.Wrong.FoundBy["stream"] != 1 {
		t.Errorf("counted are %+v", s.Wrong)
	}
	if text := (&control.Mount{Wrong: s.Wrong}).Sentence(time.Now()); !strings.Contains(text, "1 piece:") {
		t.Errorf("the sentence is %q", text)
	}
}

// TestWrongPieceUnderPassthrough has bits rot in a file that the kernel reads
// by itself, which another process finds: the piece is fetched again although
// nobody asks for it, and who has the file open reads right bytes.
func TestWrongPieceUnderPassthrough(t *testing.T) {
	t.Parallel()
	artifact, data := large(7)
	p := newPlace(t, registrytest.NewHandler(), artifact)
	p.cfg.ReadTimeout = 0
	o, m, end := p.mounted()
	defer end()
	name := filepath.Join(m.Dir(), "memory-ranges")
	if got, err := exec.Command("cat", name).Output(); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	open, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	p.poll("the seal", func() bool { _, sealed := open.Backing(); return sealed }, func() {})
	reader := startMapper(t, name)
	defer reader.end()
	reader.ask("map", 1<<20, 4096)
	if m.Usage("memory-ranges").Passthrough == 0 {
		t.Log("no passthrough on this machine: what is tried is a file that the process reads")
	}
	files, err := filepath.Glob(filepath.Join(p.cfg.CacheDir, "files", "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{^data[1<<20]}, 1<<20); err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(p.cfg.CacheDir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	right := data[1<<20 : 1<<20+4096]
	p.poll("right bytes", func() bool {
		return bytes.Equal(reader.ask("read", 1<<20, 4096), right) && bytes.Equal(reader.ask("map", 1<<20, 4096), right)
	}, func() {})
	p.poll("the count", func() bool { return o.Status(m, time.Now()).Wrong.FoundBy["elsewhere"] == 1 }, func() {})
	p.poll("the seal", func() bool { _, sealed := open.Backing(); return sealed }, func() {})
}
