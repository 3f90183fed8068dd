package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// cloudMode is the mode of a cloud image's disk; the artifact contains none.
const cloudMode = 0o644

// loadCloudImage makes one file of the layers that hold the disk, joined in
// the order of their titles. It ignores other layers, such as checksums.
func (a *Artifact) loadCloudImage() error {
	var disks []*manifest.Descriptor
	for i := range a.Manifest.Layers {
		if d := &a.Manifest.Layers[i]; manifest.IsDiskMediaType(d.MediaType) {
			disks = append(disks, d)
		}
	}
	if len(disks) == 0 {
		return wrong("a cloud image without a disk")
	}
	slices.SortStableFunc(disks, func(a, b *manifest.Descriptor) int { return cmp.Compare(a.Title(), b.Title()) })
	f := &layout.File{MediaType: disks[0].MediaType, Mode: cloudMode}
	var size int64
	for i, d := range disks {
		if err := checkDisk(disks, i); err != nil {
			return fmt.Errorf("disk layer %d: %w", i, err)
		}
		f.Parts = append(f.Parts, layout.Part{Digest: d.Digest, StoredSize: d.Size, Offset: size, Length: d.Size})
		if size += d.Size; size > sparse.MaxSize {
			return wrong("a disk of more than %d bytes", int64(sparse.MaxSize))
		}
	}
	f.Name = diskName(disks[0])
	if err := checkName(f.Name); err != nil {
		return err
	}
	f.Map = sparse.Dense(size)
	a.Files = []*layout.File{f}
	a.Created = created(a.Manifest, time.Time{})
	return nil
}

// checkDisk validates one disk layer and its order after the one before.
func checkDisk(disks []*manifest.Descriptor, i int) error {
	d := disks[i]
	if err := checkDescriptor(d); err != nil {
		return err
	}
	if diskFormat(d) != diskFormat(disks[0]) {
		return wrong("%s and %s in one disk", diskFormat(disks[0]), diskFormat(d))
	}
	if len(disks) == 1 && d.Title() == "" {
		return nil // one layer needs no order
	}
	if err := checkName(d.Title()); err != nil {
		return err
	}
	if i > 0 && d.Title() == disks[i-1].Title() {
		return wrong("two have the title %q", d.Title())
	}
	return nil
}

// diskFormat returns qcow2 or raw.
func diskFormat(d *manifest.Descriptor) string {
	if strings.Contains(d.MediaType, ".disk.qcow2") {
		return "qcow2"
	}
	return "raw"
}

// diskName returns the joined disk's file name: the first part's title up to
// the disk's extension, or up to its number.
func diskName(first *manifest.Descriptor) string {
	title := first.Title()
	if title == "" {
		return "disk." + diskFormat(first)
	}
	ext := "." + diskFormat(first)
	if i := strings.Index(title, ext); i > 0 {
		return title[:i+len(ext)]
	}
	if i := strings.Index(title, ".part"); i > 0 {
		return title[:i]
	}
	return title
}
