package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// spoolAndPush uploads an export as the upstream tools do: each file goes
// to a temporary one in dir and is hashed on its way, and then sent.
func spoolAndPush(ctx context.Context, addr, repository, file, dir string) error {
	cat := exec.CommandContext(ctx, "cat", file)
	out, err := cat.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cat.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil && hdr.Name != "snapshot.json" {
			err = spoolAndPut(ctx, addr, repository, dir, r)
		}
		if err != nil {
			return errors.Join(err, cat.Process.Kill(), cat.Wait())
		}
	}
	_, _ = io.Copy(io.Discard, out)
	return cat.Wait()
}

func spoolAndPut(ctx context.Context, addr, repository, dir string, body io.Reader) error {
	tmp, err := os.CreateTemp(dir, "spool-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, hash), body)
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	to, err := session(ctx, addr, repository)
	if err != nil {
		return err
	}
	return finishSession(ctx, to, digests.OfHash(hash), tmp, n)
}

// session begins an upload and returns where it goes on.
func session(ctx context.Context, addr, repository string) (*url.URL, error) {
	resp, err := do(ctx, http.MethodPost, "http://"+addr+"/v2/"+repository+"/blobs/uploads/", nil, 0)
	if err != nil {
		return nil, err
	}
	to, err := resp.Location()
	if err != nil {
		err = fmt.Errorf("upload: %s: %w", resp.Status, err)
	}
	return to, err
}

// finishSession ends an upload with its last bytes, size of them.
func finishSession(ctx context.Context, to *url.URL, digest string, rest io.Reader, size int64) error {
	q := to.Query()
	q.Set("digest", digest)
	to.RawQuery = q.Encode()
	resp, err := do(ctx, http.MethodPut, to.String(), io.NopCloser(rest), size)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("put: %s", resp.Status)
	}
	return err
}

func do(ctx context.Context, method, url string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	resp, err := plainClient.Do(req)
	if err == nil {
		err = resp.Body.Close()
	}
	return resp, err
}
