package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestEndSoon has a command that a signal ends clean up in time, and one that
// hangs.
func TestEndSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		want := errors.New("its own")
		if err := endSoon(t.Context(), time.Second, func() error { return want }); err != want {
			t.Errorf("without a signal: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cleaning := func() error {
			<-ctx.Done()
			time.Sleep(time.Second / 2)
			return want
		}
		time.AfterFunc(time.Minute, cancel)
		if err := endSoon(ctx, time.Second, cleaning); err != want {
			t.Errorf("while it cleans up: %v", err)
		}
		hang := make(chan struct{})
		began := time.Now()
		err := endSoon(ctx, time.Second, func() error { <-hang; return nil })
		if took := time.Since(began); exitCode(err) != exitFailed || !errors.Is(err, context.Canceled) || took != time.Second {
			t.Errorf("while it hangs: %v after %v", err, took)
		}
		close(hang)
	})
}
