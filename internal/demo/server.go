package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// server is a registry on loopback that counts requests and bytes.
type server struct {
	host string // host:port
	http *http.Server
	done chan struct{} // closed when the server has stopped

	requests atomic.Int64
	sent     atomic.Int64 // bytes of bodies to clients
	received atomic.Int64 // bytes of bodies from clients
}

// startServer starts an empty registry that stores its blobs under dir.
func startServer(dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	silent := log.New(io.Discard, "", 0)
	disk, ok := registry.NewDiskBlobHandler(dir).(blobStore)
	if !ok {
		return nil, errors.New("this go-containerregistry cannot keep blobs on disk")
	}
	handler := registry.New(registry.WithBlobHandler(quickStat{disk, dir}), registry.Logger(silent))
	s := &server{host: l.Addr().String(), done: make(chan struct{})}
	s.http = &http.Server{Handler: s.count(handler), ErrorLog: silent, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // returns when the server is closed
	}()
	return s, nil
}

func (s *server) close() {
	_ = s.http.Close()
	<-s.done
}

// cost is what a step cost at the registry.
type cost struct{ requests, sent, received int64 }

func (s *server) cost() cost {
	return cost{s.requests.Load(), s.sent.Load(), s.received.Load()}
}

func (c cost) since(before cost) cost {
	return cost{c.requests - before.requests, c.sent - before.sent, c.received - before.received}
}

func (s *server) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		r.Body = &countedBody{r.Body, &s.received}
		next.ServeHTTP(&countedWriter{w, &s.sent}, r)
	})
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

type countedWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// blobStore is the interface of the registry's store on disk.
type blobStore interface {
	registry.BlobHandler
	registry.BlobPutHandler
}

// quickStat returns a blob's size without hashing the whole blob, as the
// store would for every range.
type quickStat struct {
	blobStore
	dir string
}

func (q quickStat) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	st, err := os.Stat(filepath.Join(q.dir, h.Algorithm, h.Hex))
	if errors.Is(err, os.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", h, err)
	}
	return st.Size(), nil
}
