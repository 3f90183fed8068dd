package mounting

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/packedtest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

const (
	granule     = packed.MinGranule
	inSection   = 16 // granules
	sectionData = inSection * granule
	sectionSize = packed.SectionSlots * granule // with its holes
)

// sections makes an artifact of one file whose index has n sections, and
// returns the file's data, of which each section has as much.
func sections(n int) (*artifacttest.Artifact, []byte) {
	data := make([]byte, n*sectionData)
	artifacttest.Fill(data, 5)
	blobs := map[string][]byte{}
	x := packedtest.NewRaw("memory-ranges", data, granule, blobs)
	all := x.Sections[0].Granules
	x.Sections, x.Segments = nil, nil
	for i := range n {
		x.Sections = append(x.Sections, packedtest.RawSection{Number: uint32(i), Granules: all[i*inSection:][:inSection]})
		gap := uint64(sectionSize - sectionData)
		if i == 0 {
			gap = 0
		}
		x.Segments = append(x.Segments, [2]uint64{gap, sectionData})
	}
	x.Size = uint64(n-1)*sectionSize + sectionData
	return packedtest.RawArtifact([]*packedtest.Raw{x}, blobs, nil), data
}

// readSections reads the first granule of every section, all at a time.
func readSections(t *testing.T, o *Opened, data []byte) error {
	f, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for i := range len(data) / sectionData {
		g.Go(func() error {
			got := make([]byte, granule)
			if _, err := f.ReadAt(t.Context(), got, int64(i)*sectionSize); err != nil {
				return err
			}
			if !bytes.Equal(got, data[i*sectionData:][:granule]) {
				t.Errorf("section %d: wrong bytes", i)
			}
			return nil
		})
	}
	return g.Wait()
}

// An index comes once, by sections, or whole if the registry ignores Range.
func TestIndexComesOnce(t *testing.T) {
	t.Parallel()
	a, data := sections(8)
	for _, whole := range []bool{false, true} {
		p := newPlace(t, registrytest.NewHandler(), a)
		if whole {
			p.front.Inject(&registrytest.Fault{Whole: true})
		}
		o := p.mustOpen(p.ref)
		if err := readSections(t, o, data); err != nil {
			t.Fatal(err)
		}
		x := o.Artifact.Files[0].Index
		if got := p.front.BlobBytes()[x.Digest]; got != x.Size {
			t.Errorf("ranges ignored: %v: %d bytes of an index of %d", whole, got, x.Size)
		}
	}
}

// Wrong bytes of an index are requested once more; then they are wrong content.
func TestWrongIndexIsForgotten(t *testing.T) {
	t.Parallel()
	a, data := sections(8)
	p := newPlace(t, registrytest.NewHandler(), a)
	first, err := p.open(p.ref) // to learn the index
	if err != nil {
		t.Fatal(err)
	}
	x := first.Artifact.Files[0].Index
	for _, whole := range []bool{true, false} {
		p.cfg.CacheDir = t.TempDir()
		p.front.Inject(&registrytest.Fault{Match: registrytest.Path(x.Digest), Times: 1, Whole: whole, Flip: 10})
		p.front.Inject(&registrytest.Fault{Whole: whole})
		if err := readSections(t, p.mustOpen(p.ref), data); err != nil {
			t.Errorf("the index came anew, and still: %v", err)
		}
		p.front.Clear()
	}
	p.cfg.CacheDir = t.TempDir()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path(x.Digest), Whole: true, Flip: 10})
	p.front.Inject(&registrytest.Fault{Whole: true})
	if err := readSections(t, p.mustOpen(p.ref), data); !errors.Is(err, layout.ErrContent) {
		t.Errorf("a wrong section: %v", err)
	}
}
