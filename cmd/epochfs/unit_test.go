package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cocoon"
	fusefs "github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

func TestExitCode(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("registry.example/vm: %w", errors.Join(err, nil)) }
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything"), 1},
		{snapshot.ErrKind, 1},
		{context.Canceled, 1},
		{interrupted(context.Canceled, "half"), 1},
		{usagef("no"), 2},
		{registry.ErrReference, 2},
		{registry.ErrNotFound, 3},
		{cocoon.ErrNoSnapshot, 3},
		{errNotFound, 3},
		{registry.ErrDenied, 4},
		{registry.ErrUnreachable, 5},
		{mounting.ErrOffline, 5},
		{context.DeadlineExceeded, 5},
		{registry.ErrContent, 6},
		{layout.ErrContent, 6},
		{&cocoon.Error{Err: os.ErrPermission}, 7},
		{cocoon.ErrNameTaken, 1},
		{syscall.ENOSPC, 8},
		{syscall.EDQUOT, 8},
		{syscall.EROFS, 8},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, 8},
		{mounting.ErrCache, 8},
		{fmt.Errorf("%w: %w", fusefs.ErrNoFUSE, syscall.EACCES), 9},
		{fmt.Errorf("%w: %w", layout.ErrContent, registry.ErrUnreachable), 6},
		{&exitError{text: "told", code: 4}, 4},
	} {
		err := c.err
		if err != nil {
			err = wrap(err)
		}
		if got := exitCode(err); got != c.want {
			t.Errorf("exitCode(%v) = %d, want %d", err, got, c.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode":      "plain ünïcode",
		"two\nlines\tand":    "two lines and",
		"\x1b[31mred":        `\u001b[31mred`,
		"c1 \u009b del \x7f": `c1 \u009b del \u007f`,
		"bad \xff byte":      `bad \xff byte`,
		"real \uFFFD":        "real \uFFFD",
		"turned \u202e over": `turned \u202e over`,
		"nul \x00":           `nul \u0000`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestPrintJSON(t *testing.T) {
	in := map[string]string{"k": "\x1b[31m \u009b \x7f \u202e \U000e0001 <&> é"}
	var out strings.Builder
	if err := printJSON(&out, in); err != nil {
		t.Fatal(err)
	}
	if got := printable(out.String()); strings.Contains(got, `\x`) || strings.ContainsAny(out.String(), "\x1b\u009b\x7f\u202e") {
		t.Errorf("not fit for a terminal: %q", out.String())
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || back["k"] != in["k"] {
		t.Errorf("reads back as %q, %v", back, err)
	}
}

func TestHelperArgs(t *testing.T) {
	for in, want := range map[string]string{
		"reg/vm /mnt -o rw,uid=1":        "mount --options=rw,uid=1 -- reg/vm /mnt",
		"reg/vm /mnt -sfnv -o a -o b":    "mount --sloppy --fake --verbose --options=a --options=b -- reg/vm /mnt",
		"-n -t fuse.epochfs reg/vm /mnt": "mount -- reg/vm /mnt",
		"reg/vm /mnt -oro -N /proc/1/ns": "mount --options=ro -- reg/vm /mnt",
	} {
		got, err := helperArgs(strings.Fields(in))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("helperArgs(%s) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"reg/vm /mnt -x", "reg/vm /mnt -o"} {
		if _, err := helperArgs(strings.Fields(in)); exitCode(err) != exitUsage {
			t.Errorf("helperArgs(%s) = %v", in, err)
		}
	}
}

func TestModeText(t *testing.T) {
	for mode, want := range map[uint32]string{0o444: "-r--r--r--", 0o755: "-rwxr-xr-x", 0: "----------"} {
		if got := modeText(mode); got != want {
			t.Errorf("modeText(%o) = %q, want %q", mode, got, want)
		}
	}
}

func TestMeterLine(t *testing.T) {
	m := &meter{label: "push vm", of: bytesOfIt, total: 3 << 30, begun: time.Now().Add(-10 * time.Second)}
	m.add(1 << 30)
	if got := m.line(); !strings.HasPrefix(got, "push vm: 1.0 GiB of 3.0 GiB (33%), 102 MiB/s, ") {
		t.Errorf("line is %q", got)
	}
	m.total = 0
	if got := m.line(); got != "push vm: 1.0 GiB, 102 MiB/s" {
		t.Errorf("line is %q", got)
	}
	m = &meter{label: "prune", of: filesOfIt, total: 400, begun: time.Now().Add(-10 * time.Second)}
	m.add(100)
	if got := m.line(); !strings.HasPrefix(got, "prune: 100 files of 400 files (25%), ") {
		t.Errorf("line is %q", got)
	}
	m = &meter{label: "asking for vm", begun: time.Now().Add(-10 * time.Second)}
	if got := m.line(); got != "asking for vm, for 10s" {
		t.Errorf("line is %q", got)
	}
}

func TestEnvelopeFields(t *testing.T) {
	got := envelopeFields([]byte(`{"version":1,"config":{"z_first":12345678901234567890,"name":"x","memory":8388608,"storage":"some","deep":{"a":1},"list":[1],"on":true,"none":null}}`))
	want := [][2]string{{"z first", "12345678901234567890"}, {"name", "x"}, {"memory", "8.0 MiB"}, {"storage", "some"}, {"on", "true"}}
	if !slices.Equal(got, want) {
		t.Errorf("fields are %q", got)
	}
	for _, bad := range []string{"", "[]", `{"config":7}`, `{"config":`} {
		if got := envelopeFields([]byte(bad)); got != nil {
			t.Errorf("fields of %q are %q", bad, got)
		}
	}
}

func TestEnvFromAnywhere(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	in := []string{"DOCKER_CONFIG=docker", "EPOCH_CA_CERT=../ca.pem", "EPOCHFS_HOSTS_DIR=/abs", "EPOCHFS_CACHE_DIR=", "OTHER=docker"}
	want := []string{"DOCKER_CONFIG=" + dir + "/docker", "EPOCH_CA_CERT=" + filepath.Dir(dir) + "/ca.pem", "EPOCHFS_HOSTS_DIR=/abs", "EPOCHFS_CACHE_DIR=", "OTHER=docker"}
	got, err := envFromAnywhere(in)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("environment is %q, %v", got, err)
	}
}

func TestInspectPrintsNoControls(t *testing.T) {
	var out strings.Builder
	err := printInspected(&out, inspected{Envelope: []byte(`{"version":1,"config":{"a\u001b[31m\u202eb":"c\u009bd"}}`)})
	if err != nil || strings.ContainsAny(out.String(), "\x1b\u202e\u009b") || !strings.Contains(out.String(), `a\u001b[31m\u202eb`) {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

func TestUnknownTimeIsNotShown(t *testing.T) {
	var text, raw strings.Builder
	if err := errors.Join(printInspected(&text, inspected{}), printJSON(&raw, inspected{})); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String()+raw.String(), "created") {
		t.Errorf("shown: %s%s", text.String(), raw.String())
	}
	if got := timeText(time.Time{}, time.DateTime, "-"); got != "-" {
		t.Errorf("ls shows %q", got)
	}
}
