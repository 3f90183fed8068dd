package logging

import (
	"bytes"
	"context"
	"log/slog"
	"log/syslog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// system returns a handler for the system's log: the journal, otherwise
// syslog, otherwise none.
func system(level slog.Level) slog.Handler {
	if journal.Enabled() {
		return newSystemHandler(level, toJournal)
	}
	if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, name); err == nil {
		return newSystemHandler(level, func(level slog.Level, line string, _ map[string]string) error {
			return toSyslog(w, level, line)
		})
	}
	return slog.DiscardHandler
}

// journalReads reports whether stderr is connected to the journal, whose own
// protocol also takes fields.
func journalReads(stderr *os.File) bool {
	is, err := journal.StderrIsJournalStream()
	return stderr == os.Stderr && err == nil && is && journal.Enabled()
}

// name is the identifier of the lines, as in journalctl -t epochfs.
const name = "epochfs"

// send writes a line and its fields to the system's log.
type send func(level slog.Level, line string, fields map[string]string) error

func toJournal(level slog.Level, line string, fields map[string]string) error {
	fields["SYSLOG_IDENTIFIER"] = name
	priority := journal.PriDebug
	switch {
	case level >= slog.LevelError:
		priority = journal.PriErr
	case level >= slog.LevelWarn:
		priority = journal.PriWarning
	case level >= slog.LevelInfo:
		priority = journal.PriInfo
	}
	return journal.Send(line, priority, fields)
}

func toSyslog(w *syslog.Writer, level slog.Level, line string) error {
	switch {
	case level >= slog.LevelError:
		return w.Err(line)
	case level >= slog.LevelWarn:
		return w.Warning(line)
	case level >= slog.LevelInfo:
		return w.Info(line)
	}
	return w.Debug(line)
}

// systemHandler formats a record as one line, without what the system's log
// adds itself, and as fields.
type systemHandler struct {
	level slog.Level
	send  send
	attrs []slog.Attr
	group string // prefix of the names of attributes added from now on
}

func newSystemHandler(level slog.Level, s send) *systemHandler {
	return &systemHandler{level: level, send: s}
}

func (h *systemHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

func (h *systemHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, h.named(a))
		return true
	})
	var line bytes.Buffer
	bare := slog.NewRecord(r.Time, r.Level, "", 0)
	bare.AddAttrs(attrs...)
	if err := bareText(&line).Handle(ctx, bare); err != nil {
		return err
	}
	fields := map[string]string{}
	for _, a := range attrs {
		fields[fieldName(a.Key)] = clean(nil, a).Value.String()
	}
	message := clean(nil, slog.String("", r.Message)).Value.String()
	return h.send(r.Level, strings.TrimSpace(message+": "+line.String()), fields)
}

// bareText returns a handler that writes only attributes.
func bareText(w *bytes.Buffer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
				return slog.Attr{}
			}
			return clean(groups, a)
		},
	})
}

// fieldName converts key to a valid field name of the journal.
func fieldName(key string) string {
	return "EPOCHFS_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func (h *systemHandler) named(a slog.Attr) slog.Attr {
	a.Value = a.Value.Resolve()
	a.Key = h.group + a.Key
	return a
}

func (h *systemHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		n.attrs = append(n.attrs, h.named(a))
	}
	return &n
}

func (h *systemHandler) WithGroup(name string) slog.Handler {
	n := *h
	n.group += name + "."
	return &n
}
