package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/registry/hosts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryMap(t *testing.T) {
	segs := memoryMap()
	if got := dataOf(segs); got != memoryData {
		t.Errorf("%d bytes of data, want %d", got, memoryData)
	}
	var end int64
	for i, s := range segs {
		if s.Length <= 0 || s.Length%page != 0 || s.Offset%page != 0 || i > 0 && s.Offset <= end {
			t.Fatalf("segment %d is %+v after %d", i, s, end)
		}
		end = s.Offset + s.Length
	}
	if end > memorySize || end < memorySize*9/10 {
		t.Errorf("data ends at %d of %d", end, memorySize)
	}
	if len(segs) < 200 {
		t.Errorf("only %d segments", len(segs))
	}
	if !slices.Equal(segs, memoryMap()) {
		t.Error("another map the second time")
	}
}

func TestMemoryIsTheSameEachTime(t *testing.T) {
	sum := func() (s [32]byte) {
		h := sha256.New()
		if n, err := io.Copy(h, newMemory(8*mib)); n != 8*mib || err != nil {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		h.Sum(s[:0])
		return s
	}
	if first := sum(); first != sum() {
		t.Error("another content the second time")
	}
}

func TestSample(t *testing.T) {
	dir := t.TempDir()
	tar := filepath.Join(dir, "vm.tar")
	note, err := writeSample(t.Context(), dir, tar)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("note: %q", note)
	files, err := digests(tar)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	sizes := map[string]string{}
	var data int64
	for _, f := range files {
		names = append(names, f.name)
		sizes[f.name] = f.size
		data += f.data
	}
	if want := []string{"snapshot.json", "config.json", "state.json", "memory-ranges", "cow.raw"}; !slices.Equal(names, want) {
		t.Errorf("files are %q", names)
	}
	if sizes["memory-ranges"] != "1073741824" || sizes["cow.raw"] != "2147483648" {
		t.Errorf("sizes are %v", sizes)
	}
	if data > 128*mib {
		t.Errorf("%d bytes of data", data)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || !slices.Equal(left, []string{tar}) {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestServerCounts(t *testing.T) {
	s, err := startServer(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	do := func(method, path string, header http.Header, body string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.host+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, got
	}
	const digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	if resp, _ := do("POST", "/v2/x/blobs/uploads/?digest="+digest, nil, "hello"); resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}
	if got := s.cost(); got.requests != 1 || got.received != 5 {
		t.Errorf("upload cost %+v", got)
	}
	before := s.cost()
	resp, got := do("GET", "/v2/x/blobs/"+digest, http.Header{"Range": {"bytes=1-3"}}, "")
	if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, []byte("ell")) {
		t.Errorf("range: %s %q", resp.Status, got)
	}
	if got := s.cost().since(before); got != (cost{requests: 1, sent: 3}) {
		t.Errorf("range cost %+v", got)
	}
	if resp, _ := do("HEAD", "/v2/x/blobs/"+strings.Replace(digest, "2cf2", "0000", 1), nil, ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("blob that is not there: %s", resp.Status)
	}
}

func TestInterruptedLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Options{Out: io.Discard, Binary: "/bin/false"}); err == nil {
		t.Error("a demo that was interrupted went well")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// fakeBinary is an epochfs whose mount does not come to an end.
const fakeBinary = `#!/bin/sh
case $1 in
push) cp -r "$EPOCHFS_HOSTS_DIR" "$OUT/hosts" && echo "$EPOCHFS_RUNTIME_DIR" >"$OUT/run" ;;
mount) touch "$OUT/mounting"; sleep 60 ;;
umount) touch "$OUT/umounted"; exit 3 ;;
esac
`

func TestInterruptedMountIsUnmounted(t *testing.T) {
	tmp, out := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("OUT", out)
	t.Setenv("EPOCHFS_HOSTS_DIR", "/nonexistent")
	binary := filepath.Join(out, "epochfs")
	if err := os.WriteFile(binary, []byte(fakeBinary), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Options{Out: io.Discard, Binary: binary, NoFUSE: 9}) }()
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(out, name))
		return err == nil
	}
	for !there("mounting") && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the demo ended with %v", err)
	}
	if !there("mounting") || !there("umounted") {
		t.Error("the mount was not begun, or not taken away")
	}
	machine := filepath.Join(out, "machine")
	mirrors := filepath.Join(machine, "127.0.0.1:5000", "hosts.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(mirrors), 0o700), os.WriteFile(mirrors, []byte(`[host."http://mirror.local"]`), 0o600)); err != nil {
		t.Fatal(err)
	}
	conf, err := hosts.Lookup([]string{filepath.Join(out, "hosts"), machine}, "127.0.0.1:5000")
	if err != nil || len(conf.Mirrors) > 0 || conf.File == mirrors {
		t.Errorf("the machine's mirrors are asked: %+v, %v", conf, err)
	}
	if run, err := os.ReadFile(filepath.Join(out, "run")); err != nil || !strings.HasPrefix(string(run), tmp+"/") {
		t.Errorf("sockets go to %q, %v", run, err)
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}
