package control

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var sample = Mount{
	Reference: "r.example.com/vm@sha256:00", Digest: "sha256:00", Dir: "/mnt/snap", PID: 7, Since: time.Unix(1e9, 0).UTC(),
	Files:   []File{{Name: "memory-ranges", Size: 10, Data: 8, Local: 4, Mode: "cached", Map: &Map{Cell: 4096, Cells: "+"}}},
	Mirrors: []Mirror{{Host: "r.example.com", Registry: true}}, Metrics: "127.0.0.1:9100", NotKept: "x",
	Network: Network{Requests: 1, Bytes: 2, Retries: 3},
	Waiting: []Wait{{File: "memory-ranges", Offset: 4, Length: 4, Digest: "sha256:01", Since: time.Unix(1e9, 0).UTC(), Readers: 1, Error: "x"}},
}

func TestAsking(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if all, err := List(dir); err != nil || all != nil {
		t.Fatalf("no directory: %v, %v", all, err)
	}
	s, err := Serve(dir, func() Mount { return sample })
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st.Mode(), err)
	}
	for range 2 * maxAsking {
		all, err := List(dir)
		if err != nil || !reflect.DeepEqual(all, []Mount{sample}) {
			t.Fatalf("got %+v, %v", all, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Sockets of dead processes go; others that do not answer are told of.
func TestDeadAndSilent(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	listenOn(t, dir, "11.sock").Close()
	silent := listenOn(t, dir, "12.sock")
	defer silent.Close()
	go func() {
		if c, err := silent.Accept(); err == nil {
			c.Close()
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "13.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := List(dir)
	if err != nil || len(all) != 1 || all[0].PID != 12 || all[0].Trouble == "" {
		t.Errorf("got %+v, %v", all, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "11.sock")); !os.IsNotExist(err) {
		t.Errorf("the dead process's socket: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "13.sock")); err != nil {
		t.Errorf("a file that is no socket: %v", err)
	}
}

func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(dir, func() Mount { return sample }); !errors.Is(err, errForeign) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := List(dir); !errors.Is(err, errForeign) {
		t.Errorf("List: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(link, func() Mount { return sample }); !errors.Is(err, errForeign) {
		t.Errorf("Serve through a link: %v", err)
	}
}

// The keys are what scripts rely on.
func TestKeys(t *testing.T) {
	raw, err := json.Marshal(Status{Version: Version, Mounts: []Mount{sample}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`version mounts reference digest dir pid keeper_pid since files
		name size data local mode verified network requests bytes retries waiting
		file offset length digest since readers error
		summary open fetching map cell cells reads count misses failed retries_by_cause rate limit_rate
		link ranges round_trip_seconds connection_rate failures first_byte_seconds bounds counts sum
		program_version not_kept mirrors host registry trusted missing wrong cache used limit full cause metrics`) {
		if !strings.Contains(string(raw), `"`+key+`":`) {
			t.Errorf("no key %q in %s", key, raw)
		}
	}
}

// listenOn makes a socket in dir that stays when it is closed, as that of
// a process that was killed does.
func listenOn(t *testing.T, dir, name string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	return l
}

// Who asks while a socket is being made must not take it for a dead
// process's.
func TestAskedAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = List(dir)
			}
		}
	}()
	for range 300 {
		s, err := Serve(dir, func() Mount { return sample })
		if err != nil {
			t.Fatal(err)
		}
		if all, err := List(dir); err != nil || len(all) != 1 {
			t.Errorf("got %+v, %v", all, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	<-stopped
}
