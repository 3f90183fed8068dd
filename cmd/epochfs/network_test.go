package main

import (
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/internal/control"
)

// until PATTERN command...: the command's output comes to match.
func until(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	if !poll(func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && want.MatchString(ts.ReadFile("stdout"))
	}) {
		ts.Fatalf("%q did not come", args[0])
	}
}

// for-each ARGS...: epochfs succeeds with each of these, and prints
// something.
func forEach(ts *testscript.TestScript, _ bool, args []string) {
	for _, arg := range args {
		fields := strings.Fields(os.Expand(arg, ts.Getenv))
		if err := ts.Exec("epochfs", fields...); err != nil || ts.ReadFile("stdout") == "" {
			ts.Fatalf("epochfs %s: %v", arg, err)
		}
	}
}

// shape FILE: it holds what status --json promises, of one mount.
func shape(ts *testscript.TestScript, _ bool, args []string) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.DisallowUnknownFields()
	var s control.Status
	ts.Check(dec.Decode(&s))
	if s.Version != 1 || len(s.Mounts) != 1 {
		ts.Fatalf("version %d, %d mounts", s.Version, len(s.Mounts))
	}
	m := s.Mounts[0]
	if m.Digest == "" || !strings.HasSuffix(m.Reference, m.Digest) || m.Since.IsZero() || m.Network.Requests < 3 || m.Network.Bytes < 1<<20 {
		ts.Fatalf("mount: %+v", m)
	}
	for _, f := range m.Files {
		if f.Name == "memory-ranges" && (f.Size != 1<<30 || f.Data != 97<<20 || f.Local < 1<<20 || f.Local >= f.Data) {
			ts.Fatalf("file: %+v", f)
		}
		if f.Name == "snapshot.json" && (!f.Verified || f.Local != f.Size) {
			ts.Fatalf("file: %+v", f)
		}
	}
	if len(m.Files) != 3 {
		ts.Fatalf("%d files", len(m.Files))
	}
}

// oomscore PID N
func oomscore(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := os.ReadFile("/proc/" + args[0] + "/oom_score_adj")
	ts.Check(err)
	if got := strings.TrimSpace(string(raw)); got != args[1] {
		ts.Fatalf("oom_score_adj is %s", got)
	}
}

// stillHeld NAME: what hold has opened can be read, to its end.
func (w *world) stillHeld(ts *testscript.TestScript, _ bool, args []string) {
	st, err := w.held.Stat()
	ts.Check(err)
	n, err := io.Copy(io.Discard, w.held)
	ts.Check(err)
	if n != st.Size() || !strings.HasSuffix(w.held.Name(), args[0]) {
		ts.Fatalf("%s: read %d of %d bytes", w.held.Name(), n, st.Size())
	}
}

// registry stop|start: Debian's, behind the front.
func (w *world) registry(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "stop":
		w.debian.Stop()
	case "start":
		w.debian.Start(w.t)
	}
}
