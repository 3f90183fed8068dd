package epochlike

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// begin opens a session, or stores a blob that came with the POST.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, name string) {
	if r.Method != http.MethodPost {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
		return
	}
	if digest := r.URL.Query().Get("digest"); digest != "" {
		data, err := body(r)
		s.store(w, name, digest, data, err)
		return
	}
	s.mu.Lock()
	s.next++
	id := "session-" + strconv.Itoa(s.next)
	if s.sessions == nil {
		s.sessions = map[string][]byte{}
	}
	s.sessions[id] = []byte{}
	s.mu.Unlock()
	w.Header().Set("Location", location(name, id))
	w.Header().Set("Range", "0-0")
	w.WriteHeader(http.StatusAccepted)
}

// upload is a request to an open session.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, name, id string) {
	if r.Method != http.MethodPatch && r.Method != http.MethodPut {
		fail(w, http.StatusNotFound, "UNSUPPORTED", "unknown endpoint")
		return
	}
	s.patch.Lock()
	defer s.patch.Unlock()
	more, err := body(r)
	s.mu.Lock()
	data, ok := s.sessions[id]
	if ok && err == nil {
		// Content-Range is not looked at: a repeated body is kept twice.
		data = append(data, more...)
		s.sessions[id] = data
	}
	if r.Method == http.MethodPut {
		delete(s.sessions, id)
	}
	s.mu.Unlock()
	switch {
	case !ok:
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "upload session not found")
	case r.Method == http.MethodPut:
		s.store(w, name, r.URL.Query().Get("digest"), data, err)
	case err != nil:
		fail(w, http.StatusInternalServerError, "INTERNAL_ERROR", "body broke off")
	default:
		w.Header().Set("Location", location(name, id))
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(data)-1))
		w.WriteHeader(http.StatusAccepted)
	}
}

func location(name, id string) string { return "/v2/" + name + "/blobs/uploads/" + id }

// store keeps a blob that has the digest it should have.
func (s *Server) store(w http.ResponseWriter, name, digest string, data []byte, err error) {
	switch {
	case err != nil:
		fail(w, http.StatusInternalServerError, "INTERNAL_ERROR", "body broke off")
		return
	case digest != digests.Of(data):
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "digest mismatch")
		return
	}
	s.PutBlob(data)
	w.Header().Set("Location", "/v2/"+name+"/blobs/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
}
