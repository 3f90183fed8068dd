package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// cutter encodes the family in granules of some size, or in chunks as v2
// has them, and adds up what that comes to. It sends nothing.
type cutter struct {
	enc     *zstdframe.Encoder
	granule int64 // bytes; 0: chunks of 4 MiB of the payload

	memory, disk, again   int64   // bytes stored, stored, sent
	encoding, decoding    float64 // processor seconds, of the first memory
	index, touched, pages int64   // bytes
}

// granulesRow compares sizes of granules with v2.
func granulesRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	enc, err := zstdframe.NewEncoder(3, 1)
	if err != nil {
		return nil, err
	}
	v2 := &cutter{enc: enc}
	if err := v2.cut(f); err != nil {
		return nil, err
	}
	var lines []*line
	for _, size := range []int64{16 << 10, 32 << 10, 64 << 10, 128 << 10} {
		if err := ctx.Err(); err != nil {
			return lines, err
		}
		c := &cutter{enc: enc, granule: size}
		if err := c.cut(f); err != nil {
			return lines, err
		}
		lines = append(lines, c.lines(v2)...)
	}
	return lines, nil
}

// lines are the figures of a cutter beside those of v2.
func (c *cutter) lines(v2 *cutter) []*line {
	work := fmt.Sprintf("%d KiB: ", c.granule>>10)
	return []*line{
		sized(work+"stored size of a memory", c.memory, inV2, v2.memory, 1.05),
		sized(work+"stored size of a disk", c.disk, inV2, v2.disk, 1.15),
		sized(work+"second push, 30 s later", c.again, inV2, v2.again, 0.35),
		counted(work+"index of a memory", "MB", megabytes(c.index), no, 0),
		counted(work+"granules that a guest's start uses", "MB", megabytes(c.touched), atMost, 45),
		counted(fmt.Sprintf("%sgranules of %d random pages", work, randomReads), "MB", megabytes(c.pages), atMost, 10),
		timed(work+"processor time to hash and encode a memory", sample{c.encoding}, inV2, sample{v2.encoding}, no, 0),
		timed(work+"processor time to decode it", sample{c.decoding}, inV2, sample{v2.decoding}, no, 0),
	}
}

// cut encodes the first memory, what the second has beside it, and the
// disk.
func (c *cutter) cut(f *family) error {
	m, data, err := readExport(f.first, memoryTitle)
	if err != nil {
		return err
	}
	known := map[packed.Sum]int64{}
	began := processorTime()
	frames, err := c.encode(m, data, known)
	if err != nil {
		return err
	}
	c.encoding, c.memory = processorTime()-began, frames.stored
	if err := c.decode(frames); err != nil {
		return err
	}
	if c.granule > 0 {
		if err := c.uses(f, m, frames); err != nil {
			return err
		}
	}
	if m, data, err = readExport(f.second, memoryTitle); err != nil {
		return err
	}
	if frames, err = c.encode(m, data, known); err != nil {
		return err
	}
	c.again = frames.stored
	if m, data, err = readExport(f.disk, diskTitle); err != nil {
		return err
	}
	frames, err = c.encode(m, data, map[packed.Sum]int64{})
	if err == nil {
		c.disk = frames.stored
	}
	return err
}

// cutFrames is a file's payload, encoded.
type cutFrames struct {
	stored int64    // bytes that were not known
	frames [][]byte // those
	sizes  []int64  // of their contents
	each   []packed.Granule
}

// encode encodes what is not known yet. known has stored sizes.
func (c *cutter) encode(m *sparse.Map, data []byte, known map[packed.Sum]int64) (*cutFrames, error) {
	f := &cutFrames{}
	one := func(off, n int64) {
		sum := packed.Sum(sha256.Sum256(data[off : off+n]))
		size, ok := known[sum]
		if !ok {
			frame := c.enc.Encode(nil, data[off:off+n])
			size = int64(len(frame))
			known[sum] = size
			f.stored += size
			f.frames, f.sizes = append(f.frames, frame), append(f.sizes, n)
		}
		f.each = append(f.each, packed.Granule{Offset: f.stored - size, Stored: size, Sum: sum})
	}
	if c.granule == 0 {
		const chunk = 4 << 20
		for off := int64(0); off < int64(len(data)); off += chunk {
			one(off, min(chunk, int64(len(data))-off))
		}
		return f, nil
	}
	slots := packed.NewSlots(m, c.granule)
	for i := range slots.Granules() {
		one(slots.Extent(i))
	}
	return f, nil
}

func (c *cutter) decode(f *cutFrames) error {
	var buf []byte
	began := processorTime()
	for i, frame := range f.frames {
		var err error
		if buf, err = zstdframe.Decode(buf[:0], frame, f.sizes[i]); err != nil {
			return err
		}
	}
	c.decoding = processorTime() - began
	return nil
}

// uses adds up the index, and the granules that a start and random reads
// take.
func (c *cutter) uses(f *family, m *sparse.Map, frames *cutFrames) error {
	slots, stored := packed.NewSlots(m, c.granule), map[int64]int64{}
	w := packed.NewWriter(c.granule, c.enc)
	packs := make([]packed.Pack, frames.stored>>23+1) // of 8 MiB
	for i, g := range frames.each {
		stored[slots.Slot(i)] = g.Stored
		g.Pack, g.Offset = int(max(g.Offset, 0)>>23), max(g.Offset, 0)&(1<<23-1)
		if err := w.Add(slots.Slot(i), g); err != nil {
			return err
		}
	}
	index, _, err := w.Finish(m, packs)
	if err != nil {
		return err
	}
	touched, err := touchedPages(f)
	if err != nil {
		return err
	}
	sum := func(offsets []int64) (n int64) {
		did := map[int64]bool{}
		for _, off := range offsets {
			if slot := off / c.granule; !did[slot] {
				did[slot] = true
				n += stored[slot]
			}
		}
		return n
	}
	c.index, c.touched, c.pages = int64(len(index)), sum(touched), sum(f.randomIn(randomReads, 1))
	return nil
}

// readExport returns the map and the payload of an export's file.
func readExport(file, title string) (*sparse.Map, []byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	r := tar.NewReader(bufio.NewReaderSize(f, 1<<20))
	for {
		hdr, err := r.Next()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", file, title, err)
		}
		if hdr.Name != title {
			continue
		}
		m, err := mapOf(hdr)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", file, title, err)
		}
		data, err := io.ReadAll(r)
		return m, data, err
	}
}

// processorTime returns the processor time of this process, in seconds.
func processorTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // has no other error than a wrong argument
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
