// Package reader is the child's half of reading a guest's disk: it answers
// calls (package wire) with package guestfs, from images that the parent
// reads for it. It runs in a sandbox, and nothing outside relies on its
// answers being true.
package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/cocoonstack/epochfs/internal/guestfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// Main runs a process for which sandbox.Is is true.
func Main() int { return sandbox.Main(Serve) }

// server is the state of a child.
type server struct {
	conn    *sandbox.Conn
	talk    sync.Mutex // held over a frame, or over a question and its answer
	disk    guestfs.Image
	volumes []guestfs.Volume
	systems []system // by file system number
}

// system is an open file system.
type system struct {
	guestfs.FS
	volume int
	upper  bool
}

// Serve answers calls until the parent hangs up.
func Serve(conn *sandbox.Conn) error {
	s := &server{conn: conn}
	for {
		kind, payload, err := conn.Read()
		if err != nil {
			return err
		}
		if kind != wire.Call || len(payload) == 0 {
			return fmt.Errorf("a call of kind %d", kind)
		}
		d := &wire.Decoder{B: append([]byte(nil), payload[1:]...)}
		err = s.answer(wire.Op(payload[0]), d)
		if err := s.done(err); err != nil {
			return err
		}
	}
}

// answer executes one call.
func (s *server) answer(op wire.Op, d *wire.Decoder) error {
	calls := map[wire.Op]func(*wire.Decoder) error{
		wire.Images: s.images, wire.Volumes: s.listVolumes, wire.OpenFS: s.openFS, wire.Raw: s.raw,
	}
	if call := calls[op]; call != nil {
		return call(d)
	}
	n := d.Num()
	if n >= uint64(len(s.systems)) {
		return fmt.Errorf("file system %d: %w", n, fs.ErrInvalid)
	}
	onFiles := map[wire.Op]func(system, *wire.Decoder) error{
		wire.Resolve: s.resolve, wire.List: s.list, wire.ReadAt: s.readAt, wire.Extents: s.extents,
		wire.Locate: s.locate, wire.Xattrs: s.xattrs, wire.Tree: s.tree,
	}
	call := onFiles[op]
	if call == nil {
		return fmt.Errorf("operation %d: %w", op, fs.ErrInvalid)
	}
	return call(s.systems[n], d)
}

// done ends a call.
func (s *server) done(err error) error {
	e := wire.Encoder{B: s.conn.Buffer()}
	e.B = append(e.B, byte(codeOf(err)))
	if err != nil {
		e.Text(err.Error(), wire.MaxText)
	} else {
		e.Text("", 0)
	}
	return s.send(wire.Done, e.B)
}

func (s *server) send(kind byte, payload []byte) error {
	s.talk.Lock()
	defer s.talk.Unlock()
	return s.conn.Write(kind, payload)
}

// item sends a result.
func (s *server) item(fill func(e *wire.Encoder)) error {
	e := wire.Encoder{B: s.conn.Buffer()}
	fill(&e)
	return s.send(wire.Item, e.B)
}

func codeOf(err error) wire.Code {
	for _, k := range []struct {
		is   error
		code wire.Code
	}{
		{errImage, wire.ImageFailed},
		{guestfs.ErrMetacopy, wire.Metacopy},
		{guestfs.ErrNoBase, wire.NoBase},
		{guestfs.ErrDamaged, wire.Damaged},
		{guestfs.ErrUnsupported, wire.Unsupported},
		{errors.ErrUnsupported, wire.Unsupported},
		{fs.ErrNotExist, wire.NotFound},
		{fs.ErrInvalid, wire.Invalid},
	} {
		if errors.Is(err, k.is) {
			return k.code
		}
	}
	if err == nil {
		return wire.OK
	}
	return wire.Other
}

// maxImages bounds a chain of backing files.
const maxImages = 16

// images opens the disk: the first image, on top of those that it is based
// on.
func (s *server) images(d *wire.Decoder) error {
	type image struct {
		file   guestfs.Image
		format wire.Format
		base   int
	}
	all := make([]image, d.NumBelow(maxImages))
	for i := range all {
		all[i].format = wire.Format(d.NumBelow(2))
		all[i].file = &remote{s.conn, &s.talk, i, int64(d.Num())}
		all[i].base = int(d.NumBelow(maxImages)) - 1
	}
	if !d.Ok() || len(all) == 0 {
		return fs.ErrInvalid
	}
	wants := false
	// In reverse order, because a base follows the image on top of it.
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].format == wire.FormatRaw {
			continue
		}
		base := func(string) (guestfs.Image, error) {
			wants = wants || i == 0
			return nil, nil
		}
		if b := all[i].base; b > i && b < len(all) {
			base = func(string) (guestfs.Image, error) { return all[b].file, nil }
		}
		disk, err := guestfs.OpenQcow2(all[i].file, base)
		if err != nil {
			return err
		}
		all[i].file = disk
	}
	s.disk = all[0].file
	return s.item(func(e *wire.Encoder) {
		e.Num(uint64(s.disk.Size()))
		e.Bool(wants)
	})
}

func (s *server) listVolumes(*wire.Decoder) error {
	if err := s.findVolumes(); err != nil {
		return err
	}
	for _, v := range s.volumes {
		if err := s.item(func(e *wire.Encoder) {
			e.Volume(wire.Volume{Number: v.Number, Name: v.Name, Type: v.Type, Label: v.Label, Offset: v.Offset, Size: v.Size})
		}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) findVolumes() (err error) {
	if s.disk == nil {
		return fs.ErrInvalid
	}
	if s.volumes == nil {
		s.volumes, err = guestfs.Volumes(s.disk)
	}
	return err
}

// openFS opens a volume's file system, once.
func (s *server) openFS(d *wire.Decoder) error {
	number, upper := int(d.NumBelow(1<<16)), d.Bool()
	if err := s.findVolumes(); err != nil {
		return err
	}
	n, err := s.system(number, upper)
	if err != nil {
		return err
	}
	fsys := s.systems[n]
	about := fsys.Describe()
	_, upperErr := guestfs.Upper(s.plain(number))
	switch { // without the root directory nothing is found
	case errors.Is(upperErr, fs.ErrInvalid):
		return fmt.Errorf("%w: root directory: %v", guestfs.ErrDamaged, upperErr)
	case errors.Is(upperErr, errImage), errors.Is(upperErr, guestfs.ErrDamaged):
		return upperErr
	}
	return s.item(func(e *wire.Encoder) {
		e.Num(uint64(n))
		e.Num(fsys.Root())
		e.Description(wire.Description{
			Type: about.Type, Label: about.Label, UUID: about.UUID, State: about.State, Size: about.Size,
			HasUpper: upperErr == nil,
		})
	})
}

// system returns the number of a volume's file system, or of its upper view.
func (s *server) system(volume int, upper bool) (int, error) {
	for i, o := range s.systems {
		if o.volume == volume && o.upper == upper {
			return i, nil
		}
	}
	var fsys guestfs.FS
	var err error
	if upper {
		n, err := s.system(volume, false)
		if err != nil {
			return 0, err
		}
		fsys, err = guestfs.Upper(s.systems[n].FS)
		if err != nil {
			return 0, err
		}
	} else {
		for _, v := range s.volumes {
			if v.Number == volume {
				fsys, err = guestfs.Open(v)
			}
		}
		if err == nil && fsys == nil {
			err = fmt.Errorf("volume %d: %w", volume, fs.ErrNotExist)
		}
		if err != nil {
			return 0, err
		}
	}
	s.systems = append(s.systems, system{fsys, volume, upper})
	return len(s.systems) - 1, nil
}

// plain returns a volume's open file system.
func (s *server) plain(volume int) guestfs.FS {
	n, err := s.system(volume, false)
	if err != nil {
		return nil
	}
	return s.systems[n].FS
}
