package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// buffer is what lines are written to, also by timers.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// take returns what was written since it was last called.
func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.b.Reset()
	return b.b.String()
}

// logTo makes a log that writes to out.
func logTo(out *buffer, opts Options) *Log {
	l := &Log{opts: opts, target: new(target)}
	l.target.set(lines(out, opts))
	l.limit = newLimiter(l.target)
	l.Logger = slog.New(&handler{limit: l.limit})
	return l
}

// taken are the lines since they were last taken.
func taken(out *buffer) []string {
	return strings.Split(strings.TrimSuffix(out.take(), "\n"), "\n")
}

// The same problem is told of once, then once in a while with how often it
// came, and no more when it comes no more.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		l := logTo(&out, Options{Level: slog.LevelInfo})
		log := l.With("mount", "/mnt")
		for i := range 100 {
			log.Warn("read failed", "file", "a", "offset", i)
		}
		log.Warn("read failed", "file", "b", "offset", 7)
		log.Error("read failed", "file", "a", "offset", 8)
		for range 3 {
			log.Info("no problem")
		}
		log.Debug("nobody asked")
		got := taken(&out)
		if len(got) != 6 || !strings.HasSuffix(got[0], "mount=/mnt file=a offset=0") || !strings.HasSuffix(got[1], "file=b offset=7") || !strings.HasSuffix(got[2], "file=a offset=8") {
			t.Fatalf("at once: %q", got)
		}
		time.Sleep(again + time.Second)
		synctest.Wait()
		if got := taken(&out); len(got) != 1 || !strings.HasSuffix(got[0], "mount=/mnt file=a offset=99 times=99") {
			t.Fatalf("later: %q", got)
		}
		log.Warn("read failed", "file", "a", "offset", 100) // within the next while
		log.Warn("read failed", "file", "b", "offset", 101) // its while is over
		if got := taken(&out); len(got) != 1 || !strings.HasSuffix(got[0], "file=b offset=101") {
			t.Fatalf("then: %q", got)
		}
		l.Flush()
		if got := taken(&out); len(got) != 1 || !strings.HasSuffix(got[0], "file=a offset=100 times=1") {
			t.Fatalf("at the end: %q", got)
		}
		time.Sleep(10 * again)
		synctest.Wait()
		if more := out.take(); more != "" || len(l.limit.problems) != 0 {
			t.Errorf("%d problems are remembered, and logged: %q", len(l.limit.problems), more)
		}
	})
}

// Memory for problems is bounded, whatever a registry makes of names.
func TestManyProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		l := logTo(&out, Options{})
		for i := range 3 * mostProblems {
			l.Warn("x", "file", i)
		}
		if n := len(l.limit.problems); n != mostProblems || len(taken(&out)) != mostProblems {
			t.Errorf("%d problems are remembered", n)
		}
		l.Flush()
	})
}

// hostile is what a registry may send.
const hostile = "a\x1b[2J\nb\u009bc\u202ed\x7f\xff\"='"

// No control character gets through, in any form, and a record is a line.
func TestHostile(t *testing.T) {
	for _, form := range []Options{{}, {JSON: true}} {
		var out buffer
		l := logTo(&out, form)
		l.With("with", hostile).WithGroup("group").Error(hostile, "text", hostile, "error", fmt.Errorf("wrapped: %w", errors.New(hostile)), "list", []string{hostile})
		line := out.take()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || strings.ContainsAny(line, "\x1b\u009b\u202e\x7f") || strings.Contains(line, "\xff") {
			t.Errorf("%+v: %q", form, line)
		}
		if !form.JSON {
			continue
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil || got["msg"] != `a\u001b[2J b\u009bc\u202ed\u007f\xff"='` || got["level"] != "ERROR" {
			t.Errorf("%v: %q", err, got)
		}
	}
}

// What goes to the system's log is a line and its fields.
func TestSystem(t *testing.T) {
	var level slog.Level
	var line string
	var fields map[string]string
	h := newSystemHandler(slog.LevelWarn, func(l slog.Level, text string, f map[string]string) error {
		level, line, fields = l, text, f
		return nil
	})
	log := slog.New(h).With("mount", "/mnt").WithGroup("g")
	if log.Enabled(t.Context(), slog.LevelInfo) {
		t.Error("what nobody asked for is logged")
	}
	log.Warn("read\nfailed", "file", "a b", "error", errors.New("x\x1b"))
	if level != slog.LevelWarn || line != `read failed: mount=/mnt g.file="a b" g.error=x\u001b` {
		t.Errorf("%v %s", level, line)
	}
	want := map[string]string{"EPOCHFS_MOUNT": "/mnt", "EPOCHFS_G_FILE": "a b", "EPOCHFS_G_ERROR": `x\u001b`}
	if len(fields) != len(want) {
		t.Errorf("fields: %q", fields)
	}
	for name, value := range want {
		if fields[name] != value {
			t.Errorf("%s is %q", name, fields[name])
		}
	}
}

func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := syslog.Dial("unixgram", socket, syslog.LOG_DAEMON|syslog.LOG_WARNING, name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for level, priority := range map[slog.Level]string{slog.LevelError: "<27>", slog.LevelWarn: "<28>", slog.LevelInfo: "<30>", slog.LevelDebug: "<31>"} {
		if err := toSyslog(w, level, "read failed: file=a"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1000)
		_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := l.Read(buf)
		if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, priority) || !strings.HasSuffix(got, ": read failed: file=a\n") {
			t.Errorf("%v: %q, %v", level, got, err)
		}
	}
}

// A log goes to its file, and stays there.
func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	for i := range 2 {
		l, err := New(Options{File: name, JSON: true, Level: slog.LevelWarn})
		if err != nil {
			t.Fatal(err)
		}
		l.Detach()
		l.Debug("no")
		l.Warn("yes", "times", i)
		if l.Enabled(context.Background(), slog.LevelInfo) {
			t.Error("what nobody asked for is logged")
		}
	}
	raw, err := os.ReadFile(name)
	if err != nil || strings.Count(string(raw), "\n") != 2 || strings.Contains(string(raw), "no") {
		t.Errorf("%q, %v", raw, err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := New(Options{File: filepath.Join(name, "below")}); err == nil {
		t.Error("a file below a file was opened")
	}
}

func TestLost(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	if !lost(null) || lost(file) || lost(zero) {
		t.Error("what is lost and what not is mixed up")
	}
}
