package main

import (
	"context"
	"time"
)

// endGrace is how long a command may clean up after Ctrl-C.
const endGrace = 3 * time.Second

// endSoon returns what work returns. When ctx ends and work does not return
// within the grace, it is left behind: a system call on a disk that hangs
// listens to nothing, and only the end of the process ends it.
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
		return interrupted(context.Cause(ctx), "a disk did not answer for %s; what is half done is removed by the next run", grace)
	}
}
