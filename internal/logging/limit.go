package logging

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// again is the time in which a logged problem is not logged again.
	again = 10 * time.Second
	// mostProblems bounds the distinct problems that are tracked.
	mostProblems = 1000
)

// limiter logs a problem at once. It logs repetitions of the problem at most
// once in each period, with their number. Only warnings and errors are
// problems.
type limiter struct {
	target *target
	again  time.Duration

	mu       sync.Mutex
	problems map[string]*problem
}

// problem is a recently logged problem.
type problem struct {
	leftOut int // repetitions since it was last logged
	last    slog.Record
	add     []func(slog.Handler) slog.Handler
	timer   *time.Timer
}

func newLimiter(t *target) *limiter {
	return &limiter{target: t, again: again, problems: map[string]*problem{}}
}

func (l *limiter) handle(ctx context.Context, r slog.Record, add []func(slog.Handler) slog.Handler) error {
	if r.Level < slog.LevelWarn {
		return l.emit(ctx, r, add)
	}
	key := keyOf(r)
	l.mu.Lock()
	p := l.problems[key]
	if p == nil && len(l.problems) < mostProblems {
		p = &problem{}
		p.timer = time.AfterFunc(l.again, func() { l.due(key) })
		l.problems[key] = p
		l.mu.Unlock()
		return l.emit(ctx, r, add)
	}
	defer l.mu.Unlock()
	if p != nil { // else too many problems are tracked, and this one is dropped
		p.leftOut++
		p.last, p.add = r.Clone(), add
	}
	return nil
}

// keyOf returns a key that is equal for records of the same problem with the
// same object.
func keyOf(r slog.Record) string {
	key := []string{r.Level.String(), r.Message}
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "file", "host", "dir", "key":
			key = append(key, a.Value.String())
		}
		return true
	})
	return strings.Join(key, "\x00")
}

// due ends a problem's period. If the problem was repeated, due logs it and
// starts another period.
func (l *limiter) due(key string) {
	l.mu.Lock()
	p := l.problems[key]
	if p == nil || p.leftOut == 0 {
		delete(l.problems, key)
		l.mu.Unlock()
		return
	}
	r, add := p.take()
	p.timer.Reset(l.again)
	l.mu.Unlock()
	_ = l.emit(context.Background(), r, add) // an error of the log cannot be logged
}

// take returns the last suppressed record, with the number of suppressed
// ones.
func (p *problem) take() (slog.Record, []func(slog.Handler) slog.Handler) {
	r := p.last.Clone()
	r.AddAttrs(slog.Int("times", p.leftOut))
	p.leftOut, p.last = 0, slog.Record{}
	return r, p.add
}

func (l *limiter) flush() {
	l.mu.Lock()
	problems := l.problems
	l.problems = map[string]*problem{}
	l.mu.Unlock()
	for _, p := range problems {
		p.timer.Stop()
		if p.leftOut > 0 {
			r, add := p.take()
			_ = l.emit(context.Background(), r, add) // as above
		}
	}
}

func (l *limiter) emit(ctx context.Context, r slog.Record, add []func(slog.Handler) slog.Handler) error {
	h := *l.target.Load()
	for _, f := range add {
		h = f(h)
	}
	return h.Handle(ctx, r)
}
