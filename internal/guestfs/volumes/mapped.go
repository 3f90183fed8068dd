package volumes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Bounds on a logical volume: of its segments and of the stripes of each
// (LVM's is 128).
const (
	maxSegments = 1 << 16
	maxStripes  = 128
	maxLogicalV = 1 << 60
)

// errMissing is the error of a read of a physical volume on another disk.
var errMissing = fmt.Errorf("logical volume with a part on another disk: %w", vfs.ErrUnsupported)

func isMissing(err error) bool { return errors.Is(err, errMissing) }

// mapped is a logical volume: its segments, in order and without gaps.
type mapped struct {
	segments []segment
	size     int64
}

// segment is a part of a logical volume, in bytes.
type segment struct {
	start, length int64
	chunk         int64 // as much lies in one stripe before the next
	stripes       []stripe
}

// stripe is where a segment's chunks lie; image is nil if that is another
// disk. pv is the physical volume's index.
type stripe struct {
	image  vfs.Image
	pv     int
	offset int64
}

// mapLogical maps a logical volume of a group with extents of so many bytes.
// kind names what is not linear or striped.
func mapLogical(g, lv section, pvs []physical, extent int64) (m *mapped, kind string, err error) {
	count := lv.number("segment_count")
	if count < 0 || count > maxSegments {
		return nil, "", fmt.Errorf("%w: %d segments", vfs.ErrDamaged, count)
	}
	m = &mapped{}
	for k := int64(1); k <= count; k++ {
		s := lv.below(fmt.Sprintf("segment%d", k))
		start, extents := s.number("start_extent"), s.number("extent_count")
		if s == nil || extents <= 0 || extents > maxLogicalV/extent || start != m.size/extent || m.size > maxLogicalV-extents*extent {
			return nil, "", fmt.Errorf("%w: segment %d of %d extents from %d", vfs.ErrDamaged, k, extents, start)
		}
		next := segment{start: m.size, length: extents * extent}
		m.size += next.length
		if t := s.text("type"); t != "striped" && t != "linear" {
			kind = "lvm " + t
			m.segments = append(m.segments, next)
			continue
		}
		if err := next.setStripes(g, s, pvs, extent); err != nil {
			return nil, "", err
		}
		m.segments = append(m.segments, next)
	}
	return m, kind, nil
}

func (n *segment) setStripes(g, s section, pvs []physical, extent int64) error {
	list := s.list("stripes")
	count := len(list) / 2
	n.chunk = n.length
	if count > 1 {
		n.chunk = s.number("stripe_size") * sector
	}
	if len(list)%2 != 0 || count < 1 || count > maxStripes || n.chunk <= 0 || n.chunk > n.length || n.length%(int64(count)*n.chunk) != 0 {
		return fmt.Errorf("%w: %d stripes in chunks of %d bytes", vfs.ErrDamaged, count, n.chunk)
	}
	for k := range count {
		name, _ := list[2*k].(string)
		first, ok := list[2*k+1].(int64)
		pv := g.below("physical_volumes").below(name)
		start := pv.number("pe_start")
		if !ok || pv == nil || first < 0 || first > maxLogicalV/extent || start < 0 || start > maxLogicalV/sector {
			return fmt.Errorf("%w: stripe %d", vfs.ErrDamaged, k)
		}
		st := stripe{offset: start*sector + first*extent}
		at := slices.IndexFunc(pvs, func(p physical) bool { return p.id == undashed(pv.text("id")) })
		if at >= 0 {
			st.image, st.pv = pvs[at].image, at
		}
		n.stripes = append(n.stripes, st)
	}
	return nil
}

func (m *mapped) Size() int64 { return m.size }

// single returns where the volume lies, if that is in one piece.
func (m *mapped) single() (stripe, bool) {
	if len(m.segments) != 1 || len(m.segments[0].stripes) != 1 || m.segments[0].stripes[0].image == nil {
		return stripe{}, false
	}
	return m.segments[0].stripes[0], true
}

// locate returns where the volume's bytes from off on lie, and how many of
// them follow each other there.
func (m *mapped) locate(off int64) (at stripe, length int64, err error) {
	k, ok := slices.BinarySearchFunc(m.segments, off, func(s segment, off int64) int {
		switch {
		case s.start+s.length <= off:
			return -1
		case s.start > off:
			return 1
		}
		return 0
	})
	if !ok || len(m.segments[k].stripes) == 0 {
		return stripe{}, 0, fmt.Errorf("logical volume of this type: %w", vfs.ErrUnsupported)
	}
	s := &m.segments[k]
	in := off - s.start
	chunk, n := in/s.chunk, int64(len(s.stripes))
	at = s.stripes[chunk%n]
	if at.image == nil {
		return stripe{}, 0, errMissing
	}
	at.offset += chunk/n*s.chunk + in%s.chunk
	return at, s.chunk - in%s.chunk, nil
}

func (m *mapped) ReadAt(p []byte, off int64) (int, error) {
	n, end := vfs.Clip(p, off, m.size)
	for done := 0; done < n; {
		at, length, err := m.locate(off + int64(done))
		if err != nil {
			return done, err
		}
		if done == 0 && length < int64(n) {
			m.Prefetch([]vfs.Extent{{Offset: off, Length: int64(n)}})
		}
		part := p[done:min(n, done+int(min(length, int64(n))))]
		if err := vfs.ReadFull(at.image, part, at.offset); err != nil {
			return done, err
		}
		done += len(part)
	}
	return n, end
}

// maxHints bounds how many chunks one hint is cut into.
const maxHints = 4096

// Prefetch passes hints on, one for each physical volume.
func (m *mapped) Prefetch(ranges []vfs.Extent) {
	below := map[int][]vfs.Extent{}
	images := map[int]vfs.Image{}
	left := maxHints
	for _, r := range vfs.Join(ranges, 1, m.size) {
		for at := r.Offset; at < r.Offset+r.Length && left > 0; left-- {
			s, length, err := m.locate(at)
			if err != nil {
				break
			}
			length = min(length, r.Offset+r.Length-at)
			below[s.pv] = append(below[s.pv], vfs.Extent{Offset: s.offset, Length: length})
			images[s.pv] = s.image
			at += length
		}
	}
	for pv, ranges := range below {
		vfs.Prefetch(images[pv], ranges)
	}
}
