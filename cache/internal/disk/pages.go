package disk

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// dropStep is how much is worth dropping: less stays.
	dropStep = 4 << 20
	// dropQueue bounds the stretches that wait for that. More are forgotten,
	// and the kernel keeps their pages as long as it likes.
	dropQueue = 1024
)

// Pages are those that the kernel keeps of a data file. Its stretches that
// readers have in pages of their own are dropped.
type Pages struct {
	file *File

	mu       sync.Mutex
	waiting  []Stretch // in the order in which they came, neighbours joined
	bytes    int64     // of them
	dropping bool

	writing sync.Mutex // held over I/O by whoever may be told of a failed write
	failed  error      // that of a write, which the kernel reports once
}

// DropLater notes that the kernel need not keep its pages of a stretch. It
// reports whether the caller is to call Drop, which nobody else does
// meanwhile.
func (p *Pages) DropLater(s Stretch) (drop bool) {
	if p.file.mode != Keep || p.shown() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.waiting)
	switch {
	case n > 0 && p.waiting[n-1].Off+p.waiting[n-1].N == s.Off:
		p.waiting[n-1].N += s.N
	case n == dropQueue:
		return false
	default:
		p.waiting = append(p.waiting, s)
	}
	p.bytes += s.N
	drop = p.bytes >= dropStep && !p.dropping
	p.dropping = p.dropping || drop
	return drop
}

// Drop writes what DropLater has noted to disk, and has the kernel drop
// its pages of that, until little is left. It blocks for as long as the disk takes,
// and ends early with what stop returns. Any other error is that of a disk that
// has failed to take data: what it gives back is not to be believed.
func (p *Pages) Drop(stop func() error) error {
	for {
		waiting := p.take()
		if waiting == nil {
			return nil
		}
		for _, s := range waiting {
			_ = unix.SyncFileRange(int(p.file.Data.Fd()), s.Off, s.N, unix.SYNC_FILE_RANGE_WRITE) // an error is reported below
		}
		for _, s := range waiting {
			if err := p.dropStretch(s, stop); err != nil {
				p.mu.Lock()
				p.dropping = false
				p.mu.Unlock()
				return err
			}
		}
	}
}

// take returns what is worth dropping; nil ends the dropping.
func (p *Pages) take() (waiting []Stretch) {
	shown := p.shown()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes < dropStep || shown {
		p.dropping = false
		return nil
	}
	waiting, p.waiting, p.bytes = p.waiting, nil, 0
	return waiting
}

// dropStretch drops the pages of a stretch, a step at a time.
func (p *Pages) dropStretch(s Stretch, stop func() error) error {
	fd, end := int(p.file.Data.Fd()), s.Off+s.N
	for off := s.Off; off < end; off += syncStep {
		n := min(syncStep, end-off)
		if err := stop(); err != nil {
			return err
		}
		if err := p.writeOut(off, n); err != nil {
			return err
		}
		_ = unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) // what stays takes memory, and is right
	}
	return nil
}

// writeOut puts bytes [off, off+n) on disk.
func (p *Pages) writeOut(off, n int64) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	err := unix.SyncFileRange(int(p.file.Data.Fd()), off, n,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil {
		p.failed = os.NewSyscallError("sync_file_range", err)
	}
	return p.failed
}

// failedToWrite returns the error of a write that writeOut was told of.
func (p *Pages) failedToWrite() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.failed
}

// shown reports whether the kernel may read the data file by itself,
// with the same pages.
func (p *Pages) shown() bool {
	p.file.mu.Lock()
	defer p.file.mu.Unlock()
	return p.file.backing != nil
}

// DropAgain has the kernel drop its pages of a stretch that Drop has
// dropped before: it has been read again.
func (p *Pages) DropAgain(s Stretch) {
	if !p.shown() {
		_ = unix.Fadvise(int(p.file.Data.Fd()), s.Off, s.N, unix.FADV_DONTNEED) // what stays takes memory, and is right
	}
}
