package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/whole"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/snapshot"
)

const (
	// recordMost bounds a recording, in bytes: what a start touches is far
	// less, and a recording that runs on becomes the whole memory.
	recordMost = 1 << 30
	// recordEvery is how often a recording is written. What a killed
	// process has touched since then is lost.
	recordEvery = time.Second
)

// recording writes what is touched of a mount to a file, as it goes on.
type recording struct {
	path   string
	window time.Duration // from the first touch on
	quiet  time.Duration // ends it when no new page came for as long; 0: never

	rec     *workingset.Recorder
	touched chan struct{} // has room for one; a page was touched
	ended   atomic.Bool

	mu     sync.Mutex
	status control.Recording
}

// newRecording begins a recording of an artifact's files. Its file is there
// at once, marked as partial.
func newRecording(a *snapshot.Artifact, path string, window, quiet time.Duration) (*recording, error) {
	files := mounting.WorkingSetFiles(a)
	r := &recording{
		path: path, window: window, quiet: quiet,
		rec: workingset.NewRecorder(files, recordMost), touched: make(chan struct{}, 1),
		status: control.Recording{File: path},
	}
	return r, r.write(true)
}

// touch notes that bytes of one of the artifact's files were read. It is
// called by the threads that answer requests.
func (r *recording) touch(file int, off, n int64, after time.Duration) {
	if r.ended.Load() || r.rec.Touch(file, off, n, after) == 0 {
		return
	}
	select {
	case r.touched <- struct{}{}:
	default:
	}
}

// run returns when the recording has ended: when its window is over, when it
// has been quiet or is full, or with ctx. Only a process that is killed leaves
// a file that is marked as partial.
func (r *recording) run(ctx context.Context) error {
	var window <-chan time.Time
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	quiet := time.NewTimer(r.quiet)
	defer quiet.Stop()
	quiet.Stop()
	written := int64(0)
	for {
		select {
		case <-ctx.Done():
			return r.end()
		case <-window:
			return r.end()
		case <-quiet.C:
			return r.end()
		case <-r.touched:
			if window == nil {
				window = time.After(r.window)
			}
			if r.quiet > 0 {
				quiet.Reset(r.quiet)
			}
		case <-tick.C:
			n, _ := r.rec.Recorded()
			if n >= recordMost {
				return r.end()
			}
			if n == written {
				continue
			}
			written = n
			if err := r.write(true); err != nil {
				return err
			}
		}
	}
}

// end writes the recording for the last time.
func (r *recording) end() error {
	r.ended.Store(true)
	err := r.write(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Done = true
	return err
}

// write replaces the file.
func (r *recording) write(partial bool) error {
	err := r.replace(partial)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.status.Error = err.Error()
	}
	return err
}

func (r *recording) replace(partial bool) error {
	set := r.rec.Set()
	set.Partial = partial
	return writeSet(r.path, set)
}

// writeSet replaces a file by a working set.
func writeSet(path string, set *workingset.Set) error {
	data, err := workingset.Encode(set)
	if err != nil {
		return err
	}
	f, err := whole.Create(path)
	if err != nil {
		return cannotWrite(path, err)
	}
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Commit()
	}
	if err != nil {
		return cannotWrite(path, err)
	}
	return nil
}

// told returns how the recording is doing.
func (r *recording) told() *control.Recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Bytes, _ = r.rec.Recorded()
	return &s
}
