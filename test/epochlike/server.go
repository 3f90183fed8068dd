// Package epochlike is a registry for tests that behaves as epoch's
// server does where that differs from others:
//
//   - Range is ignored: 200 and the whole blob.
//   - Reads need no credentials, but /v2/ answers 401 and the token
//     endpoint it names answers 401 to clients without any.
//   - Writes need "Authorization: Bearer TOKEN". The token endpoint gives
//     the token to a client that has it as the password of any user.
//   - A blob is uploaded with PUT to its own URL, or by an OCI session:
//     bytes first, digest last, sessions in memory, one body at a time. A
//     repeated PATCH is appended again. There is no status GET.
//
// What it stores is in memory.
package epochlike

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// Server is an http.Handler. Its zero value, with a Token or without, is
// an empty registry.
type Server struct {
	// Token is needed for writing; "" allows everything.
	Token string
	// NoSessions makes it know only the PUT to a blob's own URL.
	NoSessions bool

	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string]map[string][]byte // repository, then tag or digest
	sessions  map[string][]byte
	next      int

	patch sync.Mutex // held for the body of a PATCH or of a last PUT
}

// PutBlob stores a blob without a request and returns its digest.
func (s *Server) PutBlob(data []byte) string {
	digest := digests.Of(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	s.blobs[digest] = data
	return digest
}

// PutManifest stores a manifest without a request and returns its digest.
func (s *Server) PutManifest(name, tag string, data []byte) string {
	digest := digests.Of(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifests == nil {
		s.manifests = map[string]map[string][]byte{}
	}
	if s.manifests[name] == nil {
		s.manifests[name] = map[string][]byte{}
	}
	s.manifests[name][tag] = data
	s.manifests[name][digest] = data
	return digest
}

// Blob returns a stored blob, nil if there is none.
func (s *Server) Blob(digest string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[digest]
}

// Sessions is how many uploads are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	switch {
	case path == "token":
		s.token(w, r)
		return
	case s.Token != "" && (write || path == "") && r.Header.Get("Authorization") != "Bearer "+s.Token:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s://%s/v2/token",service="epoch"`, scheme(r), r.Host))
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "valid Bearer token required")
		return
	case path == "":
		w.WriteHeader(http.StatusOK)
		return
	}
	s.route(w, r, path)
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// route finds the handler by a path's tail: names have slashes.
func (s *Server) route(w http.ResponseWriter, r *http.Request, path string) {
	part := strings.Split(path, "/")
	n := len(part)
	name := func(tail int) string { return strings.Join(part[:n-tail], "/") }
	switch {
	case n >= 4 && part[n-3] == "blobs" && part[n-2] == "uploads" && part[n-1] == "" && !s.NoSessions:
		s.begin(w, r, name(3))
	case n >= 4 && part[n-3] == "blobs" && part[n-2] == "uploads" && !s.NoSessions:
		s.upload(w, r, name(3), part[n-1])
	case n >= 3 && part[n-2] == "manifests":
		s.manifest(w, r, name(2), part[n-1])
	case n >= 3 && part[n-2] == "blobs":
		s.blob(w, r, part[n-1])
	case n >= 3 && part[n-2] == "tags" && part[n-1] == "list":
		s.tags(w, name(2))
	default:
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "unknown endpoint")
	}
}

// token returns the token to clients that have it.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	_, given, _ := r.BasicAuth()
	if given == "" {
		given = r.FormValue("password")
	}
	if given == "" {
		given = r.FormValue("refresh_token")
	}
	switch {
	case s.Token == "":
		given = ""
	case given == "":
		w.Header().Set("WWW-Authenticate", `Basic realm="epoch"`)
		http.Error(w, "credentials required", http.StatusUnauthorized)
		return
	case given != s.Token:
		http.Error(w, "invalid credentials", http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": given, "access_token": given, "expires_in": 3600})
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	switch r.Method {
	case http.MethodPut:
		data, err := io.ReadAll(io.LimitReader(r.Body, 50<<20))
		if err != nil || !json.Valid(data) {
			fail(w, http.StatusBadRequest, "MANIFEST_INVALID", "invalid JSON")
			return
		}
		if digests.HasPrefix(ref) && ref != digests.Of(data) {
			fail(w, http.StatusBadRequest, "DIGEST_INVALID", "digest does not match")
			return
		}
		w.Header().Set("Docker-Content-Digest", s.PutManifest(name, ref, data))
		w.WriteHeader(http.StatusCreated)
	case http.MethodGet, http.MethodHead:
		s.mu.Lock()
		data, ok := s.manifests[name][ref]
		s.mu.Unlock()
		if !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest not found")
			return
		}
		var doc struct{ MediaType string }
		if json.Unmarshal(data, &doc) != nil || doc.MediaType == "" {
			doc.MediaType = "application/vnd.oci.image.manifest.v1+json"
		}
		serve(w, r, doc.MediaType, data)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
	}
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, digest string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		data, ok := s.find(digest)
		if !ok {
			fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob not found")
			return
		}
		serve(w, r, "application/octet-stream", data)
	case http.MethodPut:
		// As epoch: the digest is believed.
		data, err := body(r)
		if err != nil || r.ContentLength >= 0 && int64(len(data)) != r.ContentLength {
			fail(w, http.StatusInternalServerError, "BLOB_UPLOAD_UNKNOWN", "body broke off")
			return
		}
		s.mu.Lock()
		if s.blobs == nil {
			s.blobs = map[string][]byte{}
		}
		s.blobs[digest] = data
		s.mu.Unlock()
		w.Header().Set("Docker-Content-Digest", digest)
		w.WriteHeader(http.StatusCreated)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
	}
}

// body reads a request's body into a buffer that need not grow where the size
// is announced: growing is most of what a large body costs under the race
// detector.
func body(r *http.Request) ([]byte, error) {
	const most = 64 << 20
	buf := bytes.NewBuffer(make([]byte, 0, max(0, min(r.ContentLength, most))+bytes.MinRead))
	_, err := buf.ReadFrom(r.Body)
	return buf.Bytes(), err
}

func (s *Server) find(digest string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[digest]
	return data, ok
}

func (s *Server) tags(w http.ResponseWriter, name string) {
	s.mu.Lock()
	list := []string{}
	for tag := range s.manifests[name] {
		if !strings.Contains(tag, ":") {
			list = append(list, tag)
		}
	}
	s.mu.Unlock()
	if len(list) == 0 {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "repository not found")
		return
	}
	sort.Strings(list)
	json.NewEncoder(w).Encode(map[string]any{"name": name, "tags": list})
}

// serve sends all of data, whatever range was asked for.
func serve(w http.ResponseWriter, r *http.Request, kind string, data []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digests.Of(data))
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		w.Write(data)
	}
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
