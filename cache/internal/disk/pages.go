package disk

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Pages are those that the kernel keeps of a data file in its page cache.
type Pages struct {
	file *File

	writing sync.Mutex // held over I/O
	failed  error      // of a write; the kernel reports it to whoever asks first
}

// Drop writes a stretch to disk, and has the kernel drop its pages of that. It
// ends at once when the file is sealed: processes that read it in passthrough mode
// have the same pages. It blocks for as long as the disk takes, and ends early with
// what stop returns. Any other error is that of a disk that has failed to take data.
func (p *Pages) Drop(s Stretch, stop func() error) error {
	for off, end := s.Off, s.Off+s.N; off < end && !p.file.State.Sealed(); off += syncStep {
		if err := stop(); err != nil {
			return err
		}
		n := min(syncStep, end-off)
		if err := p.writeOut(off, n); err != nil {
			return err
		}
		if p.file.State.Sealed() {
			return nil
		}
		_ = unix.Fadvise(int(p.file.Data.Fd()), off, n, unix.FADV_DONTNEED) // what stays takes memory, and is right
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
