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

// digest is the digest of one file in a tar.
type digest struct {
	name string
	data int64
	sum  string // sha256 of the data
	size string // apparent size and map of a sparse file
	segs string
}

// digests reads a tar and returns the digests of its files.
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
