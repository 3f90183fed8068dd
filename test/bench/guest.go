package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cocoonstack/epochfs/test/vm"
)

// realGuest opens the guest, and makes it where it is not there yet: in the
// directory that was named, or in one among the user's caches.
func (b *bench) realGuest(ctx context.Context) (*vm.Guest, error) {
	dir := b.guest
	if dir == "" {
		caches, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(caches, "epochfs-bench-guest")
	}
	return vm.Open(ctx, dir, func(what string) { fmt.Fprint(os.Stderr, what, " … ") })
}

// guestTag makes sure that a snapshot of the guest is in the registry, in a
// format. What is not the first snapshot has the first as its base.
func (b *bench) guestTag(ctx context.Context, format, snapshot string) (tag string, err error) {
	g, err := b.realGuest(ctx)
	if err != nil {
		return "", err
	}
	tag = "guest-" + snapshot + "-" + format
	if b.pushed[tag] {
		return tag, nil
	}
	args := pushArgs(format)
	if first := vm.Snapshots[0].Name; snapshot != first {
		base, err := b.guestTag(ctx, format, first)
		if err != nil {
			return "", err
		}
		args = append(args, "--base", b.registry.addr+"/"+repo+":"+base)
	}
	file := filepath.Join(b.dir, snapshot+".tar")
	if err := exportSnapshot(g.Dir(snapshot), file); err != nil {
		return "", err
	}
	defer os.Remove(file)
	if _, err := b.push(ctx, file, repo+":"+tag, args...); err != nil {
		return "", err
	}
	b.pushed[tag] = true
	return tag, nil
}

// exportSnapshot writes a snapshot as cocoon exports it.
func exportSnapshot(dir, file string) error {
	e, err := newExport(file)
	if err != nil {
		return err
	}
	for _, title := range []string{vm.DiskFile, vm.MemoryFile, vm.StateFile} {
		err = errors.Join(err, e.addFile(title, filepath.Join(dir, title)))
	}
	return errors.Join(err, e.close())
}

// resume starts the guest from a directory, waits until it is done with some
// turns of its work, and returns the seconds that the first took, from when
// QEMU began to load its state. first is called when that turn is done.
func resume(ctx context.Context, g *vm.Guest, dir string, turns int, first func() error) (seconds float64, err error) {
	r, err := g.Resume(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	t, err := r.Turn(ctx)
	if err == nil {
		err = first()
	}
	for i := 1; i < turns && err == nil; i++ {
		_, err = r.Turn(ctx)
	}
	return t.Sub(r.Began).Seconds(), err
}

// resuming is the name under which this program calls itself to start a guest,
// where another program has to run that: GUEST TURNS RESULT DIR.
const resuming = "resume-guest"

// resumeGuest is the other end. The seconds that the first turn took go to the
// file result.
func resumeGuest(ctx context.Context, guest, turns, result, dir string) error {
	n, err := strconv.Atoi(turns)
	if err != nil {
		return err
	}
	g, err := vm.Open(ctx, guest, func(string) {})
	if err != nil {
		return err
	}
	seconds, err := resume(ctx, g, dir, n, func() error { return nil })
	if err != nil {
		return err
	}
	text, err := json.Marshal(seconds)
	if err != nil {
		return err
	}
	return os.WriteFile(result, text, 0o600)
}
