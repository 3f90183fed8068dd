package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/shaping"
)

// errNoReference is in the chain of errors that say that a program to
// compare with cannot be had here.
var errNoReference = errors.New("not here")

// Names under which this program calls itself to be a plain program to
// compare with: what is measured beside a process is one too.
const (
	streaming = "stream-tar" // ADDR TAG
	decoding  = "decode-tar" // ADDR TAG
	spooling  = "spool-push" // ADDR REPOSITORY FILE DIR
)

// calledAs returns the program that the arguments name, or nil if they are those
// of the benchmark.
func calledAs(args []string) func(ctx context.Context) error {
	switch {
	case len(args) == 3 && args[0] == touching:
		return func(context.Context) error { return touchPages(args[2], args[1] == "true") }
	case len(args) == 5 && args[0] == resuming:
		return func(ctx context.Context) error { return resumeGuest(ctx, args[1], args[2], args[3], args[4]) }
	case len(args) == 2 && args[0] == holding:
		return func(context.Context) error { return holdMapping(args[1]) }
	case len(args) == 3 && args[0] == loopingBack:
		return func(context.Context) error { return serveLoopback(args[1], args[2]) }
	case len(args) == 6 && args[0] == passing:
		return func(context.Context) error { return passBlob(args[1], args[2], args[3], keeping(args[4]), args[5]) }
	case len(args) == 4 && args[0] == slowing:
		return func(context.Context) error { return serveSlowFile(args[1], args[2], args[3]) }
	case len(args) == 3 && args[0] == streaming:
		return func(ctx context.Context) error { return streamTar(ctx, args[1], args[2]) }
	case len(args) == 3 && args[0] == decoding:
		return func(ctx context.Context) error { return decodeTar(ctx, args[1], args[2]) }
	case len(args) == 5 && args[0] == spooling:
		return func(ctx context.Context) error { return spoolAndPush(ctx, args[1], args[2], args[3], args[4]) }
	}
	return nil
}

// plainly runs one of the plain programs and returns the seconds it took.
// Its stdout is /dev/null.
func (b *bench) plainly(ctx context.Context, args ...string) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	if err := readAll(self); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	var words strings.Builder
	cmd.Stderr = &words
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", args[0], err, words.String())
	}
	return time.Since(began).Seconds(), nil
}

// curl downloads a URL to a file, which is removed, and returns the
// seconds it took.
func (b *bench) curl(ctx context.Context, urls ...string) (float64, error) {
	binary, err := exec.LookPath("curl")
	if err != nil {
		return 0, fmt.Errorf("curl: %w", errNoReference)
	}
	dir, err := os.MkdirTemp(b.dir, "curl-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	args := []string{"-sSf", "--no-progress-meter", "--parallel"}
	for i, u := range urls {
		args = append(args, "-o", filepath.Join(dir, fmt.Sprint(i)), u)
	}
	if len(urls) == 1 {
		args = append(args[:2], args[3:]...)
	}
	began := time.Now()
	if out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("curl: %w: %s", err, out)
	}
	return time.Since(began).Seconds(), nil
}

// fileServer serves a directory with listings, as rclone's http remote
// wants it.
func fileServer(dir string) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }() // ends with Close
	return l.Addr().String(), func() { s.Close() }, nil
}

// foreign is a mount that another program serves.
type foreign struct {
	dir string
	cmd *exec.Cmd
}

// startForeign starts a program that mounts on dir and stays in the
// foreground, and waits for the mount.
func (b *bench) startForeign(ctx context.Context, binary string, args func(dir string) []string) (*foreign, error) {
	dir, err := os.MkdirTemp(b.dir, "foreign-")
	if err != nil {
		return nil, err
	}
	before, err := device(dir)
	if err != nil {
		return nil, err
	}
	f := &foreign{dir: dir, cmd: exec.CommandContext(ctx, binary, args(dir)...)}
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out strings.Builder
	f.cmd.Stdout, f.cmd.Stderr = &out, &out
	f.cmd.Env = append(os.Environ(), "RCLONE_CONFIG=/dev/null")
	if err := f.cmd.Start(); err != nil {
		return nil, err
	}
	err = eventually(20*time.Second, func() error {
		now, err := device(dir)
		if err == nil && now == before {
			err = errors.New("nothing was mounted")
		}
		return err
	})
	if err != nil {
		f.stop()
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(binary), err, out.String())
	}
	return f, nil
}

func (f *foreign) stop() {
	_ = unix.Unmount(f.dir, unix.MNT_DETACH)
	_ = f.cmd.Process.Signal(syscall.SIGTERM)
	_ = f.cmd.Wait() // what it says of its end is not of interest
	_ = os.Remove(f.dir)
}

func device(dir string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	return st.Dev, err
}

// rclone mounts what a web server at addr lists.
func (b *bench) rclone(ctx context.Context, addr string) (*foreign, error) {
	binary, err := exec.LookPath("rclone")
	if err != nil {
		return nil, fmt.Errorf("rclone: %w", errNoReference)
	}
	return b.startForeign(ctx, binary, func(dir string) []string {
		return []string{"mount", ":http:", dir, "--http-url", "http://" + addr, "--read-only"}
	})
}

// loopback shows a directory through go-fuse's loopback file system.
func (b *bench) loopback(ctx context.Context, orig string) (*foreign, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return b.startForeign(ctx, self, func(dir string) []string { return []string{loopingBack, dir, orig} })
}

// download fetches all layers of an artifact through a link with curl, each by a
// stream of its own, and returns the seconds it took.
func (b *bench) download(ctx context.Context, tag string, opts shaping.Options) (float64, error) {
	addr, proxy, err := b.link(&opts)
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	layers, err := b.layers(ctx, tag)
	if err != nil {
		return 0, err
	}
	urls := make([]string, len(layers))
	for i, l := range layers {
		urls[i] = fmt.Sprintf("http://%s/v2/%s/blobs/%s", addr, repo, l.Digest)
	}
	return b.curl(ctx, urls...)
}

// layers reads what an artifact's manifest has, from the registry itself.
func (b *bench) layers(ctx context.Context, tag string) ([]manifest.Descriptor, error) {
	url := "http://" + b.registry.addr + "/v2/" + repo + "/manifests/" + tag
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", manifest.MediaTypeOCIManifest)
	resp, err := plainClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	var m manifest.OCIManifest
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return m.Layers, nil
}
