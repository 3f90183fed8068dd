package inventory

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
)

// PruneOptions choose what is removed. A file that a process has open stays.
// The zero value removes every other file, because To is 0.
type PruneOptions struct {
	Older  time.Duration // files not used for as long; 0: none for that
	To     int64         // files, the least recently used first, until so many bytes are taken; negative: none for that
	All    bool          // whatever is not in use
	DryRun bool          // remove nothing; the result is what would go
	OnFile func()        // called for each file that is looked at; may be nil
}

// Pruned is what has gone. Sizes are in bytes on disk.
type Pruned struct {
	Files []StoredFile // the least recently used first
	Small int          // manifests, config blobs and references
	Freed int64
	Left  int64 // what the cache takes now
	InUse int64 // of Left, files that are in use
}

// Prune removes files that nobody uses, as whole files by unlink, and then
// the manifests, config blobs and references of artifacts of which no file
// is left. When ctx ends it stops before the next file, and returns what has
// gone until then. limit is that of List.
func Prune(ctx context.Context, d *disk.Dir, limit func(used int64) int64, opts PruneOptions) (Pruned, error) {
	if !opts.All && opts.To < 0 {
		opts.To = math.MaxInt64
	}
	inv, err := List(d, limit)
	if err != nil {
		return Pruned{}, err
	}
	p := Pruned{Left: inv.Disk}
	gone := map[string]bool{}
	var sections []string
	now := time.Now()
	for _, f := range inv.Files {
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if opts.OnFile != nil {
			opts.OnFile()
		}
		goes := opts.All || opts.Older > 0 && now.Sub(f.Used) >= opts.Older || p.Left > opts.To
		if f.InUse || !goes {
			if f.InUse {
				p.InUse += f.Disk
			}
			continue
		}
		if !opts.DryRun {
			own := sectionsOf(d, f.Key)
			err := d.Remove(f.Key)
			if errors.Is(err, disk.ErrInUse) {
				p.InUse += f.Disk
				continue
			}
			if err != nil {
				return p, err
			}
			sections = append(sections, own...)
		}
		gone[f.Key] = true
		p.Files = append(p.Files, f)
		p.Freed += f.Disk
		p.Left -= f.Disk
	}
	n, freed := dropSections(d, sections)
	p.Small, p.Freed, p.Left = p.Small+n, p.Freed+freed, p.Left-freed
	err = pruneSmall(d, inv, gone, opts, &p)
	return p, err
}

// pruneSmall removes what belongs to no artifact with files in the cache:
// all of it, or what is as old as is to be removed.
func pruneSmall(d *disk.Dir, inv *Inventory, gone map[string]bool, opts PruneOptions, p *Pruned) error {
	if !opts.All && opts.Older <= 0 {
		return nil
	}
	here := map[string]bool{}
	for _, f := range inv.Files {
		here[f.Key] = !gone[f.Key]
	}
	kept := map[string]bool{} // references and digests of artifacts that are still here
	for _, a := range inv.Artifacts {
		if slices.ContainsFunc(a.Files, func(f ArtifactFile) bool { return here[f.Key] }) {
			kept[a.Reference] = true
			for _, b := range a.blobs {
				kept[b] = true
			}
		}
	}
	for digest := range allSections(d, gone) {
		kept[digest] = true
	}
	var errs []error
	drop := func(name string, bytes int64, used time.Time) {
		if !opts.All && time.Since(used) < opts.Older {
			return
		}
		if !opts.DryRun {
			if err := d.Unlink(name); err != nil {
				errs = append(errs, err)
				return
			}
		}
		p.Small++
		p.Freed += bytes
		p.Left -= bytes
	}
	all, err := refs(d)
	if err != nil {
		return err
	}
	for _, r := range all {
		// What is noted about an artifact has its reference before a space.
		about, _, noted := strings.Cut(r.Reference, " ")
		switch {
		case noted && kept[about]:
			kept[r.Digest] = true
		case !kept[r.Reference] && !kept[r.Digest]:
			drop(r.name, r.disk, r.used)
		}
	}
	err = eachSmall(d, disk.Blobs, func(name string, info fs.FileInfo) {
		if !kept[digests.FromHex(path.Base(name))] {
			drop(name, disk.Blocks(info), info.ModTime())
		}
	})
	return errors.Join(append(errs, err)...)
}

// Evict removes files that nobody uses, in the order given, until over bytes
// are free. It returns how many are.
func Evict(d *disk.Dir, files []disk.Stored, over int64) (freed int64) {
	var sections []string
	for _, s := range files {
		if freed >= over {
			break
		}
		own := sectionsOf(d, s.Key)
		if d.Remove(s.Key) == nil {
			freed += s.Disk
			sections = append(sections, own...)
		}
	}
	_, more := dropSections(d, sections)
	return freed + more
}
