package snapshot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

const (
	// leastPack is the smallest nominal size of a pack, in bytes. A registry
	// without Range sends a whole pack for one granule.
	leastPack = 8 << 20

	// packedLevel is the default zstd level.
	packedLevel = 3

	// batchBytes is the part of a file that one worker hashes and compresses
	// at a time.
	batchBytes = 1 << 20
)

// packer stores files in the packed format. The caller of store reads
// batches of granules; workers hash and compress them; one goroutine assigns
// each new granule its place in a pack, in order; others upload full packs.
// The numbers of batches and packs bound the memory.
type packer struct {
	u       *push
	ctx     context.Context
	g       *errgroup.Group
	enc     *zstdframe.Encoder
	granule int64 // least size of granules, in bytes
	nominal int64 // size of packs, in bytes

	known *granuleSet
	packs *packSet
	files []*packedFile

	batches chan *batch // free ones
	work    chan *batch // for the workers
	order   chan *batch // for the placer, in the order of the files
	placed  chan struct{}
	stopped bool

	open    int32  // the pack that is being filled, or noPack
	buf     []byte // its bytes so far
	buffers chan []byte
}

// packedFile is a file whose granules are known.
type packedFile struct {
	f       *storedFile
	e       *exportEntry
	m       *sparse.Map
	granule int64
	ids     []uint32 // ids in granuleSet, of the slots that hold data, ascending
}

// batch is a run of granules of one file.
type batch struct {
	file   *packedFile
	data   []byte
	sizes  []int
	sums   []packed.Sum
	frames [][]byte // nil for a granule that had a place
	out    []byte   // holds frames
	done   chan struct{}
	last   bool // of its file
}

// startPacker sets the push's packer, and loads the base.
func (u *push) startPacker(ctx context.Context, g *errgroup.Group) error {
	if base := u.opts.Base; base != nil && u.opts.MountFrom == "" && base.Name != u.opts.Name {
		u.opts.MountFrom = base.Name
	}
	p, err := newPacker(ctx, g, u)
	if err != nil {
		return err
	}
	u.packer = p
	return p.loadBase(ctx)
}

// newPacker returns a packer whose goroutines belong to g and end with stop.
func newPacker(ctx context.Context, g *errgroup.Group, u *push) (*packer, error) {
	level := u.opts.Zstd
	if level == 0 {
		level = packedLevel
	}
	workers := runtime.GOMAXPROCS(0)
	enc, err := zstdframe.NewEncoder(level, workers)
	if err != nil {
		return nil, err
	}
	p := &packer{
		u: u, ctx: ctx, g: g, enc: enc,
		granule: u.opts.Granule, nominal: leastPack,
		known: newGranuleSet(), packs: &packSet{},
		batches: make(chan *batch, 2*workers+2), work: make(chan *batch), order: make(chan *batch, 2*workers+2),
		placed: make(chan struct{}), open: noPack,
	}
	if p.granule == 0 {
		p.granule = packed.DefaultGranule
	}
	for range cap(p.batches) {
		p.batches <- &batch{}
	}
	for range workers {
		g.Go(p.compress)
	}
	g.Go(p.place)
	return p, nil
}

// begin sets the size of packs, before the first file is stored. It is the
// same for the whole artifact.
func (p *packer) begin(nominal int64) {
	memory := p.u.opts.Memory
	if memory == 0 {
		memory = defaultMemory
	}
	// A quarter is reserved for garbage.
	fit := memory - memory/4 - baseMemory
	for p.nominal = leastPack; p.nominal < nominal && 4*p.nominal <= fit; p.nominal *= 2 {
	}
	n := min(max(fit/p.nominal, 1), int64(p.u.uploads())+1)
	p.buffers = make(chan []byte, n)
	for range n {
		p.buffers <- nil
	}
}

// store reads a file and starts the uploads of its granules.
func (p *packer) store(f *storedFile, e *exportEntry) error {
	file, err := p.newFile(f, e)
	if err != nil {
		return err
	}
	if len(p.files) == 0 {
		p.begin(p.u.packSize(e))
	}
	p.files = append(p.files, file)
	b, err := receive(p.ctx, p.batches)
	if err != nil {
		return err
	}
	b.reset(file)
	for _, n := range file.granules() {
		if len(b.data)+n > batchBytes && len(b.sizes) > 0 {
			if b, err = p.next(b); err != nil {
				return err
			}
		}
		at := len(b.data)
		b.data = append(b.data, make([]byte, n)...)
		if _, err := io.ReadFull(e.body, b.data[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return asInput(err)
		}
		b.sizes = append(b.sizes, n)
	}
	b.last = true
	return p.send(b)
}

func (p *packer) newFile(f *storedFile, e *exportEntry) (*packedFile, error) {
	file := &packedFile{f: f, e: e, m: sparse.Dense(e.size)}
	if e.mapText != "" {
		var err error
		if file.m, err = sparse.Parse(e.mapText, e.sparseSize); err != nil {
			return nil, asInput(err)
		}
	}
	var err error
	if file.granule, err = packed.GranuleFor(file.m.Size(), p.granule); err != nil {
		return nil, asInput(wrong("%s: %v", e.name, err))
	}
	return file, nil
}

// granules yields every slot of the file that holds data, and the number of
// its bytes.
func (f *packedFile) granules() func(yield func(slot int64, n int) bool) {
	return func(yield func(int64, int) bool) {
		for off, ok := f.m.SeekData(0); ok; {
			slot := off / f.granule
			end := (slot + 1) * f.granule
			if n := f.m.PayloadAt(end) - f.m.PayloadAt(slot*f.granule); !yield(slot, int(n)) {
				return
			}
			off, ok = f.m.SeekData(end)
		}
	}
}

func (b *batch) reset(file *packedFile) {
	if b.out == nil {
		b.out = make([]byte, 0, batchBytes+batchBytes/16)
		b.data = make([]byte, 0, batchBytes)
	}
	*b = batch{
		file: file, data: b.data[:0], sizes: b.sizes[:0], sums: b.sums[:0], frames: b.frames[:0], out: b.out[:0],
		done: make(chan struct{}),
	}
}

// next passes a batch on, and returns a free one for the same file.
func (p *packer) next(b *batch) (*batch, error) {
	if err := p.send(b); err != nil {
		return nil, err
	}
	file := b.file
	b, err := receive(p.ctx, p.batches)
	if err != nil {
		return nil, err
	}
	b.reset(file)
	return b, nil
}

func (p *packer) send(b *batch) error {
	for _, to := range []chan *batch{p.order, p.work} {
		select {
		case to <- b:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	return nil
}

func receive[T any](ctx context.Context, from <-chan T) (v T, err error) {
	select {
	case v = <-from:
		return v, nil
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}

// compress hashes the granules of batches, and compresses those without a
// place.
func (p *packer) compress() error {
	for b := range p.work {
		data := b.data
		for _, n := range b.sizes {
			sum := sha256.Sum256(data[:n])
			b.sums = append(b.sums, sum)
			var frame []byte
			if _, ok := p.known.find(sum); !ok {
				at := len(b.out)
				frame = p.enc.Encode(b.out[at:at], data[:n])
				if cap(b.out) >= at+len(frame) {
					b.out = b.out[:at+len(frame)]
				}
			}
			b.frames = append(b.frames, frame)
			data = data[n:]
		}
		close(b.done)
	}
	return nil
}

// place assigns places to granules, in the order of the files.
func (p *packer) place() error {
	defer close(p.placed)
	for b := range p.order {
		if _, err := receive(p.ctx, b.done); err != nil {
			return err
		}
		for i, sum := range b.sums {
			id, err := p.put(sum, b.frames[i])
			if err != nil {
				return err
			}
			b.file.ids = append(b.file.ids, id)
		}
		if b.last {
			// Files do not share new packs, so that reading on in a file is
			// one long range.
			if err := p.closePack(); err != nil {
				return err
			}
		}
		p.batches <- b
	}
	return nil
}

// put returns the id of a granule. It writes the granule to the open pack if
// it has no place yet.
func (p *packer) put(sum packed.Sum, frame []byte) (uint32, error) {
	if id, ok := p.known.find(sum); ok {
		return id, nil
	}
	if p.open != noPack && int64(len(p.buf)+len(frame)) > p.nominal {
		if err := p.closePack(); err != nil {
			return 0, err
		}
	}
	if p.open == noPack {
		var err error
		if p.buf, err = receive(p.ctx, p.buffers); err != nil {
			return 0, err
		}
		if p.buf == nil {
			p.buf = make([]byte, 0, p.nominal)
		}
		p.open = p.packs.open()
	}
	place := granulePlace{pack: p.open, offset: uint32(len(p.buf)), stored: uint32(len(frame))}
	p.buf = append(p.buf, frame...)
	return p.known.add(sum, place), nil
}

// closePack starts the upload of the open pack.
func (p *packer) closePack() error {
	if p.open == noPack {
		return nil
	}
	i, data := p.open, p.buf
	p.open, p.buf = noPack, nil
	if i >= packed.MaxPacks {
		return fmt.Errorf("snapshot push: more than %d packs; more memory for the push makes fewer, larger ones", packed.MaxPacks)
	}
	p.g.Go(func() error {
		digest := digests.Of(data)
		p.packs.close(i, digest, int64(len(data)))
		if err := p.u.putBytes(p.ctx, digest, data); err != nil {
			return fmt.Errorf("upload pack: %w", err)
		}
		p.buffers <- data[:0]
		return nil
	})
	return nil
}

// stop ends the goroutines; uploads of packs may still run.
func (p *packer) stop() {
	if !p.stopped {
		p.stopped = true
		close(p.work)
		close(p.order)
	}
}

// wait blocks until every granule that was read has a place.
func (p *packer) wait() error {
	p.stop()
	_, err := receive(p.ctx, p.placed)
	return err
}

// uploads returns the number of concurrent uploads of blobs.
func (u *push) uploads() int {
	if n := u.opts.Concurrency; n > 0 {
		return n
	}
	return defaultUploads
}

// packSize returns the nominal size of packs: the smallest power of two,
// from leastPack up, with which the artifact has fewer than fewLayers. e is
// the first packed file.
func (u *push) packSize(e *exportEntry) int64 {
	total := int64(0)
	for _, n := range u.src.export.sizes {
		total += n
	}
	if u.src.export.sizes == nil {
		total = e.size + u.chunks.rest(&u.src.export.envelope.Config, sparse.MaxSize)
	}
	shared := int64(0)
	if base := u.opts.Base; base != nil {
		shared = int64(len(base.Artifact.Manifest.Layers))
	}
	size := int64(leastPack)
	for total/size >= max(fewLayers-layersAside-shared, fewLayers/4) {
		size *= 2
	}
	return size
}
