package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/whole"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// runCatInside writes a guest's file to stdout.
func runCatInside(ctx context.Context, opts catOptions, o *mounting.Opened, f *layout.File, a address) error {
	d, err := opts.openGuest(ctx, o, f, opts.base)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := d.openTree(a)
	if err != nil {
		return err
	}
	t.stale(opts.globals, "")
	file, err := d.resolve(t, true)
	if err != nil {
		return err
	}
	if vfs.Type(file.Type) != vfs.Regular {
		return fmt.Errorf("%s: %s is a %s, not a file", d.reference, a, typeNames[vfs.Type(file.Type)])
	}
	left := max(file.Size-opts.offset, 0)
	if opts.length >= 0 {
		left = min(left, opts.length)
	}
	m := opts.meter(left)
	err = fillGaps(counting{opts.out, m.add}, opts.offset, left, func(visit func(off int64, p []byte) error) error {
		return t.Contents(file, opts.offset, left, visit)
	})
	m.finish()
	if err != nil {
		return m.interrupted(ctx, d.explain(a, err), "fetched data stays in the cache")
	}
	return nil
}

// fillGaps writes [off, off+n) as visited by read, with zeros between.
func fillGaps(w io.Writer, off, n int64, read func(visit func(off int64, p []byte) error) error) error {
	next := off
	err := read(func(at int64, p []byte) error {
		if err := writeZeros(w, at-next); err != nil {
			return err
		}
		next = at + int64(len(p))
		_, err := w.Write(p)
		return err
	})
	if err != nil {
		return err
	}
	return writeZeros(w, off+n-next)
}

var blankBytes [64 << 10]byte

func writeZeros(w io.Writer, n int64) error {
	for n > 0 {
		some := blankBytes[:min(n, int64(len(blankBytes)))]
		if _, err := w.Write(some); err != nil {
			return err
		}
		n -= int64(len(some))
	}
	return nil
}

// rawStep is the size of a disk's reads, small enough to show progress.
const rawStep = 256 << 20

// runCatRaw writes a disk as raw, whatever its format.
func runCatRaw(ctx context.Context, opts catOptions, o *mounting.Opened, f shown) error {
	if format, _ := diskFormat(f.file); format == inside.Raw {
		from := min(opts.offset, f.size)
		return opts.writeRaw(ctx, from, opts.until(from, f.size), func(from, to int64, visit func(off int64, p []byte) error) error {
			return readShown(ctx, o, f, from, to-from, visit)
		})
	}
	d, err := opts.openGuest(ctx, o, f.file, opts.base)
	if err != nil {
		return err
	}
	defer d.Close()
	from := min(opts.offset, d.Size())
	err = opts.writeRaw(ctx, from, opts.until(from, d.Size()), func(from, to int64, visit func(off int64, p []byte) error) error {
		return d.RawRange(from, to-from, visit)
	})
	var file fileError
	if err != nil && ctx.Err() == nil && !errors.As(err, &file) {
		err = d.explain(address{title: f.name}, err)
	}
	return err
}

// until returns the end of a read of --length bytes from off.
func (opts *catOptions) until(off, size int64) int64 {
	if opts.length >= 0 {
		return min(size, off+min(opts.length, size-off))
	}
	return size
}

// writeRaw writes [from, to) as visited by read, and shows progress.
func (opts *catOptions) writeRaw(ctx context.Context, from, to int64, read func(from, to int64, visit func(off int64, p []byte) error) error) error {
	m := opts.meter(to - from)
	steps := func(visit func(off int64, p []byte) error) error {
		for at := from; at < to; at += rawStep {
			end := min(at+rawStep, to)
			if err := read(at, end, visit); err != nil {
				return err
			}
			m.add(end - at)
		}
		return nil
	}
	var err error
	if opts.output == "" || opts.output == "-" {
		err = fillGaps(opts.out, from, to-from, steps)
	} else {
		err = writeSparse(opts.output, from, to-from, steps)
	}
	m.finish()
	return m.interrupted(ctx, err, "fetched data stays in the cache")
}

// writeSparse makes a file of [off, off+n) as visited by read, with holes
// between, all or nothing.
func writeSparse(name string, off, n int64, read func(visit func(off int64, p []byte) error) error) error {
	file, err := whole.Create(name)
	if err != nil {
		return cannotWrite(name, err)
	}
	defer file.Close()
	if err := file.Truncate(n); err != nil {
		return cannotWrite(name, err)
	}
	err = read(func(at int64, p []byte) error {
		return cannotWrite(name, writeData(file, p, at-off))
	})
	if err != nil {
		return err
	}
	return cannotWrite(name, file.Commit())
}

// writeData writes p at off, except blocks of zeros, which become holes.
func writeData(w io.WriterAt, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), len(blankBytes)-int(off%int64(len(blankBytes))))
		if !bytes.Equal(p[:n], blankBytes[:n]) {
			if _, err := w.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readShown visits the data of [off, off+n) of a snapshot's file.
func readShown(ctx context.Context, o *mounting.Opened, f shown, off, n int64, visit func(off int64, p []byte) error) error {
	src, err := readerOf(ctx, o, f)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for from, to := range dataRanges(f, off, n) {
		for from < to {
			p := buf[:min(to-from, int64(len(buf)))]
			if got, err := src.ReadAt(p, from); got < len(p) {
				if err == nil || errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if err := visit(from, p); err != nil {
				return err
			}
			from += int64(len(p))
		}
	}
	return nil
}

// dataRanges yields the ranges of [off, off+n) of a snapshot's file that
// hold data.
func dataRanges(f shown, off, n int64) func(yield func(from, to int64) bool) {
	return func(yield func(from, to int64) bool) {
		if f.file == nil {
			yield(off, off+n)
			return
		}
		for at := off; at < off+n; {
			from, ok := f.file.Map.SeekData(at)
			if !ok || from >= off+n {
				return
			}
			at = min(f.file.Map.SeekHole(from), off+n)
			if !yield(from, at) {
				return
			}
		}
	}
}
