package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// shortTimeout is the read timeout of a test, and slack what a command may
// take besides: less than any of the times that it waits without one.
const (
	shortTimeout = 500 * time.Millisecond
	slack        = 14 * time.Second
)

// timed runs a command with a short read timeout.
func (s *site) timed(args ...string) (code int, stderr string, took time.Duration) {
	s.t.Helper()
	began := time.Now()
	code, _, stderr = s.try("epochfs", append(args, "--read-timeout", shortTimeout.String())...)
	return code, stderr, time.Since(began)
}

// A server that takes connections and says nothing is given up in time, by
// every command.
func TestSilentRegistry(t *testing.T) {
	tier.Long(t, "waits for time-outs of the program")
	t.Parallel()
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	ref := l.Addr().String() + "/vm"
	for _, args := range [][]string{
		{"mount", ref, s.mnt},
		{"mount", "-f", ref, s.mnt},
		{"ls", ref},
		{"cat", ref, "config.json"},
		{"inspect", ref},
		{"materialize", "--keep", "-o", "-", ref},
		{"materialize", "-o", "-", ref},
	} {
		t.Run(strings.Join(args[:len(args)-1], " "), func(t *testing.T) {
			t.Parallel()
			s := *s
			s.t = t
			code, stderr, took := s.timed(args...)
			if code != exitUnreachable || strings.Count(stderr, "\n") != 1 || took < shortTimeout || took > shortTimeout+slack {
				t.Errorf("exit code %d after %v: %s", code, took, stderr)
			}
		})
	}
}

// So is a manifest or a config that does not come to its end. What a tag
// was is taken after that time.
func TestStalledStart(t *testing.T) {
	tier.Long(t, "waits for time-outs of the program")
	t.Parallel()
	s := newSite(t)
	stall := func(fault *registrytest.Fault) {
		s.front.Clear()
		s.front.Inject(fault)
	}
	for what, fault := range map[string]*registrytest.Fault{
		"manifest":           {Match: registrytest.Method("GET", "/manifests/"), Delay: time.Hour},
		"body of a manifest": {Match: registrytest.Method("GET", "/manifests/"), Stall: 1},
		"config":             {Match: registrytest.Method("GET", "/blobs/"), Delay: time.Hour},
		"body of a config":   {Match: registrytest.Method("GET", "/blobs/"), Stall: 1},
		"try after try":      {Match: registrytest.Method("GET", "/manifests/"), Status: 503, Delay: 200 * time.Millisecond},
	} {
		stall(fault)
		code, stderr, took := s.timed("mount", "--cache-dir", filepath.Join(t.TempDir(), "c"), s.ref, s.mnt)
		if code != exitUnreachable || strings.Count(stderr, "\n") != 1 || took > shortTimeout+slack {
			t.Errorf("%s: exit code %d after %v: %s", what, code, took, stderr)
		}
	}
	s.front.Clear()
	s.run("epochfs", "ls", s.ref)
	stall(&registrytest.Fault{Delay: time.Hour})
	code, stderr, took := s.timed("mount", s.ref, s.mnt)
	if code != 0 || !strings.Contains(stderr, "is not reachable") || took > shortTimeout+slack {
		t.Errorf("a tag that is known: exit code %d after %v: %s", code, took, stderr)
	}
	s.run("epochfs", "umount", s.mnt)
}
