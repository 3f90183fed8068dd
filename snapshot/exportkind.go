package snapshot

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// packing is the compression of an export, as its first bytes show.
type packing string

const (
	plain  packing = ""
	gzips  packing = "gzip"
	zstds  packing = "zstd"
	xz     packing = "xz"
	bzip2s packing = "bzip2"
	lz4    packing = "lz4"
	lzip   packing = "lzip"
	lzma   packing = "lzma"
	zip    packing = "zip"
	sevenZ packing = "7z"
)

// unpackers are the programs that decompress a file to stdout, for
// compressions that this package does not read.
var unpackers = map[packing]string{
	xz: "xz -dc", bzip2s: "bzip2 -dc", lz4: "lz4 -dc", lzip: "lzip -dc", lzma: "xz -dc", zip: "unzip -p", sevenZ: "7z x -so",
}

// headSize is the number of first bytes that show the packing.
const headSize = zstdframe.HeaderSize

// packingOf returns the compression of a file that begins with head. No tar
// begins with any of these bytes, because it begins with a file name.
func packingOf(head []byte) packing {
	for _, m := range []struct {
		magic string
		packing
	}{
		{"\x1f\x8b", gzips},
		{"\x28\xb5\x2f\xfd", zstds},
		{"\xfd7zXZ\x00", xz},
		{"\x04\x22\x4d\x18", lz4},
		{"LZIP\x01", lzip},
		{"PK\x03\x04", zip},
		{"7z\xbc\xaf\x27\x1c", sevenZ},
	} {
		if has(head, 0, m.magic) {
			return m.packing
		}
	}
	switch {
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && has(head, 1, "\x2a\x4d\x18"):
		return zstds // a skippable frame, as pzstd writes first
	case has(head, 0, "BZh") && (has(head, 4, "1AY&SY") || has(head, 4, "\x17\x72\x45\x38\x50\x90")):
		return bzip2s
	case has(head, 0, "\x5d\x00\x00") && len(head) >= 5 && head[3]|head[4] != 0:
		return lzma
	}
	return plain
}

func has(head []byte, at int, magic string) bool {
	return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
}

// unpack returns the tar in src, whose first bytes are head. window bounds
// that of a zstd decoder, in bytes.
func unpack(src *bufio.Reader, head []byte, window int64) (io.Reader, error) {
	switch p := packingOf(head); p {
	case plain:
		return src, nil
	case gzips:
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", layout.ErrContent, err)
		}
		return z, nil
	case zstds:
		z, err := zstdframe.NewStream(src, window)
		if err != nil {
			return nil, fmt.Errorf("%w: zstd: %w", layout.ErrContent, err)
		}
		return z, nil
	default:
		return nil, &inputError{wrong("it is compressed with %s: push reads tar, gzip and zstd; pipe the output of %q into push --input -", p, unpackers[p])}
	}
}

// exportWindow bounds the window of a zstd decoder of the export, in bytes:
// half of the push's memory, but at most zstd's own default.
func (o *PushOptions) exportWindow() int64 {
	return min(o.memory()/2, zstdframe.MaxWindow)
}

// windowError adds a remedy to an error about a zstd window that is too
// large.
func windowError(err error, window int64) error {
	if !errors.Is(err, zstdframe.ErrWindow) {
		return err
	}
	return fmt.Errorf("%w of %d MiB; give it more with --memory, of which it may take half, up to 128 MiB, or pipe the output of \"zstd -dc --long=31\" into push --input -",
		err, window>>20)
}
