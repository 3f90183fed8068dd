package mounting

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// Bytes of a blob that can be checked only as a whole get to readers, and
// into the kernel's pages, before it is found to be wrong; then they are in
// neither.
func TestPagesAreForgotten(t *testing.T) {
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{5}).Read(data)
	p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{}))
	p.cfg.ReadTimeout = 0
	o, m, end := p.mounted()
	defer end()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path(o.Artifact.Files[0].Parts[0].Digest), Flip: 5})
	name := filepath.Join(m.Dir(), "memory-ranges")
	head, err := exec.Command("head", "-c", "4096", name).Output()
	if err != nil || bytes.Equal(head, data[:4096]) {
		t.Fatalf("the source does not lie: %v", err)
	}
	p.front.Clear()
	var out []byte
	p.poll("right bytes", func() bool {
		out, err = exec.Command("cat", name).Output()
		return err == nil && bytes.Equal(out, data)
	}, func() { t.Logf("%d bytes, %v", len(out), err) })
}
