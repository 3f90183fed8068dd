package main

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"time"
)

// lean serves what the registry has, its blobs straight from their files. Debian's
// registry takes some milliseconds of processor a request, which elsewhere is not
// the processor that starts the guest. It calls note, if there is one, with
// each request for a blob.
func (b *bench) lean(note func(*http.Request)) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	rest := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: b.registry.addr})
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		digest := path.Base(r.URL.Path)
		if r.Method != http.MethodGet || path.Base(path.Dir(r.URL.Path)) != "blobs" || !strings.HasPrefix(digest, "sha256:") {
			rest.ServeHTTP(w, r)
			return
		}
		if note != nil {
			note(r)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Docker-Content-Digest", digest)
		http.ServeFile(w, r, b.registry.blobPath(digest))
	})}
	go func() { _ = s.Serve(l) }() // ends with Close
	return l.Addr().String(), func() { s.Close() }, nil
}
