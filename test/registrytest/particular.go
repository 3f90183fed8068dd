package registrytest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// Particular is a registry in memory that is particular about uploads. The
// zero value takes what the distribution specification has; each field is
// something that a real registry, or what stands before one, does instead.
// It reads a body before it refuses it, unless Early is set.
type Particular struct {
	NoPatch    int // status of every PATCH; 0: they are taken
	NoRanged   int // of one with a Content-Range
	NoUnranged int // of one without
	NoSecond   int // of all but the first of a session
	NoWhole    int // of a PUT with a body
	NoStatus   bool
	MaxPatch   int64 // a PATCH with more is answered 416; 0: none is
	MaxBody    int64 // a body with more is answered 413
	Early      bool  // the body of a refused request is not read, and the connection is closed
	Reset      bool  // instead of a refusal the connection is broken

	Taken      int                          // status of a PATCH that is taken; 0: 202
	Range      func(before, n int64) string // of a PATCH's answer; nil: 0-LAST; "": none
	Location   func(path string) string     // of a PATCH's answer; nil: the path; "": none
	MinChunk   int64                        // OCI-Chunk-Min-Length, and enforced
	Elsewhere  string                       // base URL to which a POST is sent on with MovedWith
	MovedWith  int
	NeedsLogin string // what Authorization must be, but not at Elsewhere

	mu        sync.Mutex
	next      int
	received  int64
	stored    int64
	sessions  map[string]*session
	blobs     map[string][]byte
	manifests map[string][]byte
}

type session struct {
	mu      sync.Mutex // held while a request is taken
	data    []byte
	patches int
	short   bool // the last PATCH had less than MinChunk
}

// Wasted is how many bytes of bodies came that are in no stored blob.
func (p *Particular) Wasted() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.received - p.stored
}

// Blob returns a stored blob, nil if there is none.
func (p *Particular) Blob(digest string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blobs[digest]
}

// ServeHTTP answers one request.
func (p *Particular) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	away := p.Elsewhere != "" && strings.HasSuffix(p.Elsewhere, "//"+r.Host)
	if p.NeedsLogin != "" && !away && r.Header.Get("Authorization") != p.NeedsLogin {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "who is there")
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	switch name, rest, _ := strings.Cut(path, "/blobs/"); {
	case path == "":
		w.WriteHeader(http.StatusOK)
	case strings.HasPrefix(rest, "uploads/"):
		p.upload(w, r, name, strings.TrimPrefix(rest, "uploads/"), away)
	case rest != "":
		p.read(w, r, rest)
	default:
		p.manifest(w, r, path)
	}
}

func (p *Particular) upload(w http.ResponseWriter, r *http.Request, name, id string, away bool) {
	path := r.URL.Path
	switch {
	case r.Method == http.MethodPost && p.Elsewhere != "" && !away:
		w.Header().Set("Location", p.Elsewhere+path)
		w.WriteHeader(p.MovedWith)
	case r.Method == http.MethodPost:
		p.mu.Lock()
		p.next++
		id = strconv.Itoa(p.next)
		if p.sessions == nil {
			p.sessions, p.blobs = map[string]*session{}, map[string][]byte{}
		}
		p.sessions[id] = &session{}
		p.mu.Unlock()
		w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id+"?_state=a%2Fb")
		w.Header().Set("Range", "0-0")
		if p.MinChunk > 0 {
			w.Header().Set("OCI-Chunk-Min-Length", strconv.FormatInt(p.MinChunk, 10))
		}
		w.WriteHeader(http.StatusAccepted)
	case r.URL.Query().Get("_state") != "a/b":
		refuse(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the session's state is missing")
	default:
		p.inSession(w, r, id, path)
	}
}

// inSession takes a request to an open session.
func (p *Particular) inSession(w http.ResponseWriter, r *http.Request, id, path string) {
	p.mu.Lock()
	s := p.sessions[id]
	p.mu.Unlock()
	if s == nil {
		refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such session")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status, code, text := p.refusal(r, s)
	if status != 0 && p.Early {
		w.Header().Set("Connection", "close")
		refuse(w, status, code, text)
		return
	}
	body, err := p.take(r)
	switch {
	case err != nil:
		panic(http.ErrAbortHandler)
	case status == 0 && p.MaxPatch > 0 && r.Method == http.MethodPatch && int64(len(body)) > p.MaxPatch:
		status, code, text = http.StatusRequestedRangeNotSatisfiable, "REQUESTED_RANGE_NOT_SATISFIABLE", "the body exceeds the limit"
	case status == 0 && p.MaxBody > 0 && int64(len(body)) > p.MaxBody:
		status, code, text = http.StatusRequestEntityTooLarge, "", "the body exceeds the limit"
	case status == 0 && r.Method == http.MethodPut && p.NoWhole != 0 && len(body) > 0:
		status, code, text = p.NoWhole, "UNSUPPORTED", "no bytes in the last request"
	}
	switch {
	case status != 0 && p.Reset:
		panic(http.ErrAbortHandler)
	case status != 0:
		refuse(w, status, code, text)
	case r.Method == http.MethodPatch:
		p.patch(w, r, s, body, path)
	case r.Method == http.MethodPut:
		p.finish(w, r, id, s, body)
	case r.Method == http.MethodDelete:
		p.mu.Lock()
		delete(p.sessions, id)
		p.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case p.NoStatus:
		refuse(w, http.StatusNotFound, "", "")
	default:
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(s.data)-1))
		w.Header().Set("Location", path+"?_state=a%2Fb")
		w.WriteHeader(http.StatusNoContent)
	}
}

// refusal returns the refusal that follows from a request's headers.
func (p *Particular) refusal(r *http.Request, s *session) (status int, code, text string) {
	ranged := r.Header.Get("Content-Range") != ""
	switch patch := r.Method == http.MethodPatch; {
	case p.MaxPatch > 0 && patch && r.ContentLength > p.MaxPatch:
		return http.StatusRequestedRangeNotSatisfiable, "REQUESTED_RANGE_NOT_SATISFIABLE", "the body exceeds the limit"
	case p.MaxBody > 0 && r.ContentLength > p.MaxBody:
		return http.StatusRequestEntityTooLarge, "", "the body exceeds the limit"
	case patch && p.NoPatch != 0:
		return p.NoPatch, "UNSUPPORTED", "no PATCH here"
	case patch && ranged && p.NoRanged != 0:
		return p.NoRanged, "UNSUPPORTED", "no pieces here"
	case patch && !ranged && p.NoUnranged != 0:
		return p.NoUnranged, "BLOB_UPLOAD_INVALID", "a Content-Range is needed"
	case patch && s.patches > 0 && p.NoSecond != 0:
		return p.NoSecond, "BLOB_UPLOAD_INVALID", "one PATCH is enough"
	case patch && s.short:
		return http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the piece before was too small"
	case r.Method == http.MethodPut && p.NoWhole != 0 && r.ContentLength > 0:
		return p.NoWhole, "UNSUPPORTED", "no bytes in the last request"
	}
	return 0, "", ""
}

// take reads a body and counts it.
func (p *Particular) take(r *http.Request) ([]byte, error) {
	var b bytes.Buffer
	n, err := b.ReadFrom(r.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received += n
	return b.Bytes(), err
}

// patch appends a body that is taken.
func (p *Particular) patch(w http.ResponseWriter, r *http.Request, s *session, body []byte, path string) {
	before := int64(len(s.data))
	if v := r.Header.Get("Content-Range"); v != "" && v != fmt.Sprintf("%d-%d", before, before+int64(len(body))-1) {
		refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "another piece is next")
		return
	}
	s.data = append(s.data, body...)
	s.patches++
	s.short = int64(len(body)) < p.MinChunk
	at, last := path+"?_state=a%2Fb", fmt.Sprintf("0-%d", len(s.data)-1)
	if p.Location != nil {
		at = p.Location(at)
	}
	if p.Range != nil {
		last = p.Range(before, int64(len(body)))
	}
	for k, v := range map[string]string{"Location": at, "Range": last} {
		if v != "" {
			w.Header().Set(k, v)
		}
	}
	status := p.Taken
	if status == 0 {
		status = http.StatusAccepted
	}
	w.WriteHeader(status)
}

// finish stores a session's blob.
func (p *Particular) finish(w http.ResponseWriter, r *http.Request, id string, s *session, body []byte) {
	data := append(s.data, body...)
	digest := sum(data)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, id)
	if r.URL.Query().Get("digest") != digest {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "the bytes have another digest")
		return
	}
	p.blobs[digest] = data
	p.stored += int64(len(data))
	w.WriteHeader(http.StatusCreated)
}

func (p *Particular) read(w http.ResponseWriter, r *http.Request, digest string) {
	data := p.Blob(digest)
	if data == nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "there is no such blob")
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (p *Particular) manifest(w http.ResponseWriter, r *http.Request, path string) {
	name, tag, _ := strings.Cut(path, "/manifests/")
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Method == http.MethodPut {
		raw, _ := io.ReadAll(r.Body)
		if p.manifests == nil {
			p.manifests = map[string][]byte{}
		}
		p.manifests[name+":"+tag], p.manifests[name+":"+sum(raw)] = raw, raw
		w.WriteHeader(http.StatusCreated)
		return
	}
	raw := p.manifests[name+":"+tag]
	if raw == nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "there is no such manifest")
		return
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Write(raw)
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return digests.Format(h)
}

// refuse answers with an error of the specification's form, or with text if
// code is "".
func refuse(w http.ResponseWriter, status int, code, text string) {
	if code == "" {
		w.WriteHeader(status)
		io.WriteString(w, text)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": text}}})
}
