package snapshot

import (
	"context"
	"crypto/sha256"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	// largeBlob is a file beside which another is sent, in bytes.
	largeBlob = 64 << 20

	// besideMemory is what two uploads of streams take, in bytes: their
	// bodies, and what a push takes besides.
	besideMemory = 160 << 20
)

// A registry takes the bytes of a blob one after another, and mostly more
// slowly than an export brings them. cocoon writes disks before memory, so
// while a large disk is sent, memory is sent as well: out of a second
// export, that passes the disk over.

// worthBeside says that memory is to come after a large file, that both
// can be sent at a time, and that what is read twice for it is no more
// than what it brings forward.
func (u *push) worthBeside(e *exportEntry) bool {
	_, streams := u.up.(StreamUploader)
	budget := u.opts.Memory
	return u.src.beside && streams && !u.opts.DryRun && (budget == 0 || budget >= besideMemory) &&
		!u.plan.seen[manifest.MediaTypeVMMemory] &&
		e.size >= largeBlob && e.size <= u.src.export.envelope.Config.Memory
}

// storeBeside has a file stored out of the export at hand while the files
// after it come from another. Where there is no other, they wait.
func (u *push) storeBeside(ctx context.Context, g *errgroup.Group, places chan struct{}, f *storedFile, e *exportEntry, levels []int64) error {
	src := u.src
	next := src.fork()
	stored, forked := make(chan bool, 1), make(chan bool, 1)
	g.Go(func() error {
		defer func() { <-places }()
		err := u.store(ctx, src, f, e, levels)
		if err != nil {
			err = src.end(err)
		}
		stored <- err == nil
		if err == nil && <-forked {
			_ = src.end(nil) // before its end, and it may say so
		}
		return err
	})
	err := next.repeat(ctx, 0, src.export.text)
	forked <- err == nil
	if err == nil {
		u.src = next
		return nil
	}
	if next.done != nil {
		_ = next.end(err)
	}
	if !<-stored {
		return context.Canceled // the other error is what there is to say
	}
	src.beside = false
	return nil
}

// fork is a source that has passed what s has, and will go on with the
// next file out of an export that is not open yet.
func (s *source) fork() *source {
	n := &source{open: s.open, again: s.again, beside: s.beside}
	for i, e := range s.passed {
		own := *e
		if i == len(s.passed)-1 {
			own.read, own.sum = 0, sha256.New() // s reads it, n never will
		}
		n.passed = append(n.passed, &own)
	}
	return n
}
