package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/mounts"
	"github.com/cocoonstack/epochfs/internal/workingset"
)

// noSet is the value of --working-set for none.
const noSet = "none"

// hints is what a mount does about working sets: it replays one, and may
// record another. None of it ever fails the mount.
type hints struct {
	opts      *mountOptions
	o         *mounting.Opened
	m         *fs.Mounted
	recording *recording // nil for none

	mu     sync.Mutex
	state  string // one of control's Set constants; "" if no set is wanted
	found  *mounting.FoundSet
	replay *mounting.Replay
	err    error
}

// run looks for the working set, replays it, and ends the recording. It
// returns when both are done or the mount has ended.
func (h *hints) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all sync.WaitGroup
	if h.recording != nil {
		all.Go(func() {
			defer h.m.EndRecording()
			if err := h.recording.run(ctx); err != nil {
				h.opts.log.Warn("the recording has ended", "file", h.recording.path, "error", err)
			}
		})
	}
	if h.wanted() {
		h.set(control.SetLooking, nil, nil)
		all.Go(func() { h.fetch(ctx) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		all.Wait()
	}()
	select {
	case <-done:
	case <-h.m.Done():
		cancel()
		<-done
	}
}

// wanted reports whether the mount replays a working set. One that records
// does not: what is stored in the kernel cannot be seen to be touched.
func (h *hints) wanted() bool {
	return h.opts.prefetch.Replays() && h.opts.workingSet != noSet && h.recording == nil
}

func (h *hints) fetch(ctx context.Context) {
	fs.TryDeclining() // it takes as long as the look-up
	found, err := h.find(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		h.opts.log.Warn("no working set", "cause", err)
	}
	if err != nil || found == nil {
		h.set(control.SetNone, nil, err)
		return
	}
	h.set(control.SetReplaying, found, nil)
	replay := h.o.Replay(ctx, found.Set, h.m, int64(h.opts.prefetchLimit))
	h.mu.Lock()
	h.replay = replay
	h.mu.Unlock()
	replay.Wait()
	if ctx.Err() == nil {
		h.set(control.SetReady, found, nil)
	}
}

func (h *hints) set(state string, found *mounting.FoundSet, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.found, h.err = state, found, err
}

// find returns the working set that the flags name, or else the artifact's, or
// nil.
func (h *hints) find(ctx context.Context) (*mounting.FoundSet, error) {
	switch name := h.opts.workingSet; {
	case name == "":
		return h.o.WorkingSet(ctx)
	case filepath.IsAbs(name):
		set, err := readSet(name)
		if err != nil {
			return nil, err
		}
		return &mounting.FoundSet{Set: set, By: "file"}, nil
	default:
		cfg, err := h.opts.config(0)
		if err != nil {
			return nil, err
		}
		return mounting.NamedWorkingSet(ctx, name, cfg)
	}
}

// readSet reads a working set from a file.
func readSet(name string) (*workingset.Set, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, errNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, workingset.MaxEncoded+1))
	if err != nil {
		return nil, err
	}
	set, err := workingset.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return set, nil
}

// status returns what `epochfs status` shows of the hints, or nil.
func (h *hints) status() *control.WorkingSet {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == "" && h.recording == nil {
		return nil
	}
	s := &control.WorkingSet{State: h.state, Ready: h.state == control.SetReady}
	if s.State == "" {
		s.State = control.SetNone
	}
	if h.found != nil {
		s.FoundBy, s.Runs = h.found.By, h.found.Set.Runs
	}
	if h.err != nil {
		s.Error = h.err.Error()
	}
	if h.replay != nil {
		n := h.replay.Stats()
		s.Recorded, s.Local, s.Fetched, s.Stored = n.Recorded, n.Local, n.Fetched, n.Stored
		s.Used, s.Late, s.Unused = n.Used, n.Late, n.Unused
	}
	if h.recording != nil {
		s.Recording = h.recording.told()
	}
	return s
}

// checkHints refuses flags that do not go together, and makes paths absolute:
// the process that serves a mount leaves this directory.
func (opts *mountOptions) checkHints(cfg *mounting.Config) (err error) {
	switch {
	case opts.recordWindow <= 0 || opts.recordQuiet < 0:
		return usagef("--record-window is a time, such as 30s")
	case opts.prefetchLimit < 0:
		return usagef("--prefetch-limit cannot be negative")
	case opts.wait != "" && opts.foreground:
		return usagef("--wait goes without -f, whose process does not return: epochfs status tells whether the set is local")
	case opts.wait != "" && (!opts.prefetch.Replays() || opts.workingSet == noSet || opts.record != ""):
		return usagef("--wait working-set waits for a replay, which these flags turn off")
	}
	if opts.record != "" {
		if opts.record, err = filepath.Abs(opts.record); err != nil {
			return err
		}
	}
	if name := opts.workingSet; name != "" && name != noSet {
		if _, err := os.Stat(name); err == nil {
			if opts.workingSet, err = filepath.Abs(name); err != nil {
				return err
			}
			return opts.flags.Set("working-set", opts.workingSet)
		}
		if filepath.IsAbs(name) || strings.HasPrefix(name, ".") {
			return fmt.Errorf("working set %s: %w", name, errNotFound)
		}
		_, err := cfg.Reference(name)
		return err
	}
	return nil
}

// awaitEvery is how often a mount is asked whether its working set is local.
const awaitEvery = 100 * time.Millisecond

// awaitSet returns when the working set of the mount is local. If there is
// none, it returns too: then there is nothing to wait for.
func (opts *mountOptions) awaitSet(ctx context.Context) error {
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for {
		all, err := control.List(control.Dir())
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(m control.Mount) bool { return m.Dir == opts.dir })
		switch {
		case i < 0 || all[i].WorkingSet == nil: // another process may be taking over
			if m, err := mounts.Find(opts.dir); m == nil {
				return errors.Join(err, fmt.Errorf("the mount on %s has ended", opts.dir))
			}
		case all[i].WorkingSet.State == control.SetReady:
			return nil
		case all[i].WorkingSet.State == control.SetNone:
			opts.note("%s has no working set to wait for", opts.reference)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitFor is the value of --wait.
type waitFor string

const waitSet waitFor = "working-set"

// Set makes waitFor a flag's value.
func (w *waitFor) Set(s string) error {
	if waitFor(s) != waitSet {
		return errors.New("it is working-set")
	}
	*w = waitSet
	return nil
}

// String returns the value as it is given.
func (w *waitFor) String() string { return string(*w) }

// Type names the value in the help.
func (w *waitFor) Type() string { return "working-set" }
