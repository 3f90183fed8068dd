package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// registry is a docker-registry of our own, on loopback, with its storage
// in a directory that goes with it.
type registry struct {
	addr string
	dir  string
	cmd  *exec.Cmd
}

// startRegistry starts Debian's distribution and waits until it answers.
func startRegistry(ctx context.Context, dir string) (*registry, error) {
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, errors.New("docker-registry is missing: apt-get install docker-registry")
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	r := &registry{addr: addr, dir: filepath.Join(dir, "registry")}
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n"+
		"storage:\n  filesystem:\n    rootdirectory: %q\nhttp:\n  addr: %q\n", r.dir, addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	r.cmd = exec.CommandContext(ctx, binary, "serve", config)
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	r.cmd.Stderr = &log
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	err = eventually(20*time.Second, func() error {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("docker-registry: %w\n%s", err, log.String())
	}
	return r, nil
}

func (r *registry) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // killed, as asked
}

// blobPath is where the file system driver keeps a blob.
func (r *registry) blobPath(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(r.dir, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}

// warm reads blobs, so that they are in the page cache: those with one of
// the digests, and all small ones.
func (r *registry) warm(digests map[string]bool) error {
	const small = 256 << 10
	return filepath.WalkDir(filepath.Join(r.dir, "docker/registry/v2/blobs"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Size() > small && !digests["sha256:"+filepath.Base(filepath.Dir(path))] {
			return err
		}
		return readAll(path)
	})
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

// freeAddr is a port of loopback that was free just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// eventually tries f until it works or patience ends.
func eventually(patience time.Duration, f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
