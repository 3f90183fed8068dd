package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// plainSnapshot is an artifact as a plain program knows it.
type plainSnapshot struct {
	addr string
	m    manifest.OCIManifest
	cfg  manifest.SnapshotConfig
}

func plain(ctx context.Context, addr, tag string) (*plainSnapshot, error) {
	s := &plainSnapshot{addr: addr}
	if err := s.json(ctx, "/manifests/"+tag, &s.m); err != nil {
		return nil, err
	}
	return s, s.json(ctx, "/blobs/"+s.m.Config.Digest, &s.cfg)
}

// plainClient keeps as many connections as are used.
var plainClient = http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: decodedAtATime}}

func (s *plainSnapshot) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/v2/"+repo+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", manifest.MediaTypeOCIManifest)
	resp, err := plainClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return resp.Body, nil
}

func (s *plainSnapshot) json(ctx context.Context, path string, v any) error {
	body, err := s.get(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(v)
}

// entry begins a file's entry.
func (s *plainSnapshot) entry(w *tar.Writer, name string, size int64) error {
	h := &tar.Header{Name: name, Mode: 0o644, Size: size}
	if f := s.cfg.Files[name]; f.SparseMap != "" {
		h.PAXRecords = map[string]string{"COCOON.sparse.map": f.SparseMap, "COCOON.sparse.size": fmt.Sprint(f.SparseSize)}
	}
	return w.WriteHeader(h)
}

// streamTar is what the upstream tools do with v1: each blob as one
// stream, hashed on its way into the tar.
func streamTar(ctx context.Context, addr, tag string) error {
	s, err := plain(ctx, addr, tag)
	if err != nil {
		return err
	}
	return writeTar(func(w *tar.Writer) error {
		buf := make([]byte, 1<<20)
		for _, l := range s.m.Layers {
			if err := s.entry(w, l.Title(), l.Size); err != nil {
				return err
			}
			if err := s.copyBlob(ctx, w, l, buf); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *plainSnapshot) copyBlob(ctx context.Context, w io.Writer, l manifest.Descriptor, buf []byte) error {
	body, err := s.get(ctx, "/blobs/"+l.Digest)
	if err != nil {
		return err
	}
	defer body.Close()
	hash := sha256.New()
	// Without more methods, so that the buffer is used.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, hash)}, struct{ io.Reader }{body}, buf); err != nil {
		return err
	}
	return agree(l, digests.OfHash(hash))
}

func agree(l manifest.Descriptor, digest string) error {
	if digest != l.Digest {
		return fmt.Errorf("%s: digest does not agree", l.Title())
	}
	return nil
}

// writeTar writes a tar to stdout, as all tars that are measured are.
func writeTar(fill func(*tar.Writer) error) error {
	w := tar.NewWriter(os.Stdout)
	if err := w.WriteHeader(&tar.Header{Name: "snapshot.json", Mode: 0o644, Size: int64(len(envelope))}); err != nil {
		return err
	}
	if _, err := io.WriteString(w, envelope); err != nil {
		return err
	}
	if err := fill(w); err != nil {
		return err
	}
	return w.Close()
}

// decodedAtATime is how many chunks the reference works on.
const decodedAtATime = 8

// decodeTar fetches, hashes and decodes that many chunks side by side and
// writes them in order.
func decodeTar(ctx context.Context, addr, tag string) error {
	s, err := plain(ctx, addr, tag)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0))
	if err != nil {
		return err
	}
	defer dec.Close()
	type result struct {
		data []byte
		err  error
	}
	ready := make(chan chan result, decodedAtATime-1) // with the one being written
	go func() {
		for _, l := range s.m.Layers {
			one := make(chan result, 1)
			select {
			case ready <- one:
			case <-ctx.Done():
				return
			}
			go func() {
				data, err := s.chunk(ctx, l, dec)
				one <- result{data, err}
			}()
		}
	}()
	return writeTar(func(w *tar.Writer) error {
		title := ""
		for _, l := range s.m.Layers {
			if l.Title() != title {
				title = l.Title()
				if err := s.entry(w, title, s.cfg.Files[title].Size); err != nil {
					return err
				}
			}
			r := <-<-ready
			if r.err != nil {
				return r.err
			}
			if _, err := w.Write(r.data); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *plainSnapshot) chunk(ctx context.Context, l manifest.Descriptor, dec *zstd.Decoder) ([]byte, error) {
	body, err := s.get(ctx, "/blobs/"+l.Digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	stored := bytes.NewBuffer(make([]byte, 0, l.Size+bytes.MinRead))
	if _, err := stored.ReadFrom(body); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(stored.Bytes())
	if err := agree(l, digests.Format(sum)); err != nil {
		return nil, err
	}
	if !isFrame(l) {
		return stored.Bytes(), nil
	}
	return dec.DecodeAll(stored.Bytes(), nil)
}

func isFrame(l manifest.Descriptor) bool {
	n := len(l.MediaType) - len(manifest.SuffixZstd)
	return n > 0 && l.MediaType[n:] == manifest.SuffixZstd
}
