package direct

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// watched is a body whose request ends when nothing comes for too long
// while somebody reads, and that keeps to the rate.
type watched struct {
	body  io.ReadCloser
	ctx   context.Context
	rate  *rate.Limiter // nil without a limit
	stall time.Duration
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	if w.rate != nil {
		p = p[:min(len(p), w.rate.Burst())]
	}
	w.timer.Reset(w.stall)
	n, err := w.body.Read(p)
	w.timer.Stop() // who reads may take his time
	if n > 0 && w.rate != nil {
		if late := w.rate.WaitN(w.ctx, n); late != nil && err == nil {
			err = late
		}
	}
	return n, w.cause(err)
}

// cause tells why a request was ended.
func (w *watched) cause(err error) error {
	if err != nil && errors.Is(context.Cause(w.ctx), errStalled) {
		return errStalled
	}
	return err
}

func (w *watched) Close() error {
	w.timer.Stop()
	return w.body.Close()
}
