package main

import (
	"context"
	"fmt"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// Bounds of the indexes that inspect reads in full. It fetches them; those
// of a disk of 100 GiB have some 100 MB and 3 million granules.
const (
	mostIndex    = 32 << 20 // bytes
	mostGranules = 1 << 20
)

// inspectedPacks describes the packs of a packed artifact. Sizes are in
// bytes.
type inspectedPacks struct {
	Base   string `json:"base,omitempty"` // digest of the base's manifest
	Packs  int    `json:"packs"`
	Stored int64  `json:"stored"`
	Live   *int64 `json:"live,omitempty"`   // part of Stored in use; nil if the indexes are too large to be read
	Shared *int64 `json:"shared,omitempty"` // part of Stored in packs of the base; nil if the base is not known
}

// inspectPacks returns the totals of a packed artifact's packs, or nil for
// another artifact.
func inspectPacks(ctx context.Context, o *mounting.Opened) (*inspectedPacks, error) {
	a := o.Artifact
	if a.Manifest.ArtifactType != manifest.ArtifactTypePacked {
		return nil, nil
	}
	p := &inspectedPacks{Base: a.Config.Base}
	packs := map[string]int64{}
	var indexes, granules int64
	for _, f := range a.Files {
		if f.Index == nil {
			continue
		}
		indexes += f.Index.Size
		granules += int64(f.Index.Granules())
		for _, pk := range f.Index.Head.Packs {
			packs[digests.Format(pk.Digest)] = pk.Size
		}
	}
	for _, size := range packs {
		p.Packs++
		p.Stored += size
	}
	if indexes <= mostIndex && granules <= mostGranules {
		live, err := liveBytes(ctx, a.Files)
		if err != nil {
			return nil, err
		}
		p.Live = &live
	}
	p.Shared = sharedPacks(ctx, o, packs)
	return p, nil
}

// liveBytes returns the bytes of packs that the files' granules take.
func liveBytes(ctx context.Context, files []*layout.File) (n int64, err error) {
	type frame struct {
		pack   [32]byte
		offset int64
	}
	seen := map[frame]bool{}
	for _, f := range files {
		if f.Index == nil {
			continue
		}
		head := f.Index.Head
		for _, ref := range head.Sections {
			s, err := f.Index.Section(ctx, ref.Number)
			if err != nil {
				return 0, err
			}
			for _, g := range s.All() {
				if at := (frame{head.Packs[g.Pack].Digest, g.Offset}); !seen[at] {
					seen[at] = true
					n += g.Stored
				}
			}
		}
	}
	return n, nil
}

// sharedPacks returns the bytes of packs that the base's manifest lists too,
// or nil if the registry no longer has the base.
func sharedPacks(ctx context.Context, o *mounting.Opened, packs map[string]int64) *int64 {
	if o.Artifact.Config.Base == "" {
		return new(int64)
	}
	raw, _, err := o.Registry.GetManifest(ctx, o.Reference.Repository, o.Artifact.Config.Base)
	if err != nil {
		return nil
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil
	}
	var n int64
	counted := map[string]bool{}
	for _, d := range m.Layers {
		if size, ok := packs[d.Digest]; ok && !counted[d.Digest] {
			counted[d.Digest] = true
			n += size
		}
	}
	return &n
}

// rows returns the lines that inspect prints.
func (p *inspectedPacks) rows() [][2]string {
	text := fmt.Sprintf("%d, %s", p.Packs, size(p.Stored))
	if p.Live != nil {
		text += fmt.Sprintf(", %s of it in use", size(*p.Live))
	}
	rows := [][2]string{{"packs", text}}
	if p.Base == "" {
		return rows
	}
	shared := "the registry no longer has it"
	if p.Shared != nil {
		shared = size(*p.Shared) + " of the packs are shared with it"
	}
	return append(rows, [2]string{"base", p.Base + ": " + shared})
}
