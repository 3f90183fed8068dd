package mirrors

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/traces"
)

const (
	repo   = "team/vm"
	memory = "memory-ranges"
)

// roundTrip is how far away the registry is.
const roundTrip = 10 * time.Millisecond

// upstream is a registry far away, with one snapshot, that proves who it is.
type upstream struct {
	t     testing.TB
	ca    *registrytest.CA
	front *registrytest.Front

	artifact *artifacttest.Artifact
	flat     []byte // of the memory, as a reader sees it

	// elsewhere is where its blobs are, nil for in the registry itself.
	elsewhere *registrytest.Front
	leaked    atomic.Bool // it was sent credentials of the registry's
}

// newUpstream has one with a snapshot that has that memory.
func newUpstream(t testing.TB, m *sparse.Map) *upstream {
	u := &upstream{t: t, ca: registrytest.NewCA(t), flat: make([]byte, m.Size())}
	rng := rand.NewChaCha8([32]byte([]byte("what the memory of the guest is.")))
	for _, s := range m.Segments() {
		rng.Read(u.flat[s.Offset : s.Offset+s.Length])
	}
	u.artifact = artifacttest.Snapshot([]artifacttest.File{
		{Name: "config.json", Data: []byte("{}")}, {Name: memory, Data: u.flat, Map: m},
	}, artifacttest.Options{Piece: 256 << 10, Envelope: artifacttest.Envelope})
	u.front = registrytest.NewTLSFront(t, http.HandlerFunc(u.serve), u.ca.Config(t))
	return u
}

// serve is a registry that can be read.
func (u *upstream) serve(w http.ResponseWriter, r *http.Request) {
	time.Sleep(roundTrip) // the network between the sites
	name := path.Base(r.URL.Path)
	switch {
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", u.artifact.MediaType)
		w.Header().Set("Docker-Content-Digest", u.artifact.Digest())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(u.artifact.Manifest))
	case u.artifact.Blobs[name] != nil && u.elsewhere != nil:
		http.Redirect(w, r, strings.Replace(u.elsewhere.URL, "127.0.0.1", "localhost", 1)+"/store/"+name+"?signature=x%2Fy", http.StatusTemporaryRedirect)
	case u.artifact.Blobs[name] != nil:
		u.blob(w, r)
	case r.URL.Path == "/v2/":
	default:
		http.NotFound(w, r)
	}
}

func (u *upstream) blob(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+path.Base(r.URL.Path)+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(u.artifact.Blobs[path.Base(r.URL.Path)]))
}

// moves has the registry send who asks for blobs elsewhere.
func (u *upstream) moves() {
	u.elsewhere = registrytest.NewTLSFront(u.t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			u.leaked.Store(true)
		}
		if r.URL.RawQuery != "signature=x%2Fy" {
			http.Error(w, "the URL is not the one that was signed", http.StatusForbidden)
			return
		}
		u.blob(w, r)
	}), u.ca.Config(u.t))
}

// sent is how many bytes of blobs it has sent since the last time.
func (u *upstream) sent() int64 {
	n := u.front.Counts().BlobBytes
	u.front.Reset()
	if u.elsewhere != nil {
		for _, r := range u.elsewhere.Requests() {
			n += r.Sent()
		}
		u.elsewhere.Reset()
	}
	return n
}

// start is the first bytes of a guest's memory, of all of it if size is 0, and
// the pages of them that it used after its start, in order, the first of them
// if there are more than that.
func start(t testing.TB, size int64, pages int) (m *sparse.Map, page int64, touched []int64) {
	x, err := traces.ReadTouches()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = x.Map(x.Page, size); err != nil {
		t.Fatal(err)
	}
	for _, touch := range x.Touches {
		if len(touched) < pages && (touch[1]+1)*x.Page <= m.Size() {
			touched = append(touched, touch[1])
		}
	}
	return m, x.Page, touched
}

// askWithCredentials asks a cache for a slice that it has not got, as a client
// of a registry with a password does.
func (u *upstream) askWithCredentials(t testing.TB, cache string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for digest, blob := range u.artifact.Blobs {
		if len(blob) < 1<<20 {
			continue
		}
		before := len(u.elsewhere.Requests())
		req, err := http.NewRequest(http.MethodGet, cache+"/v2/"+repo+"/blobs/"+digest, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("joe", "s3cret")
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(blob)-1))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, blob[len(blob)-1:]) || len(u.elsewhere.Requests()) == before {
			t.Errorf("%s: %q, %v, %d requests", resp.Status, got, err, len(u.elsewhere.Requests())-before)
		}
	}
}
