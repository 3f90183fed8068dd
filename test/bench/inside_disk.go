package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A guest's disk: 2 GiB of ext4 with 20,000 files.
const (
	guestSize    = 2 << 30
	guestDirs    = 100
	guestFiles   = 200 // in each
	guestFile    = 5 << 10
	guestBig     = 128 << 20 // one more file
	guestJournal = 64        // MiB, of the disk that is copied while in use
	guestChanged = 50        // files, in the second snapshot
)

// tool runs a program, also one of root's.
func tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if path, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// guestDisks makes the disks and pushes them, once: "guest" is clean,
// "guest-dirty" was copied while in use, "guest-later" has some files changed.
// The result is guest's file.
func (b *bench) guestDisks(ctx context.Context) (string, error) {
	dir := filepath.Join(b.dir, "guest")
	clean := filepath.Join(dir, "cow.raw")
	if b.pushed["guest"] {
		return clean, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	dirty, later := filepath.Join(dir, "dirty.raw"), filepath.Join(dir, "later.raw")
	for _, step := range []func() error{
		func() error { return makeGuest(ctx, clean) },
		func() error { return b.withMounted(ctx, clean, guestTree) },
		func() error { return copySparse(ctx, clean, later) },
		func() error { return b.withMounted(ctx, later, changeSome) },
		func() error { return b.dirtyCopy(ctx, clean, dirty) },
		func() error { return b.pushGuest(ctx, "guest", clean, "") },
		func() error { return b.pushGuest(ctx, "guest-later", later, "guest") },
		func() error { return b.pushGuest(ctx, "guest-dirty", dirty, "guest") },
	} {
		if err := step(); err != nil {
			return "", err
		}
	}
	b.pushed["guest"] = true
	return clean, nil
}

func guestTree(tree string) error {
	rng := rand.NewChaCha8([32]byte{5})
	write := func(name string, n int) error {
		data := make([]byte, n)
		_, _ = rng.Read(data) // never fails
		return os.WriteFile(name, data, 0o644)
	}
	for d := range guestDirs {
		dir := filepath.Join(tree, fmt.Sprintf("dir%03d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for f := range guestFiles {
			if err := write(filepath.Join(dir, fmt.Sprintf("file%03d", f)), guestFile); err != nil {
				return err
			}
		}
	}
	return write(filepath.Join(tree, "big"), guestBig)
}

func makeGuest(ctx context.Context, name string) error {
	return tool(ctx, "mkfs.ext4", "-q", "-J", fmt.Sprintf("size=%d", guestJournal), name, fmt.Sprintf("%dM", guestSize>>20))
}

func copySparse(ctx context.Context, from, to string) error {
	return tool(ctx, "cp", "--sparse=always", from, to)
}

// withMounted runs work in a disk's file system, and unmounts it.
func (b *bench) withMounted(ctx context.Context, disk string, work func(dir string) error) error {
	dir, err := os.MkdirTemp(b.dir, "loop-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := tool(ctx, "mount", "-o", "loop", disk, dir); err != nil {
		return err
	}
	return errors.Join(work(dir), tool(context.WithoutCancel(ctx), "umount", dir))
}

func changeSome(dir string) error {
	for i := range guestChanged {
		name := filepath.Join(dir, fmt.Sprintf("dir%03d/file%03d", 2*i, i))
		if err := os.WriteFile(name, make([]byte, guestFile+i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// dirtyCopy copies a disk while its journal holds some 20 MB that are not in
// place: all inodes, several times.
func (b *bench) dirtyCopy(ctx context.Context, from, to string) error {
	used := to + ".used"
	if err := copySparse(ctx, from, used); err != nil {
		return err
	}
	defer os.Remove(used)
	return b.withMounted(ctx, used, func(dir string) error {
		const rounds = 4
		for round := range rounds {
			at := time.Unix(int64(1_700_000_000+round), 0)
			for d := range guestDirs {
				for f := range guestFiles {
					if err := os.Chtimes(filepath.Join(dir, fmt.Sprintf("dir%03d/file%03d", d, f)), at, at); err != nil {
						return err
					}
				}
			}
			f, err := os.Open(filepath.Join(dir, "dir000/file000"))
			if err != nil {
				return err
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return err
			}
		}
		return copySparse(ctx, used, to)
	})
}

// packedTag is the tag of a snapshot in the packed format.
func packedTag(tag string) string { return tag + "-packed" }

// pushGuest pushes a snapshot with one disk, as v1 with digests of pieces, and
// packed, on top of another one.
func (b *bench) pushGuest(ctx context.Context, tag, disk, base string) error {
	name := disk + ".tar"
	if err := guestTar(name, disk); err != nil {
		return err
	}
	defer os.Remove(name)
	ref := func(tag string) string { return b.registry.addr + "/" + repo + ":" + tag }
	if err := tool(ctx, b.epochfs, "push", "--quiet", "--input", name, ref(tag)); err != nil {
		return err
	}
	packed := []string{"push", "--quiet", "--format", "packed", "--input", name}
	if base != "" {
		packed = append(packed, "--base", ref(packedTag(base)))
	}
	return tool(ctx, b.epochfs, append(packed, ref(packedTag(tag)))...)
}

// guestTar writes an export with a sparse disk.
func guestTar(name, disk string) error {
	in, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer in.Close()
	type segment struct {
		O int64 `json:"o"`
		L int64 `json:"l"`
	}
	var segs []segment
	var data int64
	for at := int64(0); ; {
		from, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		} else if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), from, unix.SEEK_HOLE); err != nil {
			return err
		}
		segs = append(segs, segment{from, at - from})
		data += at - from
	}
	text, err := json.Marshal(segs)
	if err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	envelope := `{"version":1,"config":{"name":"guest","id":"G1"}}`
	if err := w.WriteHeader(&tar.Header{Name: "snapshot.json", Mode: 0o644, Size: int64(len(envelope))}); err != nil {
		return err
	}
	if _, err := io.WriteString(w, envelope); err != nil {
		return err
	}
	err = w.WriteHeader(&tar.Header{Name: "cow.raw", Mode: 0o644, Size: data, PAXRecords: map[string]string{
		"COCOON.sparse.map": string(text), "COCOON.sparse.size": fmt.Sprint(guestSize),
	}})
	if err != nil {
		return err
	}
	for _, s := range segs {
		if _, err := io.Copy(w, io.NewSectionReader(in, s.O, s.L)); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), out.Close())
}
