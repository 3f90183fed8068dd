// Package logging decides where log lines go and what they look like, and
// keeps a problem that comes again and again from filling them.
//
// Whatever is logged, a line is one line, and nothing in it can be taken
// for more than text: names and errors come from registries.
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

// Options say where lines go, in which form, and which.
type Options struct {
	JSON  bool
	File  string // appended to; "" for stderr, or the system's log where stderr leads nowhere
	Level slog.Level
}

// Log is a logger whose lines can be sent elsewhere later.
type Log struct {
	*slog.Logger
	opts   Options
	target *target
	limit  *limiter
}

// New opens the log. The file stays open until the process ends.
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

// Detach sends what is logged from now on to the system's log, unless it
// goes to a file: stderr is about to lead nowhere.
func (l *Log) Detach() {
	if l.opts.File == "" {
		l.target.set(system(l.opts.Level))
	}
}

// Flush logs how much was left out so far.
func (l *Log) Flush() { l.limit.flush() }

// lines writes records to out, a line each.
func lines(out io.Writer, opts Options) slog.Handler {
	o := &slog.HandlerOptions{Level: opts.Level, ReplaceAttr: clean}
	if opts.JSON {
		return slog.NewJSONHandler(out, o)
	}
	return slog.NewTextHandler(out, o)
}

// clean makes an attribute's value printable. The handlers escape what
// their form demands, but not all that changes how a terminal looks.
func clean(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString, slog.KindAny:
		a.Value = slog.StringValue(text.Line(fmt.Sprint(a.Value.Any())))
	}
	return a
}

// lost says that what is written to f is gone.
func lost(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) // /dev/null
}

// target is where records go; it can change.
type target struct{ atomic.Pointer[slog.Handler] }

func (t *target) set(h slog.Handler) { t.Store(&h) }

// handler passes records on to a limiter. What was added to the logger is
// added to each record, wherever that goes.
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
