package mounting

import (
	"context"
	"io"
	"os"
	"slices"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// CopyFile makes a file of its own from the cache's, fetching what is
// missing: see snapshot.FileCopier.
func (o *Opened) CopyFile(ctx context.Context, dst *os.File, f *layout.File, onBytes func(int64)) (bool, error) {
	if o.uncached != nil {
		return o.uncached.copyFile(ctx, dst, slices.Index(o.Artifact.Files, f), onBytes)
	}
	open, err := o.File(f)
	if err != nil || !open.Kept() {
		return false, err
	}
	if ok, err := open.CopyTo(ctx, dst, onBytes); ok || err != nil {
		return ok, err
	}
	if err := fetch(ctx, open, onBytes); err != nil {
		return false, err
	}
	return open.CopyTo(ctx, dst, func(int64) {}) // where the disk has refused some, it does not do
}

// fetch has all of a file in the cache, verified.
func fetch(ctx context.Context, f *cache.File, onBytes func(int64)) error {
	payload, err := f.OpenPayload(ctx)
	if err != nil {
		return err
	}
	defer payload.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := payload.Read(buf)
		onBytes(int64(n))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
