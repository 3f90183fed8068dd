package xfs

import (
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

const (
	basic      = 512 // the unit of the log
	logMagic   = 0xfeedbabe
	opUnmount  = 0x20
	headerData = 32 << 10 // as much data a header speaks of
	// maxRecord bounds how far before the end of the log its last record
	// begins (XLOG_MAX_RECORD_BSIZE).
	maxRecord = 256 << 10
)

const (
	stateClean = "clean"
	stateDirty = "journal not replayed: may be older than the snapshot"
	stateOther = "journal not replayed, it lies on another device: may be older than the snapshot"
)

// logState reports whether the log ends with the record of an unmount.
func (f *FS) logState() string {
	if f.logStart == 0 {
		return stateOther
	}
	start, err := f.linear(f.logStart)
	length := int64(f.logBlocks) * f.blockSize
	if err != nil || length < 2*basic || int64(start)*f.blockSize > f.img.Size()-length {
		return stateDirty
	}
	l := &xlog{pages: f.pages, start: int64(start) * f.blockSize, blocks: length / basic}
	if l.unmounted() {
		return stateClean
	}
	return stateDirty
}

// xlog is the log as a ring of blocks of 512 bytes.
type xlog struct {
	pages         *vfs.Pages
	start, blocks int64
	failed        bool
}

func (l *xlog) block(n int64) []byte {
	b, err := l.pages.Bytes(l.start+n%l.blocks*basic, basic)
	if err != nil {
		l.failed = true
		return make([]byte, basic)
	}
	return b
}

// cycle is how often the ring had been gone round when a block was written:
// its first word, or the second of a header.
func (l *xlog) cycle(n int64) uint32 {
	b := l.block(n)
	if be.Uint32(b) == logMagic {
		return be.Uint32(b[4:])
	}
	return be.Uint32(b)
}

// head is the block that will be written next: the first of an older cycle.
// Each round of the search asks for several blocks at once.
func (l *xlog) head() int64 {
	const probes = 8
	first := l.cycle(0)
	low, high := int64(0), l.blocks // low is of the first cycle, high is not
	for (high-low)*basic > vfs.Reach {
		step := (high - low + probes) / (probes + 1)
		var hints []vfs.Extent
		for at := low + step; at < high; at += step {
			hints = append(hints, vfs.Extent{Offset: l.start + at*basic, Length: basic})
		}
		l.pages.Prefetch(hints)
		at := low + step
		for ; at < high && l.cycle(at) == first; at += step {
			low = at
		}
		high = min(high, at)
	}
	return low + int64(sort.Search(int(high-low), func(n int) bool { return l.cycle(low+int64(n)) != first }))
}

// unmounted reports whether the last record is that of an unmount: a header,
// and one operation.
func (l *xlog) unmounted() bool {
	head := l.head()
	for back := int64(1); back <= maxRecord/basic && back < l.blocks; back++ {
		at := (head - back + l.blocks) % l.blocks
		h := l.block(at)
		if be.Uint32(h) != logMagic {
			continue
		}
		headers := int64(1)
		if size := int64(be.Uint32(h[320:])); be.Uint32(h[8:])&2 != 0 && size > headerData {
			headers = (size + headerData - 1) / headerData
		}
		data := (int64(be.Uint32(h[12:])) + basic - 1) / basic
		op := l.block(at + headers)
		return !l.failed && be.Uint32(h[40:]) == 1 && op[9]&opUnmount != 0 && headers+data == back
	}
	return false
}
