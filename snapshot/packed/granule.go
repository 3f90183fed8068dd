package packed

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrInvalid is wrapped by every error about bytes that are not the index of
// the expected file.
var ErrInvalid = errors.New("invalid index")

// Sizes of granules, in bytes; every one is a power of two.
const (
	MinGranule     = 16 << 10
	DefaultGranule = 32 << 10
	MaxGranule     = 1 << 20
)

const (
	// SectionSlots is the number of slots in a section. With granules of
	// 32 KiB a section covers 128 MiB of the file in about 160 KiB.
	SectionSlots = 4096

	// MaxSlots bounds the slots of a file: 2 TiB in granules of 32 KiB. A
	// cache keeps a word of eight bytes for every slot.
	MaxSlots = 1 << 26

	// MaxPacks bounds the packs of a file. A manifest of 4 MiB has fewer
	// layers.
	MaxPacks = 1 << 14

	// MaxPackSize bounds a pack, in bytes: offsets in it take 32 bits.
	MaxPackSize = 1<<32 - 1
)

// Sum is the sha256 of a granule's data, or of stored bytes.
type Sum = [sha256.Size]byte

// Granule is where the data of one slot is stored.
type Granule struct {
	Pack   int   // index in Head.Packs
	Offset int64 // of its frame in the pack, in bytes
	Stored int64 // length of its frame, in bytes
	Sum    Sum   // of its data
}

// MaxStored is the largest frame that a granule of the given size can
// have: one that does not compress is stored in raw blocks.
func MaxStored(granule int64) int64 { return granule + granule/256 + 1<<10 }

// SlotCount returns how many slots a file of size bytes has.
func SlotCount(size, granule int64) int64 { return (size + granule - 1) / granule }

// CheckGranule reports an error unless granule is a power of two from
// MinGranule to MaxGranule.
func CheckGranule(granule int64) error {
	if granule < MinGranule || granule > MaxGranule || granule&(granule-1) != 0 {
		return wrong("granules of %d bytes", granule)
	}
	return nil
}

// GranuleFor returns the smallest granule size from least up with which a
// file of size bytes has at most MaxSlots slots.
func GranuleFor(size, least int64) (int64, error) {
	for g := least; g <= MaxGranule; g *= 2 {
		if SlotCount(size, g) <= MaxSlots {
			return g, nil
		}
	}
	return 0, wrong("a file of %d bytes is too large for granules", size)
}

// wrong returns an error that wraps ErrInvalid.
func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}
