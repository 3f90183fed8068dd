package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// The links that starts are measured on.
var (
	startLink = shaping.Options{Delay: 20 * time.Millisecond, PerConn: 100e6, Total: 125e6}
	slowLink  = shaping.Options{Delay: 20 * time.Millisecond, PerConn: 20e6, Total: 20e6}
)

// withoutSet are the flags of a mount without a working set. Without flags it
// takes what the registry has.
var withoutSet = []string{"--working-set", "none"}

// start is a way to start from a cold mount, and its results.
type start struct {
	name  string
	tag   string
	link  shaping.Options
	flags []string // of the mount

	seconds   sample // of the work
	fromMount sample // seconds from the beginning of the mount to the end of the work
	ready     sample // seconds that the mount took
	asked     sample // requests until the directory was there
	fetched   sample // MB until the end of the work, from the beginning of the mount
	cached    sample // MB of the mount in the page cache then

	mu       sync.Mutex
	requests []request // for blobs, of the last run
}

// request is a request for a blob.
type request struct{ path, span string }

func (s *start) note(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, request{r.URL.Path, r.Header.Get("Range")})
}

// text returns the text beside the seconds of a start.
func (s *start) text() string {
	return fmt.Sprintf("%s MB, %s s from mount", number(s.fetched.median()), number(s.fromMount.median()))
}

// goal is at most a limit, or no goal where that is 0.
func goal(limit float64) sense {
	if limit == 0 {
		return no
	}
	return atMost
}

// memoryLine compares a start's memory with the working set, in MB.
func memoryLine(work string, cached sample, set float64) *line {
	l := timed(work, cached, "pages of the working set", slices.Repeat(sample{set}, len(cached)), atMost, 2)
	l.Unit = "MB"
	return l
}

// work is something done with a mount. It calls end when the measured part
// is done, and returns its seconds.
type work func(m *mount, end func() error) (float64, error)

// run mounts, works, and notes what that took.
func (s *start) run(ctx context.Context, b *bench, do work) (float64, error) {
	s.requests = nil
	backend, stop, err := b.lean(s.note)
	if err != nil {
		return 0, err
	}
	defer stop()
	proxy, err := shaping.Start(backend, s.link)
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	dir, err := os.MkdirTemp(b.dir, "mount-")
	if err != nil {
		return 0, err
	}
	asked := requestsUntilMounted(filepath.Join(dir, "mnt"), proxy)
	began := time.Now()
	m, err := b.mountIn(ctx, dir, filepath.Join(dir, "cache"), proxy.Addr(), s.tag, s.flags...)
	if err != nil {
		return 0, err
	}
	defer m.close()
	s.asked = append(s.asked, float64(<-asked))
	seconds, err := do(m, func() error {
		s.fromMount = append(s.fromMount, time.Since(began).Seconds())
		s.fetched = append(s.fetched, float64(proxy.Counts().Body)/1e6)
		cached, err := pageCache(m.dir)
		s.cached = append(s.cached, float64(cached)/1e6)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.seconds = append(s.seconds, seconds)
	s.ready = append(s.ready, m.took.Seconds())
	return seconds, nil
}

// requestsUntilMounted sends the number of requests that had come when something
// answered that is mounted on a directory, which is not there yet. What is mounted
// asks nothing before that but what the mount needs.
func requestsUntilMounted(dir string, proxy *shaping.Proxy) <-chan int64 {
	requests := make(chan int64, 1)
	go func() {
		outside, err := device(filepath.Dir(dir))
		for deadline := time.Now().Add(time.Minute); err == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if now, err := device(dir); err == nil && now != outside {
				break
			}
		}
		requests <- proxy.Counts().Requests
	}()
	return requests
}

// askedLine compares the requests until two mounts were there.
func askedLine(work string, ours, theirs *start, reference string) *line {
	l := timed(work, ours.asked, reference, theirs.asked, atMost, 1)
	l.Unit = "requests"
	l.Note = fmt.Sprintf("%s s, without %s s", number(ours.ready.median()), number(theirs.ready.median()))
	return l
}

// starts measures several, in turn.
func (b *bench) starts(ctx context.Context, do work, all ...*start) error {
	var measures []func() (float64, error)
	for _, s := range all {
		measures = append(measures, func() (float64, error) { return s.run(ctx, b, do) })
	}
	_, err := b.rounds(ctx, measures...)
	return err
}
