package demo

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// digest is one file of a tar.
type digest struct {
	name string
	data int64
	sum  string // sha256 of the data
	size string // of a sparse file: its apparent size, and its map
	segs string
}

// digests reads a tar and hashes what is in it.
func digests(path string) ([]digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []digest
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, h.Name, err)
		}
		all = append(all, digest{
			name: h.Name, data: h.Size, sum: hex.EncodeToString(sum.Sum(nil)),
			size: h.PAXRecords["COCOON.sparse.size"], segs: h.PAXRecords["COCOON.sparse.map"],
		})
	}
}
