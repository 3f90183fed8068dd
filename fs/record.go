package fs

import (
	"context"
	"sync/atomic"
	"time"
)

// Recording makes the mount report which pages its readers touch. During a
// recording, no file is opened in passthrough, and speculative READs are
// declined if the kernel repeats them: then each READ is a touch of a page,
// except those of sequential and direct readers.
type Recording struct {
	// Touch is called with n bytes at off of the i-th file that a reader
	// asks for, and the time since the mount was ready. It is called by
	// threads that answer requests, so it returns at once. A page may be
	// told more than once.
	Touch func(i int, off, n int64, after time.Duration)
	// Window is when the recording ends; 0 for at EndRecording.
	Window time.Duration
}

// recording is the state of a Recording.
type recording struct {
	Recording
	began   atomic.Int64 // nanoseconds since base; 0: the mount is not ready
	base    time.Time
	ended   atomic.Bool
	backing bool // whether passthrough may be tried afterwards
}

// record prepares a recording, and finds out whether it will be exact.
func (t *tree) record(r *Recording) {
	if r == nil {
		return
	}
	if err := tryDeclining(context.Background()); err == nil {
		kernelAsksAgain.Store(true)
	} else {
		t.log.Warn("the recording has what the kernel reads ahead as well", "cause", err)
	}
	t.recorded = &recording{Recording: *r, base: time.Now(), backing: t.backing.Swap(false)}
}

// ready begins the recording's time.
func (r *recording) ready() {
	if r != nil {
		r.began.Store(int64(time.Since(r.base)) | 1)
	}
}

// active reports whether touches are recorded.
func (r *recording) active() bool { return r != nil && !r.ended.Load() }

// endRecording ends a recording, if there is one.
func (t *tree) endRecording() {
	if r := t.recorded; r.active() && !r.ended.Swap(true) {
		t.backing.Store(r.backing)
	}
}

// touched reports bytes [off, off+n) of a file that a READ asks for, and
// that is not declined.
func (t *tree) touched(n *node, off, length int64) {
	if t.asked != nil {
		t.asked(n.Name, off, length, n.declined.has(off))
	}
	r := t.recorded
	if !r.active() {
		return
	}
	var after time.Duration
	if began := r.began.Load(); began != 0 {
		after = max(0, time.Since(r.base)-time.Duration(began))
	}
	if r.Window > 0 && after > r.Window {
		t.endRecording()
		return
	}
	r.Touch(int(n.ino-firstIno), off, length, after)
}

// EndRecording ends the recording, if there is one: from now on files are
// opened as in any other mount.
func (m *Mounted) EndRecording() { m.tree.endRecording() }

// Exact reports whether speculative READs are declined where that is asked for,
// so that a recording has pages which readers have touched, and no others.
func (m *Mounted) Exact() bool { return kernelAsksAgain.Load() }
