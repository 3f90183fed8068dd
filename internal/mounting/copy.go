package mounting

import (
	"context"
	"io"
	"os"
	"slices"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// CopyFile makes a copy of a file from the cache's, fetching what is
// missing: see snapshot.FileCopier.
func (o *Opened) CopyFile(ctx context.Context, dst *os.File, f *layout.File, onBytes func(int64)) (bool, error) {
	if o.Cache == nil {
		if l := o.ordered.localFile(slices.Index(o.Artifact.Files, f)); l != nil && !o.fetches(f) {
			return l.CopyTo(ctx, dst, onBytes)
		}
		return false, nil
	}
	open, err := o.File(f)
	if err != nil {
		return false, err
	}
	if !o.fetches(f) {
		if ok, err := open.CopyTo(ctx, dst, onBytes); ok || err != nil {
			return ok, err
		}
	}
	if !open.Kept() {
		return false, nil
	}
	return o.fetchInto(ctx, open.NewCopy(dst), f, onBytes)
}

// fetches reports whether f is being fetched. Then it has to be read, even
// if all of it has arrived: skipping it would restart the fetching of the
// files after it.
func (o *Opened) fetches(f *layout.File) bool {
	o.reading.Lock()
	defer o.reading.Unlock()
	return o.ordered.payloads != nil && o.ordered.payloads.Fetches(f)
}

// fetchInto fetches the missing bytes of a file once, whether or not the
// cache can store them.
func (o *Opened) fetchInto(ctx context.Context, to *cache.Copy, f *layout.File, onBytes func(int64)) (bool, error) {
	payload, err := o.OpenPayload(ctx, f)
	if err != nil {
		return false, err
	}
	defer payload.Close()
	if _, err := io.Copy(counted{to, onBytes}, payload); err != nil {
		return false, err
	}
	return to.Finish(ctx)
}

// counted counts the bytes written.
type counted struct {
	io.Writer
	onBytes func(int64)
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.onBytes(int64(n))
	return n, err
}
