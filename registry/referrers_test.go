package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

const (
	hintType = "application/vnd.example.hint.v1+json"
	ociType  = "application/vnd.oci.image.manifest.v1+json"
)

// hint returns a manifest that refers to a subject.
func hint(t testing.TB, r *Registry, subject []byte, n int) ([]byte, Descriptor) {
	t.Helper()
	config := []byte("{}")
	if err := r.PutBlob(t.Context(), "vm", digests.Of(config), strings.NewReader("{}"), 2); err != nil {
		t.Fatal(err)
	}
	notes := map[string]string{"number": fmt.Sprint(n)}
	d := map[string]any{
		"schemaVersion": 2, "mediaType": ociType, "artifactType": hintType,
		"config":      map[string]any{"mediaType": hintType, "digest": digests.Of(config), "size": 2},
		"layers":      []any{map[string]any{"mediaType": "application/octet-stream", "digest": digests.Of(config), "size": 2}},
		"subject":     map[string]any{"mediaType": ociType, "digest": digests.Of(subject), "size": len(subject)},
		"annotations": notes,
	}
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return data, Descriptor{MediaType: ociType, ArtifactType: hintType, Annotations: notes}
}

// putSubject stores a manifest that others can refer to.
func putSubject(t testing.TB, r *Registry) []byte {
	t.Helper()
	config := []byte("{}")
	if err := r.PutBlob(t.Context(), "vm", digests.Of(config), strings.NewReader("{}"), 2); err != nil {
		t.Fatal(err)
	}
	data := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[]}`, ociType, digests.Of(config))
	if err := r.PutManifest(t.Context(), "vm", "1", data, ociType); err != nil {
		t.Fatal(err)
	}
	return data
}

// referring are the kinds of registries, by whether they have the API.
func referring(t *testing.T, each func(t *testing.T, base string, api bool)) {
	quiet := ggcr.Logger(log.New(io.Discard, "", 0))
	t.Run("with the API", func(t *testing.T) {
		t.Parallel()
		each(t, registrytest.NewFront(t, ggcr.New(quiet, ggcr.WithReferrersSupport(true))).URL, true)
	})
	t.Run("without", func(t *testing.T) {
		t.Parallel()
		each(t, registrytest.NewFront(t, ggcr.New(quiet)).URL, false)
	})
	t.Run("epoch", func(t *testing.T) {
		t.Parallel()
		each(t, registrytest.NewFront(t, &epochlike.Server{}).URL, false)
	})
	t.Run("Debian", func(t *testing.T) {
		t.Parallel()
		each(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL, false)
	})
}

func numbers(list []Descriptor) (all []string) {
	for _, d := range list {
		all = append(all, d.Annotations["number"])
	}
	slices.Sort(all)
	return all
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	referring(t, func(t *testing.T, base string, api bool) {
		r := client(t, base, Options{})
		subject := putSubject(t, r)
		list, got, err := r.Referrers(t.Context(), "vm", digests.Of(subject), hintType)
		if err != nil || len(list) != 0 || got != api {
			t.Fatalf("before: %v, API %v, %v", list, got, err)
		}
		for n := range 2 {
			data, d := hint(t, r, subject, n)
			for range 2 { // the second time changes nothing
				if err := r.PutReferrer(t.Context(), "vm", "hint", digests.Of(subject), data, d); err != nil {
					t.Fatal(err)
				}
			}
			if got, _, err := r.GetManifest(t.Context(), "vm", "hint"); err != nil || string(got) != string(data) {
				t.Errorf("by its tag: %s, %v", got, err)
			}
		}
		list, got, err = r.Referrers(t.Context(), "vm", digests.Of(subject), hintType)
		if err != nil || !slices.Equal(numbers(list), []string{"0", "1"}) || got != api {
			t.Errorf("%+v, API %v, %v", list, got, err)
		}
		list, _, err = r.Referrers(t.Context(), "vm", digests.Of(subject), "application/vnd.example.other")
		if err != nil || len(list) != 0 {
			t.Errorf("of another type: %v, %v", list, err)
		}
	})
}

// TestReferrersAtOnce has several clients add one each at the same time.
func TestReferrersAtOnce(t *testing.T) {
	t.Parallel()
	referring(t, func(t *testing.T, base string, _ bool) {
		lim := quickLimits()
		lim.settle = 300 * time.Millisecond
		r := client(t, base, Options{})
		subject := putSubject(t, r)
		const writers = 4
		var want []string
		var all sync.WaitGroup
		for n := range writers {
			want = append(want, fmt.Sprint(n))
			data, d := hint(t, r, subject, n)
			own := clientWith(t, base, Options{}, lim, nil)
			all.Go(func() {
				if err := own.PutReferrer(t.Context(), "vm", "", digests.Of(subject), data, d); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		list, _, err := r.Referrers(t.Context(), "vm", digests.Of(subject), hintType)
		if err != nil || !slices.Equal(numbers(list), want) {
			t.Errorf("%v, %v", numbers(list), err)
		}
	})
}

// overtaking lets the client "late" write the index just after "early" has
// seen its own entry in it, which the late one did not see.
type overtaking struct {
	http.Handler
	bothRead, seen, overwritten chan struct{}

	mu   sync.Mutex
	gets map[string]int
	puts map[string]int
}

func (o *overtaking) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !strings.Contains(req.URL.Path, "/manifests/sha256-") {
		o.Handler.ServeHTTP(w, req)
		return
	}
	who := req.UserAgent()
	o.mu.Lock()
	counts := o.gets
	if req.Method == http.MethodPut {
		counts = o.puts
	}
	counts[who]++
	n, wrote := counts[who], o.puts["early"] > 0
	o.mu.Unlock()
	if req.Method == http.MethodPut {
		if who == "late" && n == 1 {
			<-o.seen
			defer close(o.overwritten)
		}
		o.Handler.ServeHTTP(w, req)
		return
	}
	switch {
	case who == "early" && wrote && n == 4:
		<-o.overwritten
	case who == "early" && wrote && n == 3:
		defer close(o.seen)
	}
	o.Handler.ServeHTTP(w, req)
	if n == 2 && !wrote { // the first GET is that of Referrers
		select {
		case o.bothRead <- struct{}{}:
		case <-o.bothRead:
		}
	}
}

func TestReferrersOverwritten(t *testing.T) {
	t.Parallel()
	o := &overtaking{
		Handler: registrytest.NewHandler(), bothRead: make(chan struct{}), seen: make(chan struct{}), overwritten: make(chan struct{}),
		gets: map[string]int{}, puts: map[string]int{},
	}
	base := registrytest.NewFront(t, o).URL
	r := client(t, base, Options{})
	subject := putSubject(t, r)
	lim := quickLimits()
	lim.settle = time.Millisecond
	var all sync.WaitGroup
	for n, who := range []string{"early", "late"} {
		data, d := hint(t, r, subject, n)
		own := clientWith(t, base, Options{UserAgent: who}, lim, nil)
		all.Go(func() {
			if err := own.PutReferrer(t.Context(), "vm", "", digests.Of(subject), data, d); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	list, _, err := r.Referrers(t.Context(), "vm", digests.Of(subject), hintType)
	if err != nil || !slices.Equal(numbers(list), []string{"0", "1"}) {
		t.Errorf("%v, %v", numbers(list), err)
	}
	if o.puts["early"] != 2 {
		t.Errorf("the early one wrote %d times", o.puts["early"])
	}
}

// TestReferrersPages follows pages on the same host and nowhere else.
func TestReferrersPages(t *testing.T) {
	t.Parallel()
	subject := "sha256:" + strings.Repeat("a", 64)
	page := func(n int) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":"sha256:%064d","artifactType":%q,"annotations":{"number":"%d"}},7,{"digest":"x"}]}`, indexType, ociType, n, hintType, n)
	}
	r := client(t, registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", indexType)
		n := 0
		fmt.Sscan(req.URL.Query().Get("page"), &n)
		switch n {
		case 0:
			w.Header().Set("Link", `</v2/vm/referrers/`+subject+`?page=1>; rel="next"`)
		case 1:
			w.Header().Set("Link", `<http://192.0.2.1/steal>; rel="next"`)
		}
		io.WriteString(w, page(n))
	})).URL, Options{})
	list, api, err := r.Referrers(t.Context(), "vm", subject, hintType)
	if err != nil || !api || !slices.Equal(numbers(list), []string{"0", "1"}) {
		t.Errorf("%v, %v, %v", list, api, err)
	}
}

// TestReferrersOdd asks registries that answer something else.
func TestReferrersOdd(t *testing.T) {
	t.Parallel()
	subject := "sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		status     int
		kind, body string
	}{
		"a page for people": {200, "text/html", "<html>"},
		"another JSON":      {200, "application/json", `{"manifests":{}}`},
		"an image":          {200, indexType, `{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}`},
		"many entries":      {200, indexType, `{"manifests":[` + strings.Repeat("0,", maxReferrers) + `0]}`},
		"not allowed":       {405, "text/plain", ""},
		"not implemented":   {501, "text/plain", ""},
	} {
		r := client(t, registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if !strings.Contains(req.URL.Path, "/referrers/") {
				http.NotFound(w, req)
				return
			}
			w.Header().Set("Content-Type", c.kind)
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})).URL, Options{})
		if list, api, err := r.Referrers(t.Context(), "vm", subject, hintType); err != nil || api || list != nil {
			t.Errorf("%s: %v, %v, %v", name, list, api, err)
		}
	}
}
