package qcow2

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxPieces bounds how many stretches one read or one hint looks up in
// advance.
const maxPieces = 4096

// ReadAt reads the disk.
func (q *Image) ReadAt(p []byte, off int64) (int, error) {
	n, end := vfs.Clip(p, off, q.size)
	for done := 0; done < n; {
		got, err := q.readPieces(p[done:n], off+int64(done))
		if err != nil {
			return done, err
		}
		done += got
	}
	return n, end
}

// readPieces reads up to maxPieces stretches, of which it asks for all before
// it reads the first.
func (q *Image) readPieces(p []byte, off int64) (done int, err error) {
	var pieces []stretch
	var hints []vfs.Extent
	for total := int64(0); total < int64(len(p)) && len(pieces) < maxPieces; {
		s, err := q.locate(off+total, int64(len(p))-total)
		if err != nil {
			return 0, err
		}
		pieces = append(pieces, s)
		if at, length, ok := q.place(s); ok {
			hints = append(hints, vfs.Extent{Offset: at, Length: length})
		}
		total += s.length
	}
	if len(hints) > 1 {
		vfs.Prefetch(q.file, hints)
	}
	for _, s := range pieces {
		if err := q.read(p[done:done+int(s.length)], off+int64(done), s); err != nil {
			return done, err
		}
		done += int(s.length)
	}
	return done, nil
}

// place returns the range of the file that a stretch is read from.
func (q *Image) place(s stretch) (at, length int64, ok bool) {
	switch s.kind {
	case stored:
		return int64(s.at), s.length, true
	case compressed:
		at, length = q.packed(s.at)
		return at, length, true
	}
	return 0, 0, false
}

func (q *Image) read(p []byte, off int64, s stretch) error {
	switch s.kind {
	case stored:
		// The last cluster of a file may be cut.
		n := min(int64(len(p)), q.file.Size()-int64(s.at))
		if n <= 0 {
			return damaged("cluster at %d lies beyond the end", s.at)
		}
		clear(p[n:])
		return vfs.ReadFull(q.file, p[:n], int64(s.at))
	case compressed:
		c, err := q.decompress(s.at)
		if err != nil {
			return err
		}
		copy(p, c[off&(1<<q.clusterBits-1):])
		return nil
	case unallocated:
		return q.readBase(p, off)
	}
	clear(p)
	return nil
}

func (q *Image) readBase(p []byte, off int64) error {
	if q.base == nil && q.backing != "" {
		return fmt.Errorf("%w: %q", vfs.ErrNoBase, q.backing)
	}
	n := int64(0)
	if q.base != nil {
		n = max(0, min(int64(len(p)), q.base.Size()-off))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if err := vfs.ReadFull(q.base, p[:n], off); err != nil {
		return fmt.Errorf("backing file: %w", err)
	}
	return nil
}

// Prefetch passes hints on to the file and to the backing file: those of the
// tables first, since they say where the rest lies.
func (q *Image) Prefetch(ranges []vfs.Extent) {
	ranges = vfs.Join(ranges, 1, q.size)
	q.pages.Prefetch(q.tables(ranges))
	var file, base []vfs.Extent
	left := maxPieces
	for _, r := range ranges {
		for at := r.Offset; at < r.Offset+r.Length; left-- {
			s, err := q.locate(at, r.Offset+r.Length-at)
			if err != nil || left <= 0 {
				break
			}
			if s.kind == unallocated {
				base = append(base, vfs.Extent{Offset: at, Length: s.length})
			} else if place, length, ok := q.place(s); ok {
				file = append(file, vfs.Extent{Offset: place, Length: length})
			}
			at += s.length
		}
	}
	vfs.Prefetch(q.file, file)
	if q.base != nil {
		vfs.Prefetch(q.base, base)
	}
}

// tables returns the parts of second-level tables that speak of ranges.
func (q *Image) tables(ranges []vfs.Extent) (parts []vfs.Extent) {
	perTable := q.clusters() << q.clusterBits
	left := maxPieces
	for _, r := range ranges {
		for at := r.Offset - r.Offset%perTable; at < r.Offset+r.Length; at += perTable {
			if left--; left < 0 {
				return parts
			}
			table, err := q.table(at)
			if err != nil || table == 0 {
				continue
			}
			first := (max(at, r.Offset) - at) >> q.clusterBits
			last := (min(at+perTable, r.Offset+r.Length) - at - 1) >> q.clusterBits
			parts = append(parts, vfs.Extent{Offset: table + first*q.entrySize(), Length: (last - first + 1) * q.entrySize()})
		}
	}
	return parts
}

// packed decodes the entry of a compressed cluster: its offset, and how many
// sectors it begins in or fills.
func (q *Image) packed(e uint64) (at, length int64) {
	bits := 62 - (q.clusterBits - 8)
	at = int64(e & (1<<bits - 1))
	sectors := int64(e>>bits&(1<<(q.clusterBits-8)-1)) + 1
	return at, sectors*512 - at%512
}

// cluster is a decompressed cluster.
type cluster struct {
	entry uint64
	data  []byte
}

// maxDecompressed bounds the decompressed clusters that are kept.
const maxDecompressed = 8 << 20

// decoder is made when the first cluster needs it.
type decoder = *zstd.Decoder

func (q *Image) decompress(e uint64) ([]byte, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, c := range q.decompressed {
		if c.entry == e {
			copy(q.decompressed[1:k+1], q.decompressed[:k])
			q.decompressed[0] = c
			return c.data, nil
		}
	}
	at, length := q.packed(e)
	length = min(length, q.file.Size()-at)
	if length <= 0 {
		return nil, damaged("compressed cluster at %d lies beyond the end", at)
	}
	in := make([]byte, length)
	if err := vfs.ReadFull(q.file, in, at); err != nil {
		return nil, err
	}
	out := make([]byte, 1<<q.clusterBits)
	if err := q.unpack(out, in); err != nil {
		return nil, damaged("compressed cluster at %d: %v", at, err)
	}
	keep := min(len(q.decompressed), maxDecompressed>>q.clusterBits-1)
	q.decompressed = append([]cluster{{e, out}}, q.decompressed[:keep]...)
	return out, nil
}

// unpack fills out; what follows in the last sector is of no meaning.
func (q *Image) unpack(out, in []byte) error {
	if !q.zstd {
		_, err := io.ReadFull(flate.NewReader(bytes.NewReader(in)), out)
		return err
	}
	if q.decoder == nil {
		var err error
		q.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxDecompressed))
		if err != nil {
			return err
		}
	}
	if err := q.decoder.Reset(bytes.NewReader(in)); err != nil {
		return err
	}
	_, err := io.ReadFull(q.decoder, out)
	return err
}
