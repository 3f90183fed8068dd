package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/metrics"
	"github.com/cocoonstack/epochfs/internal/mounting"
)

// longNote is the size of a note that is worth a collection, in bytes: the
// collection itself needs some hundreds of KiB.
const longNote = 1 << 20

// served is a live mount that this process serves.
type served struct {
	opts    *mountOptions
	link    *keeper.Link
	o       *mounting.Opened
	m       *fs.Mounted
	hints   *hints
	since   time.Time // when the mount began, in whatever process
	notKept string    // why no process could take over; "" if one can
	scrapes *metrics.Server
}

// prepareToServe sets up this process to serve a mount.
func (opts *mountOptions) prepareToServe() chan os.Signal {
	standLean(os.Getenv)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	keeper.SurviveBrokenPipes()
	_ = os.WriteFile("/proc/self/comm", []byte(keeper.WorkerName), 0) // it was started by a descriptor
	if err := keeper.SpareFromOOM(); err != nil {                     // systemd starts it without a keeper
		opts.log.Debug("oom_score_adj is unchanged", "error", err)
	}
	return signals
}

func (opts *mountOptions) look() mounting.MountOptions {
	contexts, _ := opts.contexts()
	return mounting.MountOptions{
		AllowOther: opts.allowOther, NoExec: opts.noexec, Contexts: contexts, UID: opts.uid, GID: opts.gid,
		Crash: true, Log: opts.log,
	}
}

// inherited returns the live mount that this process was started to take
// over.
func inherited(link *keeper.Link) (kept fs.Kept, ok bool) {
	if link == nil {
		return kept, false
	}
	kept = fs.Kept{Device: link.Inherited(keeper.Device), Memory: link.Inherited(keeper.Memory)}
	return kept, kept.Device != nil && kept.Memory != nil
}

// takeOver prepares everything, waits until no process serves the mount, and
// serves it until it is gone.
func (opts *mountOptions) takeOver(ctx context.Context, link *keeper.Link, kept fs.Kept) (err error) {
	opts.log = opts.log.With("mount", opts.dir)
	signals := opts.prepareToServe()
	defer signal.Stop(signals)
	if link.Systemd() && kept.Ended() { // while no process served it
		letGo(link)
		return nil
	}
	n, err := mounting.ReadNote(kept.Memory)
	if err != nil {
		link.Refuse(err)
		return err
	}
	cfg, err := opts.config(0)
	if err != nil {
		link.Refuse(err)
		return err
	}
	cfg.Known = n.Known
	since := n.Since
	o, err := mounting.Open(ctx, opts.reference, cfg)
	if err != nil {
		link.Refuse(err)
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	m, err := o.Resume(kept, n, opts.dir, opts.look(), link.Chosen(), func() error {
		if len(n.Known) > longNote {
			n = nil
			debug.FreeOSMemory() // the wait may be long
		}
		return link.Standby()
	})
	if errors.Is(err, keeper.ErrGone) { // then others serve the mount
		return nil
	}
	if err != nil {
		link.Refuse(err)
		return err
	}
	defer m.Wait()
	// A recording does not go on: what the kernel keeps is not read again.
	s := &served{opts: opts, link: link, o: o, m: m, hints: &hints{opts: opts, o: o, m: m}, since: since}
	// Not before: the previous process had the port.
	if s.scrapes, err = metrics.Listen(opts.metrics); err != nil {
		opts.log.Warn("metrics are no longer served", "error", err)
	}
	defer func() { err = errors.Join(err, s.scrapes.Close()) }()
	closeSocket := s.answerStatus()
	defer closeSocket()
	s.run(signals)
	return nil
}

// keep stores what the next process will need, if there can be one.
func (s *served) keep() {
	kept, ok := s.m.Kept()
	if !ok {
		s.notKept = "this kernel cannot repeat requests for another process (Linux 6.9 and newer can)"
		return
	}
	holds, err := s.o.Holds()
	if err == nil {
		err = s.link.Room(len(holds) + 2)
	}
	for _, h := range holds {
		if err == nil {
			err = s.link.Store(keeper.Lock, h)
		}
		err = errors.Join(err, h.Close())
	}
	// The last one makes the mount a kept one.
	for name, f := range map[string]*os.File{keeper.Device: kept.Device, keeper.Memory: kept.Memory} {
		if err == nil {
			err = s.link.Store(name, f)
		}
	}
	if err != nil {
		s.notKept = err.Error()
		s.opts.log.Error("the mount ends with its process", "cause", err)
	}
}

// tell reports that requests are being answered.
func (s *served) tell() {
	if err := s.link.Serving(s.m.Dir(), s.m.Connection()); err != nil {
		s.opts.log.Warn("the keeper does not listen", "error", err)
	}
}

// keeperPID returns the keeper's process ID, or 0 if no process could take
// over.
func (s *served) keeperPID() int {
	if s.notKept != "" {
		return 0
	}
	return s.link.KeeperPID()
}

// answerStatus starts answering status. A mount works without its socket,
// but cannot be queried.
func (s *served) answerStatus() (done func()) {
	status := func() control.Mount {
		st := s.o.Status(s.m, s.since)
		st.Program = buildVersion()
		st.KeeperPID, st.NotKept = s.keeperPID(), s.notKept
		st.Metrics = s.scrapes.Addr()
		st.WorkingSet = s.hints.status()
		return st
	}
	s.scrapes.Serve(buildVersion(), status)
	socket, err := control.Serve(control.Dir(), status)
	if err != nil {
		s.opts.log.Warn("epochfs status will show little of this mount", "error", err)
		return func() {}
	}
	return func() { _ = socket.Close() }
}

// run serves until the mount is gone.
func (s *served) run(signals <-chan os.Signal) {
	standLean(os.Getenv)
	s.tell()
	if err := s.o.Prefetch(s.opts.prefetch); err != nil {
		s.opts.log.Warn("nothing is prefetched", "cause", err)
	}
	go s.stayAlive()
	var hinted sync.WaitGroup
	hinted.Go(s.hints.run)
	s.untilGone(signals)
	hinted.Wait()
	letGo(s.link)
}

// letGo empties systemd's descriptor store, because the unit's next start
// makes another mount. A keeper ends with the mount.
func letGo(link *keeper.Link) {
	if !link.Systemd() {
		return
	}
	for _, name := range []string{keeper.Device, keeper.Memory, keeper.Lock} {
		_ = link.Remove(name)
	}
}

// stayAlive sends signs of life, and finds another keeper when the present
// one has ended.
func (s *served) stayAlive() {
	tick := time.NewTicker(keeper.Beat)
	defer tick.Stop()
	for {
		select {
		case <-s.m.Done():
			return
		case <-tick.C:
			s.m.Breathe()
			s.link.Alive()
		case <-s.link.Again():
			if err := s.m.PredecessorGone(); err != nil {
				s.opts.log.Warn("requests may have been lost with the process before", "error", err)
			}
		case <-s.link.Lost():
			s.opts.log.Error("the keeper has ended: the mount ends with this process, unless epochfs restart gives it another", "dir", s.m.Dir())
			if err := s.link.Orphan(control.Dir()); err != nil {
				s.opts.log.Error("no other keeper can be started", "error", err)
				return
			}
			s.keep()
			s.tell()
		}
	}
}

// untilGone returns when the mount has ended. A signal unmounts it, unless
// it is in use; a second signal detaches it anyway, and its users keep what
// they have open.
func (s *served) untilGone(signals <-chan os.Signal) {
	opts := s.opts
	for asked := 0; ; {
		select {
		case <-s.m.Done():
			return
		case <-signals:
			asked++
		}
		err := s.m.Unmount()
		if errors.Is(err, syscall.EBUSY) && asked > 1 {
			err = fs.Unmount(opts.dir, true)
			opts.note("%s is detached; its process ends with its last user", opts.dir)
		}
		if err != nil {
			err = explainBusy(opts.dir, err)
			opts.note("%v; so does a second signal", err)
			opts.log.Warn("a signal asked to unmount", "error", err)
		}
	}
}
