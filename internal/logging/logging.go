// Package logging determines the destination and the form of log lines, and
// suppresses repetitions of the same problem.
//
// Each record becomes one line, and nothing in a line can act as more than
// text: names and errors come from registries.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/text"
)

// Options configures a log.
type Options struct {
	JSON  bool
	File  string // appended to; "" for stderr, or the system's log if stderr is closed or /dev/null
	Level slog.Level
}

// Log is a logger whose destination can change later.
type Log struct {
	*slog.Logger
	opts   Options
	target *target
	limit  *limiter
}

// New opens a log. Its file stays open until the process ends.
func New(opts Options) (*Log, error) {
	l := &Log{opts: opts, target: new(target)}
	out := io.Writer(os.Stderr)
	switch {
	case opts.File != "":
		f, err := os.OpenFile(opts.File, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		out = f
	case lost(os.Stderr), journalReads(os.Stderr):
		l.target.set(system(opts.Level))
	}
	if l.target.Load() == nil {
		l.target.set(lines(out, opts))
	}
	l.limit = newLimiter(l.target)
	l.Logger = slog.New(&handler{limit: l.limit})
	return l, nil
}

// Detach switches a log on stderr to the system's log, because stderr is
// about to be closed.
func (l *Log) Detach() {
	if l.opts.File == "" {
		l.target.set(system(l.opts.Level))
	}
}

// Flush logs the repetitions suppressed so far.
func (l *Log) Flush() { l.limit.flush() }

// lines returns a handler that writes each record to out as one line.
func lines(out io.Writer, opts Options) slog.Handler {
	o := &slog.HandlerOptions{Level: opts.Level, ReplaceAttr: clean}
	if opts.JSON {
		return slog.NewJSONHandler(out, o)
	}
	return slog.NewTextHandler(out, o)
}

// clean makes an attribute's value printable. The handlers escape what their
// format requires, but not all that affects a terminal.
func clean(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString, slog.KindAny:
		a.Value = slog.StringValue(text.Line(fmt.Sprint(a.Value.Any())))
	}
	return a
}

// lost reports whether writes to f are lost.
func lost(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) // /dev/null
}

// target is the destination of records; it can change.
type target struct{ atomic.Pointer[slog.Handler] }

func (t *target) set(h slog.Handler) { t.Store(&h) }

// handler passes records to a limiter. It keeps the logger's attributes and
// groups apart, and adds them when a record is emitted, for whatever the
// destination is then.
type handler struct {
	limit *limiter
	add   []func(slog.Handler) slog.Handler
}

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return (*h.limit.target.Load()).Enabled(ctx, level)
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	return h.limit.handle(ctx, r, h.add)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h *handler) WithGroup(name string) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *handler) with(add func(slog.Handler) slog.Handler) slog.Handler {
	return &handler{limit: h.limit, add: append(h.add[:len(h.add):len(h.add)], add)}
}
