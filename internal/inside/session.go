package inside

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// limits bound what a child may do between two results. A file system that
// needs more is treated as a trap.
type limits struct {
	frames int           // reads and hints
	bytes  int64         // of reads
	time   time.Duration // time that the child itself takes
	items  int           // results of one call
}

// usual limits. A file system of 16 TiB with a hundred million files has 25
// GB of inodes, and preparing a walk returns no result in between.
var usual = limits{frames: 1 << 19, bytes: 64 << 30, time: 2 * time.Minute, items: 16 << 20}

// Options configure a session's child. The zero value is right except for
// tests.
type Options struct {
	Sandbox sandbox.Options
	limits  limits
}

// Session is an open disk, with the child that parses it. It is not safe for
// concurrent use.
type Session struct {
	child  *sandbox.Child
	images []*pages
	ctx    context.Context
	limits limits
	raw    bool   // the disk is the first image itself
	copied []byte // for copyDisk
	size   int64
	wants  bool  // needs a base, and has none
	failed error // why an image could not be read
}

// Open starts a child on an image. When ctx ends, every call fails with
// ctx's error. The caller must call Close.
func Open(ctx context.Context, image Image, opts Options) (*Session, error) {
	child, err := sandbox.Start(ctx, opts.Sandbox)
	if err != nil {
		return nil, err
	}
	s := &Session{child: child, ctx: ctx, limits: opts.limits, raw: image.Format == Raw}
	if s.limits == (limits{}) {
		s.limits = usual
	}
	e := wire.Encoder{}
	n := 0
	for i := &image; i != nil; i = i.Base {
		s.images = append(s.images, newPages(i.Reader))
		n++
		e.Num(uint64(i.Format))
		e.Num(uint64(max(i.Reader.Size(), 0)))
		if i.Base != nil {
			e.Num(uint64(n + 1))
		} else {
			e.Num(0)
		}
	}
	args := wire.Encoder{}
	args.Num(uint64(n))
	err = s.call(wire.Images, append(args.B, e.B...), one(func(d *wire.Decoder) bool {
		s.size, s.wants = int64(d.NumBelow(maxDisk)), d.Bool()
		return true
	}))
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// maxDisk bounds a disk's size, in bytes.
const maxDisk = 1 << 60

// Size returns the disk's size in bytes, according to its image.
func (s *Session) Size() int64 { return s.size }

// WantsBase reports whether a qcow2 image names a backing file and has no
// Base. The name does not matter: no file of the guest's choice is ever
// opened.
func (s *Session) WantsBase() bool { return s.wants }

// Level returns how the child is confined.
func (s *Session) Level() sandbox.Level { return s.child.Level }

// Said returns what a crashed child wrote to its stderr: text from
// elsewhere.
func (s *Session) Said() string { return s.child.Said() }

// Stats returns the counters of all images.
func (s *Session) Stats() Stats {
	var sum Stats
	for _, g := range s.images {
		st := g.Stats()
		sum.Asked += st.Asked
		sum.Reads += st.Reads
		sum.Bytes += st.Bytes
		sum.Hinted += st.Hinted
		sum.Copied += st.Copied
	}
	return sum
}

// Close ends the child.
func (s *Session) Close() { s.child.Close() }

// answers receives the results of a call. An error ends the call and the
// session.
type answers struct {
	item func(d *wire.Decoder) error
	data func(off int64, p []byte) error
}

// one returns answers that accept a single item.
func one(take func(d *wire.Decoder) bool) answers {
	n := 0
	return answers{item: func(d *wire.Decoder) error {
		if n++; n > 1 || !take(d) {
			return errGarbage
		}
		return nil
	}}
}

// errGarbage is the error of an impossible answer.
var errGarbage = errors.New("garbage")

// call runs an operation in the child.
func (s *Session) call(op wire.Op, args []byte, to answers) error {
	err := s.run(op, args, to)
	var told *guestError
	if err != nil && !errors.As(err, &told) {
		s.child.Kill() // in the middle of the call
	}
	if err != nil && s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return err
}

func (s *Session) run(op wire.Op, args []byte, to answers) error {
	if err := s.child.Write(wire.Call, append([]byte{byte(op)}, args...)); err != nil {
		return err
	}
	left := s.limits
	for {
		asked := time.Now()
		kind, payload, err := s.child.Read()
		if err != nil {
			return err
		}
		left.time -= time.Since(asked)
		d := &wire.Decoder{B: payload}
		switch kind {
		case wire.Read, wire.Prefetch:
			left.frames--
			err = s.serve(kind, d, &left)
		case wire.Item, wire.Data:
			items := left.items - 1
			left = s.limits
			left.items = items
			err = s.take(kind, d, to)
		case wire.Done:
			return s.endOfCall(d)
		default:
			err = errGarbage
		}
		switch {
		case errors.Is(err, errGarbage):
			return s.child.Misbehaved("an answer that cannot be (kind %d)", kind)
		case err != nil:
			return err
		case left.frames < 0 || left.bytes < 0:
			return s.child.Misbehaved("it reads without end")
		case left.items < 0:
			return s.child.Misbehaved("more than %d results", s.limits.items)
		case left.time < 0:
			return s.child.Misbehaved("no result after %s", s.limits.time)
		}
	}
}

// take passes a result on.
func (s *Session) take(kind byte, d *wire.Decoder, to answers) error {
	if kind == wire.Item {
		if to.item == nil {
			return errGarbage
		}
		if err := to.item(d); err != nil {
			return err
		}
		if !d.Ok() {
			return errGarbage
		}
		return nil
	}
	off := int64(d.Num())
	if to.data == nil || !d.Good() || len(d.B) == 0 {
		return errGarbage
	}
	return to.data(off, d.B)
}

// serve answers a read, or follows a hint.
func (s *Session) serve(kind byte, d *wire.Decoder, left *limits) error {
	number := d.NumBelow(uint64(len(s.images)))
	if !d.Good() {
		return errGarbage
	}
	g := s.images[number]
	if kind == wire.Prefetch {
		var ranges []span
		for len(d.B) > 0 && len(ranges) <= wire.MaxRanges {
			off, n := int64(d.Num()), int64(d.Num())
			if !d.Good() || !g.holds(off, n) {
				return errGarbage
			}
			left.bytes -= n
			ranges = append(ranges, span{off, off + n})
		}
		g.Prefetch(s.ctx, ranges)
		return s.ctx.Err()
	}
	off, n := int64(d.Num()), int64(d.NumBelow(wire.MaxRead+1))
	if !d.Ok() || !g.holds(off, n) {
		return errGarbage
	}
	left.bytes -= n
	g.mu.Lock()
	g.stats.Asked++
	g.mu.Unlock()
	p := s.child.Buffer()
	if int64(cap(p)) < n {
		p = make([]byte, n)
	}
	p = p[:n]
	if err := g.ReadAt(s.ctx, p, off); err != nil {
		s.failed = err
		if s.ctx.Err() != nil {
			return err
		}
		return s.child.Write(wire.Failed, nil)
	}
	return s.child.Write(wire.Bytes, p)
}

// holds reports whether a range lies within the image.
func (g *pages) holds(off, n int64) bool {
	return off >= 0 && n >= 0 && off <= g.size && n <= g.size-off
}

// Volumes returns the disk's volumes.
func (s *Session) Volumes() (all []Volume, err error) {
	const most = 1024
	err = s.call(wire.Volumes, nil, answers{item: func(d *wire.Decoder) error {
		v := d.Volume()
		if all = append(all, v); len(all) > most {
			return errGarbage
		}
		return nil
	}})
	return all, err
}

// FS is an open file system of a session.
type FS struct {
	Description
	Root uint64

	s      *Session
	number uint64
}

// FS opens a volume's file system, or its upper view.
func (s *Session) FS(volume int, upper bool) (*FS, error) {
	e := wire.Encoder{}
	e.Num(uint64(volume))
	e.Bool(upper)
	f := &FS{s: s}
	err := s.call(wire.OpenFS, e.B, one(func(d *wire.Decoder) bool {
		f.number, f.Root = d.Num(), d.Num()
		f.Description = d.Description()
		return true
	}))
	if err != nil {
		return nil, err
	}
	if f.State == "" && f.Type == "" {
		return nil, s.child.Misbehaved("volume %s was not opened", fmt.Sprint(volume))
	}
	return f, nil
}
