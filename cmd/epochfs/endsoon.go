package main

import (
	"context"
	"time"
)

// endGrace is the time to clean up after Ctrl-C.
const endGrace = 3 * time.Second

// endSoon returns the result of work. If ctx ends and work does not return
// within the grace, endSoon abandons it: a system call on a hanging disk
// cannot be interrupted, and ends only with the process.
func endSoon(ctx context.Context, grace time.Duration, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return interrupted(context.Cause(ctx), "a disk did not answer for %s; the next run removes incomplete files", grace)
	}
}
