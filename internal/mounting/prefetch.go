package mounting

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// Prefetch selects what is fetched before it is read.
type Prefetch string

// The values of Prefetch.
const (
	PrefetchNone  Prefetch = "none"
	PrefetchSmall Prefetch = "small" // files under 1 MiB
	PrefetchAuto  Prefetch = "auto"  // those, and the working set if there is one
	PrefetchAll   Prefetch = "all"   // those, then memory, then the rest
)

// Replays reports whether the working set is fetched.
func (p Prefetch) Replays() bool { return p == PrefetchAuto || p == PrefetchAll }

// smallFile bounds the files of PrefetchSmall, in stored bytes.
const smallFile = 1 << 20

// Set implements pflag.Value.
func (p *Prefetch) Set(s string) error {
	switch v := Prefetch(s); v {
	case PrefetchNone, PrefetchSmall, PrefetchAuto, PrefetchAll:
		*p = v
		return nil
	}
	return fmt.Errorf("it is none, small, auto or all")
}

// String returns the value as on the command line.
func (p *Prefetch) String() string { return string(*p) }

// Type returns the placeholder in help texts.
func (p *Prefetch) Type() string { return "none|small|auto|all" }

// Prefetch starts fetching whole files. It returns at once; reads, and the
// replay of a working set, have priority.
func (o *Opened) Prefetch(which Prefetch) error {
	for _, f := range prefetched(o.Artifact.Files, which) {
		open, err := o.File(f)
		if err != nil {
			return err
		}
		open.Prefetch()
	}
	return nil
}

// prefetched returns the files to be fetched whole, in order. A hypervisor
// reads the small files first, then memory, which must not wait behind a disk.
func prefetched(files []*layout.File, which Prefetch) []*layout.File {
	const (
		small = iota
		memory
		other
	)
	rank := func(f *layout.File) int {
		switch {
		case f.StoredSize() < smallFile:
			return small
		case manifest.IsMemory(f.Name, f.MediaType):
			return memory
		}
		return other
	}
	all := slices.Clone(files)
	slices.SortStableFunc(all, func(a, b *layout.File) int { return cmp.Compare(rank(a), rank(b)) })
	switch which {
	case PrefetchAll:
		return all
	case PrefetchNone:
		return nil
	}
	n := slices.IndexFunc(all, func(f *layout.File) bool { return rank(f) != small })
	if n < 0 {
		return all
	}
	return all[:n]
}
