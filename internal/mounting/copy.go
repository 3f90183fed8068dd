package mounting

import (
	"context"
	"io"
	"os"
	"slices"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// CopyFile makes a file of its own from the cache's, fetching what is
// missing: see snapshot.FileCopier.
func (o *Opened) CopyFile(ctx context.Context, dst *os.File, f *layout.File, onBytes func(int64)) (bool, error) {
	if o.Cache == nil {
		if l := o.ordered.local[slices.Index(o.Artifact.Files, f)]; l != nil {
			return l.CopyTo(ctx, dst, onBytes)
		}
		return false, nil
	}
	open, err := o.File(f)
	if err != nil || !open.Kept() {
		return false, err
	}
	if ok, err := open.CopyTo(ctx, dst, onBytes); ok || err != nil {
		return ok, err
	}
	if err := o.fetch(ctx, f, onBytes); err != nil {
		return false, err
	}
	return open.CopyTo(ctx, dst, func(int64) {}) // where the disk has refused some, it does not do
}

// fetch has all of a file in the cache, verified.
func (o *Opened) fetch(ctx context.Context, f *layout.File, onBytes func(int64)) error {
	payload, err := o.OpenPayload(ctx, f)
	if err != nil {
		return err
	}
	defer payload.Close()
	_, err = io.Copy(counter(onBytes), payload)
	return err
}

// counter is told how much is written to it.
type counter func(int64)

func (c counter) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}
