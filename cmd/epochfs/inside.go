package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// address is a file in a snapshot, or with a path a file in one of its
// disks.
type address struct {
	title  string
	volume string // "" for the only one
	upper  bool   // the overlay view of the volume
	path   string // "" for the snapshot's file itself
}

// upperName names the overlay view.
const upperName = "upper"

// parseAddress splits arg, which begins with one of titles. Titles are
// foreign and may contain colons: an exact title wins, else the longest one
// that a colon follows.
func parseAddress(titles []string, arg string) (address, bool) {
	best := -1
	for i, title := range titles {
		if title == arg {
			return address{title: title}, true
		}
		if strings.HasPrefix(arg, title+":") && (best < 0 || len(title) > len(titles[best])) {
			best = i
		}
	}
	if best < 0 {
		return address{}, false
	}
	a := address{title: titles[best]}
	rest := arg[len(a.title)+1:]
	if !strings.HasPrefix(rest, "/") {
		a.volume, rest, _ = strings.Cut(rest, ":/")
		a.path = "/" + rest
	} else {
		a.path = rest
	}
	if volume, ok := strings.CutSuffix(a.volume, ":"+upperName); ok {
		a.volume, a.upper = volume, true
	} else if a.volume == upperName {
		a.volume, a.upper = "", true
	}
	return a, true
}

// String returns the address as on a command line.
func (a address) String() string {
	s := a.title
	if a.volume != "" {
		s += ":" + a.volume
	}
	if a.upper {
		s += ":" + upperName
	}
	if a.path != "" {
		s += ":" + a.path
	}
	return s
}

// find returns the file of the snapshot that arg names, and the address in
// it.
func find(o *mounting.Opened, arg string) (shown, address, error) {
	all, err := list(o, "")
	if err != nil {
		return shown{}, address{}, err
	}
	var titles []string
	for _, f := range all {
		titles = append(titles, f.name)
	}
	a, ok := parseAddress(titles, arg)
	if !ok {
		title, _, _ := strings.Cut(arg, ":")
		_, err := list(o, title)
		return shown{}, a, cmp.Or(err, errNotFound)
	}
	files, err := list(o, a.title)
	if err != nil {
		return shown{}, a, err
	}
	if a.path != "" {
		if _, isDisk := diskFormat(files[0].file); !isDisk {
			return shown{}, a, fmt.Errorf("%s: %s is not a disk", o.Reference, a.title)
		}
	}
	return files[0], a, nil
}

// diskFormat returns the format of the disk in a snapshot's file, if it is a
// disk. It decides by media type and name, never by the file's bytes, which
// a guest writes.
func diskFormat(f *layout.File) (inside.Format, bool) {
	if f == nil {
		return inside.Raw, false
	}
	mediaType := strings.TrimSuffix(f.MediaType, manifest.SuffixZstd)
	switch {
	case manifest.IsDiskMediaType(mediaType) && strings.Contains(mediaType, "qcow2"):
		return inside.Qcow2, true
	case manifest.IsDiskMediaType(mediaType), mediaType == manifest.MediaTypeVMCidata:
		return inside.Raw, true
	case strings.HasSuffix(f.Name, ".qcow2"):
		return inside.Qcow2, true
	case strings.HasSuffix(f.Name, ".raw"), strings.HasSuffix(f.Name, ".img"):
		return inside.Raw, true
	}
	return inside.Raw, false
}

// diskReader reads a snapshot's file for a session.
type diskReader struct {
	open *cache.File
	size int64
}

func (r diskReader) Size() int64 { return r.size }

func (r diskReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return r.open.ReadExactly(ctx, p, off)
}

func (r diskReader) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return r.open.ReadAt(ctx, p, off)
}

func newDiskReader(o *mounting.Opened, f *layout.File) (inside.Reader, error) {
	open, err := o.File(f)
	if err != nil {
		return nil, err
	}
	return diskReader{open, f.Size()}, nil
}

// guest is an open disk.
type guest struct {
	*inside.Session
	g         *globals
	reference string
	title     string
	notBase   error // why the base image in the artifact's config is not used
	opened    *mounting.Opened
	base      *mounting.Opened // of a qcow2 file; nil if none
}

// openGuest opens a disk of the snapshot. base is --base, or "" for the base
// image in the artifact's config.
func (g *globals) openGuest(ctx context.Context, o *mounting.Opened, f *layout.File, base string) (*guest, error) {
	r, err := newDiskReader(o, f)
	if err != nil {
		return nil, err
	}
	return g.openGuestOn(ctx, o, f, base, r)
}

// openGuestOn is openGuest with a given reader of the disk.
func (g *globals) openGuestOn(ctx context.Context, o *mounting.Opened, f *layout.File, base string, r inside.Reader) (*guest, error) {
	format, _ := diskFormat(f)
	d := &guest{g: g, reference: o.Reference.String(), title: f.Name, opened: o}
	image := inside.Image{Reader: r, Format: format}
	if base != "" && format != inside.Qcow2 {
		return nil, usagef("--base is for qcow2 disks, and %s is none", f.Name)
	}
	s, err := inside.Open(ctx, image, inside.Options{})
	if err != nil {
		return nil, d.explain(address{title: f.Name}, err)
	}
	d.Session = s
	if format == inside.Qcow2 && s.WantsBase() {
		if err := d.openBase(ctx, image, base); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

// openBase opens the disk again on top of a base image. A missing base image
// in the artifact's config is no error: most of what users look for is in
// the disk itself.
func (d *guest) openBase(ctx context.Context, image inside.Image, given string) error {
	reference := cmp.Or(given, d.opened.Artifact.Manifest.Annotations[manifest.AnnotationSnapshotBaseImage])
	if reference == "" {
		return nil
	}
	base, opened, err := d.baseImage(ctx, reference)
	if err != nil {
		if given != "" || ctx.Err() != nil {
			return err
		}
		d.notBase = err
		return nil
	}
	d.base = opened
	image.Base = base
	s, err := inside.Open(ctx, image, inside.Options{})
	if err != nil {
		return d.explain(address{title: d.title}, err)
	}
	d.Session.Close()
	d.Session = s
	return nil
}

// baseImage opens the disk of a base image.
func (d *guest) baseImage(ctx context.Context, reference string) (*inside.Image, *mounting.Opened, error) {
	o, err := d.g.open(ctx, reference, readTimeout)
	if err != nil {
		return nil, nil, fmt.Errorf("base image: %w", err)
	}
	var disk *layout.File
	for _, f := range o.Artifact.Files {
		if _, ok := diskFormat(f); ok && disk != nil {
			return nil, nil, errors.Join(usagef("base image: %s has several disks: %s, %s", reference, disk.Name, f.Name), o.Close())
		} else if ok {
			disk = f
		}
	}
	if disk == nil {
		return nil, nil, errors.Join(fmt.Errorf("base image: %s has no disk: %w", reference, errNotFound), o.Close())
	}
	r, err := newDiskReader(o, disk)
	if err != nil {
		return nil, nil, errors.Join(err, o.Close())
	}
	format, _ := diskFormat(disk)
	return &inside.Image{Reader: r, Format: format}, o, nil
}

// Close ends the session. With --verbose it reports the reads.
func (d *guest) Close() {
	d.Session.Close()
	st, net := d.Stats(), d.opened.Registry.Stats()
	d.g.log.Debug("looked inside", "disk", d.title, "confined_by", d.Level().String(),
		"asked", st.Asked, "reads", st.Reads, "read_bytes", st.Bytes, "hinted", st.Hinted, "copied_bytes", st.Copied,
		"requests", net.Requests, "fetched_bytes", net.Bytes)
	if said := d.Said(); said != "" {
		d.g.log.Debug("the process that read the guest's bytes wrote", "disk", d.title, "stderr", said)
	}
	if d.base != nil {
		net := d.base.Registry.Stats()
		d.g.log.Debug("looked inside", "base_image", d.base.Reference.String(), "requests", net.Requests, "fetched_bytes", net.Bytes)
		_ = d.base.Close() // it was only read
	}
}

// guestTree is an open file system of a guest.
type guestTree struct {
	*inside.FS
	at address
}

// openTree opens the file system of an address.
func (d *guest) openTree(a address) (*guestTree, error) {
	v, err := d.choose(a)
	if err != nil {
		return nil, err
	}
	fsys, err := d.FS(v.Number, a.upper)
	if err != nil {
		if a.upper && errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %s has no overlay's upper layer: %w", d.reference, d.title, errNotFound)
		}
		a.path, a.volume = "", v.Name
		return nil, d.explain(a, err)
	}
	return &guestTree{fsys, a}, nil
}

// containers are types of volumes without a file system of their own.
var containers = map[string]bool{"lvm": true, "swap": true, "extended": true, "": true}

// choose returns the volume of an address, or the only one.
func (d *guest) choose(a address) (inside.Volume, error) {
	all, err := d.Volumes()
	if err != nil {
		return inside.Volume{}, d.explain(address{title: d.title}, err)
	}
	var with []inside.Volume
	for _, v := range all {
		if a.volume != "" && (v.Name == a.volume || fmt.Sprint(v.Number) == a.volume) {
			return v, nil
		}
		if !containers[v.Type] {
			with = append(with, v)
		}
	}
	switch {
	case a.volume != "":
		return inside.Volume{}, fmt.Errorf("%s: %s has no volume %q: %w; it has %s", d.reference, d.title, a.volume, errNotFound, volumeList(all))
	case len(with) == 0 && len(all) > 0:
		return inside.Volume{}, fmt.Errorf("%s: %s has no file system: it has %s", d.reference, d.title, volumeList(all))
	case len(with) == 0:
		return inside.Volume{}, fmt.Errorf("%s: %s has no volume: %w", d.reference, d.title, errNotFound)
	case len(with) > 1:
		return inside.Volume{}, usagef("%s has %d volumes: %s; name one, as in %s:%s:/", d.title, len(with), volumeList(with), d.title, volumeName(with[0]))
	}
	return with[0], nil
}

// volumeName returns the name of a volume in an address.
func volumeName(v inside.Volume) string {
	if v.Name == "" || v.Name == upperName {
		return fmt.Sprint(v.Number)
	}
	return v.Name
}

func volumeList(all []inside.Volume) string {
	var names []string
	for _, v := range all[:min(len(all), mostNames)] {
		kind := cmp.Or(v.Type, "unknown")
		if v.Label != "" {
			kind += ", " + v.Label
		}
		names = append(names, fmt.Sprintf("%s (%s, %s)", volumeName(v), kind, size(v.Size)))
	}
	if more := len(all) - mostNames; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// stale prints on stderr that the file system was not cleanly unmounted. of
// names the snapshot, or is "" if there is only one.
func (t *guestTree) stale(g *globals, of string) {
	if t.State == "" || t.State == "clean" {
		return
	}
	disk := t.at
	disk.upper, disk.path = false, ""
	if of != "" {
		of += ": "
	}
	state := t.State
	if strings.HasPrefix(state, "recovered") {
		state = "journal " + state
	}
	g.note("%s%s: the guest was running; %s", of, disk, state)
}

// resolve returns the file at the address's path.
func (d *guest) resolve(t *guestTree, follow bool) (*inside.File, error) {
	f, err := t.Resolve(t.at.path, follow)
	if err == nil {
		return f, nil
	}
	err = d.explain(t.at, err)
	if !errors.Is(err, fs.ErrNotExist) || t.at.upper {
		return nil, err
	}
	there := t.at
	what := "this disk is an overlay's upper layer, which has"
	if rest, ok := strings.CutPrefix(there.path, "/"+upperName+"/"); ok {
		there.path = "/" + rest
		what = "this disk is not an overlay's upper layer, and has"
	} else {
		there.path = "/" + upperName + there.path
	}
	if _, hint := t.Resolve(there.path, false); hint == nil {
		return nil, fmt.Errorf("%w; %s %s", err, what, there)
	}
	return nil, err
}

// missingInside is an error about something that a guest's file system
// lacks.
type missingInside struct{ error }

func (e missingInside) Unwrap() []error { return []error{e.error, errNotFound} }

// explain adds the place of an error, and what to do about it.
func (d *guest) explain(a address, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, inside.ErrMisbehaved):
	case errors.Is(err, vfs.ErrNoBase):
		err = fmt.Errorf("%w: name its base image with --base REF", err)
		if d.notBase != nil {
			err = fmt.Errorf("%w (the artifact's base image: %v)", err, d.notBase)
		}
	case errors.Is(err, vfs.ErrUnsupported):
		text := strings.ToLower(err.Error())
		switch {
		case strings.Contains(text, "luks"):
			err = fmt.Errorf("%w: mount the snapshot and open the disk with losetup and cryptsetup, in a disposable VM", err)
		default:
			err = fmt.Errorf("%w: mount the snapshot and the disk in it with mount -o ro,loop, in a disposable VM", err)
		}
	case errors.Is(err, fs.ErrNotExist):
		err = missingInside{err}
	}
	return &insideError{d.reference + ": " + a.String(), err}
}

// insideError is an error about an address in a snapshot.
type insideError struct {
	where string
	cause error
}

func (e *insideError) Error() string { return e.where + ": " + e.cause.Error() }
func (e *insideError) Unwrap() error { return e.cause }
