package mounting

import (
	"log/slog"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// MountOptions say how a mount looks.
type MountOptions struct {
	AllowOther bool   // for other users than the one who mounts
	UID, GID   uint32 // owner of everything
	Log        *slog.Logger
}

// Mount shows the artifact's files on a directory, the envelope first. It
// returns when the mount is ready. o must stay open until it is gone.
func (o *Opened) Mount(dir string, opts MountOptions) (*fs.Mounted, error) {
	var files []fs.File
	if text := o.Artifact.Envelope; text != nil {
		files = append(files, fs.File{
			Name:      snapshot.EnvelopeName,
			MediaType: "application/json",
			Digest:    digestOf(text),
			Mode:      0o444,
			Map:       sparse.Dense(int64(len(text))),
			Content:   fs.BytesContent(text),
		})
	}
	for _, f := range o.Artifact.Files {
		open, err := o.File(f)
		if err != nil {
			return nil, err
		}
		files = append(files, fs.File{
			Name:      f.Name,
			MediaType: f.MediaType,
			Digest:    f.Digest(),
			Mode:      f.Mode,
			Map:       f.Map,
			Content:   open,
		})
	}
	m, err := fs.Mount(dir, files, fs.Options{
		AllowOther: opts.AllowOther,
		UID:        opts.UID,
		GID:        opts.GID,
		Time:       o.Artifact.Created,
		FSName:     o.Reference.String(),
		Log:        opts.Log,
	})
	if err != nil {
		return nil, err
	}
	for _, f := range o.Artifact.Files {
		if open, err := o.File(f); err == nil {
			// Not waited for: the reads that Forget waits for may wait for
			// those who tell us.
			open.OnDrop(func() { go m.Forget(f.Name) })
		}
	}
	return m, nil
}
