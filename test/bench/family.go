package main

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/traces"
)

const (
	memoryTitle = "memory-ranges"
	diskTitle   = "cow.raw"

	// diskData is how much of this machine's files the disk has, in bytes.
	diskData = 320 << 20
)

// family is what the rows of the packed format push: exports that have one
// file each, but for a real guest's.
type family struct {
	first, second string // memories of one guest, the second some 30 s later
	disk          string // of such a guest
	whole         [2]string
	m             *sparse.Map // of the first memory
}

// family makes the exports, once: of the traces of a guest, or of the
// exports m1.tar and m2.tar of a guest in the directory that was named.
func (b *bench) family() (*family, error) {
	if b.made != nil {
		return b.made, nil
	}
	f := &family{first: filepath.Join(b.dir, "m1.tar"), second: filepath.Join(b.dir, "m2.tar"), disk: filepath.Join(b.dir, "disk.tar")}
	var err error
	if b.guest != "" {
		err = f.extract(b.guest)
	} else {
		err = f.imitate()
	}
	b.made = f
	return f, err
}

// imitate writes memories that hold and change what the guest's did, in
// pages made to compress like a guest's, and a disk of the files of this
// machine's /usr.
func (f *family) imitate() error {
	t, err := traces.ReadFamily()
	if err != nil {
		return err
	}
	g := newGuestMemory(t)
	first, second := t.Snapshots["m1"], t.Snapshots["m2"]
	if f.m, err = first.Map(t.Page, 0); err != nil {
		return err
	}
	later, err := second.Map(t.Page, 0)
	if err != nil {
		return err
	}
	if err := writeExport(f.first, memoryTitle, f.m, g.payload(f.m)); err != nil {
		return err
	}
	g.change(t.Changed["m1-m2"])
	if err := writeExport(f.second, memoryTitle, later, g.payload(later)); err != nil {
		return err
	}
	return writeExport(f.disk, diskTitle, sparse.Dense(diskData), usrFiles("/usr", diskData))
}

// extract takes the files out of a real guest's exports.
func (f *family) extract(dir string) (err error) {
	f.whole = [2]string{filepath.Join(dir, "m1.tar"), filepath.Join(dir, "m2.tar")}
	if f.m, err = extractFile(f.whole[0], memoryTitle, f.first); err != nil {
		return err
	}
	if _, err = extractFile(f.whole[1], memoryTitle, f.second); err != nil {
		return err
	}
	_, err = extractFile(f.whole[0], diskTitle, f.disk)
	return err
}

// extractFile writes an export that has just one file of another.
func extractFile(from, title, to string) (*sparse.Map, error) {
	f, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := tar.NewReader(bufio.NewReaderSize(f, 1<<20))
	for {
		hdr, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", from, title, err)
		}
		if hdr.Name != title {
			continue
		}
		m, err := mapOf(hdr)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", from, title, err)
		}
		return m, writeExport(to, title, m, r)
	}
}

// mapOf returns the map of an export's file.
func mapOf(hdr *tar.Header) (*sparse.Map, error) {
	text, ok := hdr.PAXRecords["COCOON.sparse.map"]
	if !ok {
		return sparse.Dense(hdr.Size), nil
	}
	size, err := strconv.ParseInt(hdr.PAXRecords["COCOON.sparse.size"], 10, 64)
	if err != nil {
		return nil, err
	}
	return sparse.Parse(text, size)
}

// guestMemory is a memory whose pages change as those of the traces did.
type guestMemory struct {
	version []uint32 // how often a page was changed
}

func newGuestMemory(t *traces.Family) *guestMemory {
	return &guestMemory{version: make([]uint32, t.Snapshots["m1"].Size/pageSize)}
}

func (g *guestMemory) change(runs []traces.Run) {
	for _, r := range runs {
		for p := r[0]; p < min(r[0]+r[1], int64(len(g.version))); p++ {
			g.version[p]++
		}
	}
}

// fill makes a page: one of fillPage, but with text that does not come
// again far off: in a guest's memory hardly anything does, so that large
// chunks compress little better than granules.
func (g *guestMemory) fill(p []byte, page int64) {
	seed := mix(uint64(page)<<20 | uint64(g.version[page]))
	if seed%100 < 74 {
		fillPage(p, seed)
		return
	}
	for i := 0; i < pageSize; i += 1024 {
		seed = mix(seed)
		copy(p[i:i+1024], prose[seed>>8%(proseSize-1024):])
	}
}

// payload reads the pages that a map gives data.
func (g *guestMemory) payload(m *sparse.Map) io.Reader {
	r, w := io.Pipe()
	go func() {
		buf := make([]byte, pageSize)
		for _, s := range m.Segments() {
			for off := s.Offset; off < s.Offset+s.Length; off += pageSize {
				g.fill(buf, off/pageSize)
				if _, err := w.Write(buf); err != nil {
					return
				}
			}
		}
		w.Close()
	}()
	return bufio.NewReaderSize(r, 1<<20)
}

// usrFiles reads files below a directory, in the order of their names, up
// to size bytes in all, each from the start of a block of 4 KiB, as a disk
// has them.
func usrFiles(dir string, size int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		left := size
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data = append(data, make([]byte, -len(data)&(pageSize-1))...)
			n := min(int64(len(data)), left)
			left -= n
			if _, err := w.Write(data[:n]); err != nil {
				return err
			}
			if left == 0 {
				return fs.SkipAll
			}
			return nil
		})
		w.CloseWithError(err)
	}()
	return r
}

// packedTag makes sure that the first or the second memory is in the
// repository of all artifacts, in the given format.
func (b *bench) packedTag(ctx context.Context, format string, second bool) (tag string, err error) {
	f, err := b.family()
	if err != nil {
		return "", err
	}
	file := f.first
	if tag = "family-" + format; second {
		file, tag = f.second, tag+"-later"
	}
	if b.pushed[tag] {
		return tag, nil
	}
	args := pushArgs(format)
	if second {
		first, err := b.packedTag(ctx, format, false)
		if err != nil {
			return "", err
		}
		if format == "packed" {
			args = append(args, "--base", b.registry.addr+"/"+repo+":"+first)
		}
	}
	if _, err := b.push(ctx, file, repo+":"+tag, args...); err != nil {
		return "", err
	}
	b.pushed[tag] = true
	return tag, nil
}

// pushArgs are the flags for a format as it is measured.
func pushArgs(format string) []string {
	switch format {
	case "v2":
		return []string{"--format", "v2", "--zstd", "3", "--chunk", "4MiB"}
	case "packed":
		return []string{"--format", "packed", "--zstd", "3"}
	}
	return []string{"--format", format}
}
