package ntfs

import (
	"fmt"
	"io/fs"
	"slices"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxRuns bounds the pieces of one stream.
const maxRuns = 1 << 19

// stream is the value of an attribute: bytes, or runs of clusters.
type stream struct {
	resident          bool
	value             []byte
	size, initialized int64
	flags             uint16
	unitBits          byte
	runs              []run
}

// run is a stretch of clusters from first on that lie side by side from
// place on, or nowhere.
type run struct {
	first, count, place int64
	hole                bool
}

// stream joins the attributes of one type and name.
func (f *FS) stream(r *record, kind uint32, name string) (*stream, error) {
	var parts []attribute
	for _, a := range r.attributes {
		if a.kind == kind && a.name == name {
			parts = append(parts, a)
		}
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("attribute %#x %q of record %d: %w", kind, name, r.number, fs.ErrNotExist)
	}
	slices.SortFunc(parts, func(a, b attribute) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	s := &stream{}
	for _, a := range parts {
		if err := s.add(f, a); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// add appends an attribute, which must follow what there is.
func (s *stream) add(f *FS, a attribute) error {
	if a.resident {
		if s.resident || s.runs != nil {
			return damaged("attribute %#x lies in two places", a.kind)
		}
		*s = stream{resident: true, value: a.value, size: int64(len(a.value)), flags: a.flags}
		return nil
	}
	next := s.end()
	if s.resident || a.first != uint64(next) {
		return damaged("attribute %#x: cluster %d follows cluster %d", a.kind, a.first, next)
	}
	if next == 0 {
		if a.length > 1<<56 || a.initialized > a.length || a.unitBits > 8 {
			return damaged("attribute %#x of %d bytes", a.kind, a.length)
		}
		s.size, s.initialized, s.flags, s.unitBits = int64(a.length), int64(a.initialized), a.flags, a.unitBits
	}
	return s.parse(f, a.pairs)
}

// end is the cluster behind the last run.
func (s *stream) end() int64 {
	if len(s.runs) == 0 {
		return 0
	}
	last := s.runs[len(s.runs)-1]
	return last.first + last.count
}

// parse reads pairs of a length and a distance from the last place, each in
// as many bytes as the first one says. A pair without a distance is a hole.
func (s *stream) parse(f *FS, b []byte) error {
	next, place := s.end(), int64(0)
	for len(b) > 0 && b[0] != 0 {
		lengthBytes, placeBytes := int(b[0]&15), int(b[0]>>4)
		if lengthBytes == 0 || lengthBytes > 8 || placeBytes > 8 || 1+lengthBytes+placeBytes > len(b) {
			return damaged("clusters: a pair of %d and %d bytes", lengthBytes, placeBytes)
		}
		count := signed(b[1 : 1+lengthBytes])
		r := run{first: next, count: count, hole: placeBytes == 0}
		if !r.hole {
			place += signed(b[1+lengthBytes : 1+lengthBytes+placeBytes])
			r.place = place
		}
		if count <= 0 || count > 1<<47 || next > 1<<47 || !r.hole && (place < 0 || place >= f.clusters || count > f.clusters-place) {
			return damaged("clusters: %d at %d of %d", count, place, f.clusters)
		}
		if len(s.runs) == maxRuns {
			return fmt.Errorf("a file in more than %d pieces: %w", maxRuns, vfs.ErrUnsupported)
		}
		s.runs = append(s.runs, r)
		next += count
		b = b[1+lengthBytes+placeBytes:]
	}
	return nil
}

// signed decodes a number of up to 8 bytes.
func signed(b []byte) int64 {
	n := int64(int8(b[len(b)-1]))
	for k := len(b) - 2; k >= 0; k-- {
		n = n<<8 | int64(b[k])
	}
	return n
}

// at returns the run that holds a cluster, and the rest of it from there on.
// Beyond the last run is a hole.
func (s *stream) at(cluster int64) run {
	k := sort.Search(len(s.runs), func(k int) bool { return s.runs[k].first > cluster }) - 1
	if k < 0 || cluster >= s.runs[k].first+s.runs[k].count {
		return run{first: cluster, count: 1 << 47, hole: true}
	}
	r := s.runs[k]
	skip := cluster - r.first
	r.first, r.count = cluster, r.count-skip
	if !r.hole {
		r.place += skip
	}
	return r
}

// place returns where a stream's bytes from off on lie, and how many of them
// lie side by side; 0 if they lie nowhere.
func (f *FS) place(s *stream, off int64) (at, length int64) {
	if s.resident || off < 0 {
		return 0, 0
	}
	r := s.at(off / f.clusterSize)
	if r.hole {
		return 0, 0
	}
	in := off % f.clusterSize
	return r.place*f.clusterSize + in, r.count*f.clusterSize - in
}

// maxPieces bounds how many runs one read asks for in advance.
const maxPieces = 1024

// readStream reads a stream; what was never written reads as zeros. Files
// that were compressed are known by their number.
func (f *FS) readStream(s *stream, p []byte, off int64, inode *uint64) (int, error) {
	n, end := vfs.Clip(p, off, s.size)
	if s.resident {
		copy(p[:n], s.value[min(off, int64(len(s.value))):])
		return n, end
	}
	if s.flags&flagCompressed != 0 && s.unitBits > 0 && inode != nil {
		return f.readCompressed(s, p, off, *inode)
	}
	written := int(max(0, min(int64(n), s.initialized-off)))
	clear(p[written:n])
	for done := 0; done < written; {
		got, err := f.readPieces(s, p[done:written], off+int64(done))
		if err != nil {
			return done, err
		}
		done += got
	}
	return n, end
}

// readPieces reads up to maxPieces runs, of which it asks for all before it
// reads the first.
func (f *FS) readPieces(s *stream, p []byte, off int64) (done int, err error) {
	type piece struct {
		p  []byte
		at int64
	}
	var pieces []piece
	var hints []vfs.Extent
	for done < len(p) && len(pieces) < maxPieces {
		at := off + int64(done)
		r := s.at(at / f.clusterSize)
		in := at % f.clusterSize
		n := int(min(r.count*f.clusterSize-in, int64(len(p)-done)))
		if r.hole {
			clear(p[done : done+n])
		} else {
			place := r.place*f.clusterSize + in
			pieces = append(pieces, piece{p[done : done+n], place})
			hints = append(hints, vfs.Extent{Offset: place, Length: int64(n)})
		}
		done += n
	}
	if len(hints) > 1 {
		vfs.Prefetch(f.img, hints)
	}
	for _, c := range pieces {
		if err := vfs.ReadFull(f.img, c.p, c.at); err != nil {
			return 0, err
		}
	}
	return done, nil
}

// extents visits the ranges that have data. A compression unit with any
// cluster has data as a whole.
func (f *FS) extents(s *stream, visit func(vfs.Extent) error) error {
	if s.resident {
		if s.size == 0 {
			return nil
		}
		return visit(vfs.Extent{Length: s.size})
	}
	align, end := int64(1), s.size
	if s.flags&flagCompressed != 0 {
		align = 1 << s.unitBits
	} else {
		end = min(end, s.initialized)
	}
	var open vfs.Extent
	for _, r := range s.runs {
		if r.hole {
			continue
		}
		first := r.first / align * align * f.clusterSize
		last := min(end, (r.first+r.count+align-1)/align*align*f.clusterSize)
		if last <= first {
			continue
		}
		if open.Length > 0 && first <= open.Offset+open.Length {
			open.Length = max(open.Length, last-open.Offset)
			continue
		}
		if open.Length > 0 {
			if err := visit(open); err != nil {
				return err
			}
		}
		open = vfs.Extent{Offset: first, Length: last - first}
	}
	if open.Length == 0 {
		return nil
	}
	return visit(open)
}
