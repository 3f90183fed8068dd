package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// ErrBaseGone is wrapped by the error about a pack of the base that the
// registry has lost and whose contents cannot be read again.
var ErrBaseGone = errors.New("a pack of the base is gone")

// PushBase is a packed artifact whose packs a push shares.
type PushBase struct {
	Artifact *Artifact
	Name     string // its repository, in the target registry
}

const (
	// keptShare is the share of a pack that must be in use for the pack to
	// be shared, and the share of the nominal size below which a pack is
	// small: one quarter.
	keptShare = 4

	// mostSmall bounds the small packs that an artifact shares.
	mostSmall = 16

	// looksAtOnce bounds the concurrent requests for packs of the base.
	looksAtOnce = 8
)

// digest returns the digest of the base's manifest, or "" without a base.
func (b *PushBase) digest() string {
	if b == nil {
		return ""
	}
	return b.Artifact.Digest
}

// loadBase records the places of the base's granules. Packs that are not
// worth sharing, or that the registry does not have, count as missing: their
// granules are written again if needed.
func (p *packer) loadBase(ctx context.Context) error {
	base := p.u.opts.Base
	if base == nil {
		return nil
	}
	numbers := map[packed.Sum]int32{}
	for _, f := range base.Artifact.Files {
		if f.Index == nil {
			continue
		}
		head := f.Index.Head
		local := make([]int32, len(head.Packs))
		for i, pk := range head.Packs {
			n, ok := numbers[pk.Digest]
			if !ok {
				n = p.packs.open()
				p.packs.packs[n] = pack{digest: digests.Format(pk.Digest), size: pk.Size, base: true}
				numbers[pk.Digest] = n
			}
			local[i] = n
		}
		for _, ref := range head.Sections {
			s, err := f.Index.Section(ctx, ref.Number)
			if err != nil {
				return fmt.Errorf("base %s: %w", f.Name, err)
			}
			for _, g := range s.All() {
				p.known.add(g.Sum, granulePlace{pack: local[g.Pack], offset: uint32(g.Offset), stored: uint32(g.Stored)})
			}
		}
	}
	for i := range p.packs.packs {
		for p.nominal < p.packs.packs[i].size {
			p.nominal *= 2
		}
	}
	poor := p.poorPacks(p.usage(nil))
	if err := p.askFor(ctx, poor); err != nil {
		return err
	}
	p.forget(poor)
	return nil
}

// usage returns the used bytes of every pack: by the given files, or by all
// known granules if files is nil.
func (p *packer) usage(files []*packedFile) []int64 {
	used := make([]int64, len(p.packs.now()))
	count := func(id uint32) {
		if place := p.known.places[id]; place.pack != noPack {
			used[place.pack] += int64(place.stored)
		}
	}
	if files == nil {
		for id := range p.known.places {
			count(uint32(id))
		}
		return used
	}
	seen := make([]bool, len(p.known.places))
	for _, f := range files {
		for _, id := range f.ids {
			if !seen[id] {
				seen[id] = true
				count(id)
			}
		}
	}
	return used
}

// poorPacks returns the packs of the base that are not worth sharing: those
// of which little is in use, and the small ones if they are many.
func (p *packer) poorPacks(used []int64) map[int32]bool {
	poor := map[int32]bool{}
	var small []int32
	for i, pk := range p.packs.now() {
		switch {
		case !pk.base || used[i] == 0:
		case used[i] < pk.size/keptShare:
			poor[int32(i)] = true
		case pk.size < p.nominal/keptShare:
			small = append(small, int32(i))
		}
	}
	if len(small) > mostSmall {
		for _, i := range small {
			poor[i] = true
		}
	}
	return poor
}

// askFor asks the registry for the packs of the base that are not in poor,
// mounts those in another repository, and adds those that it does not have
// to poor.
func (p *packer) askFor(ctx context.Context, poor map[int32]bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(looksAtOnce)
	packs := p.packs.now()
	missing := make([]bool, len(packs))
	for i, pk := range packs {
		if pk.base && !poor[int32(i)] {
			g.Go(func() error {
				there, err := p.u.there(ctx, pk.digest)
				missing[i] = !there
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, gone := range missing {
		if gone {
			p.u.warn("pack %s of the base is not in the registry: what is needed of it is sent again", packs[i].digest)
			poor[int32(i)] = true
		}
	}
	return nil
}

// forget removes the places of granules in the given packs, and returns the
// number of granules.
func (p *packer) forget(packs map[int32]bool) (n int) {
	if len(packs) == 0 {
		return 0
	}
	for id := range p.known.places {
		if place := &p.known.places[id]; packs[place.pack] {
			place.pack = noPack
			n++
		}
	}
	return n
}

// settle makes sure that every granule is in a pack that is worth keeping
// and that the registry has. It reads the others again from the source. If
// the source cannot be read again, packs of little use stay; the next push
// finds them and does not share them.
func (p *packer) settle(ctx context.Context) error {
	if err := p.wait(); err != nil {
		return err
	}
	used := p.usage(p.files)
	bad := map[int32]bool{}
	again := p.readable()
	if again {
		bad = p.poorPacks(used)
	}
	for i, n := range used {
		if n == 0 {
			bad[int32(i)] = true // it was not asked for
		}
	}
	few := len(bad)
	if err := p.askFor(ctx, bad); err != nil {
		return err
	}
	if len(bad) > few && !again {
		return fmt.Errorf("%w: it went away during the push", ErrBaseGone)
	}
	p.forget(bad)
	for i, pk := range p.packs.now() {
		if pk.base && !bad[int32(i)] {
			p.u.blobs.count(pk.digest, pk.size, false)
		}
	}
	return p.rewrite(ctx)
}

// readable reports whether every file can be read a second time.
func (p *packer) readable() bool {
	for _, f := range p.files {
		if f.e.again == nil {
			return false
		}
	}
	return true
}

// rewrite writes the granules without a place again.
func (p *packer) rewrite(ctx context.Context) error {
	buf := make([]byte, packed.MaxGranule)
	for _, f := range p.files {
		i := 0
		for slot, n := range f.granules() {
			id := f.ids[i]
			i++
			if p.known.places[id].pack != noPack {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			data := buf[:n]
			if _, err := f.e.again.ReadAt(data, f.m.PayloadAt(slot*f.granule)); err != nil {
				return asInput(err)
			}
			if sha256.Sum256(data) != p.known.sums[id] {
				return asInput(wrong("%s has changed while it was read", f.e.name))
			}
			if _, err := p.put(p.known.sums[id], p.enc.Encode(nil, data)); err != nil {
				return err
			}
		}
		if err := p.closePack(); err != nil {
			return err
		}
	}
	return nil
}

func sumOf(digest string) (sum packed.Sum, err error) {
	sum, ok := digests.Parse(digest)
	if !ok {
		return sum, wrong("%q is not a sha256 digest", digest)
	}
	return sum, nil
}
