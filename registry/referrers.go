package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
)

const indexType = "application/vnd.oci.image.index.v1+json"

const (
	maxReferrers     = 10_000
	maxReferrerPages = 8
	maxIndexRounds   = 20 // of writing a tag's index and looking at it again
)

// Descriptor is an entry of a list of referrers. The registry, or the writer
// of the list, has chosen its fields.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Referrers returns the manifests of a type that have the manifest with the
// given digest as their subject. A registry without the referrers API is
// asked for the index that the distribution specification has instead; api
// is false then. No referrers are no error.
func (r *Registry) Referrers(ctx context.Context, name, subject, artifactType string) (list []Descriptor, api bool, err error) {
	t := r.target("list referrers of", name, subject)
	if !validRepository(name) || !digests.Valid(subject) {
		return nil, false, fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	all, err := r.askReferrers(ctx, t, name, subject, artifactType)
	api = !lacksReferrers(err)
	if !api {
		var ix *referrersIndex
		if ix, err = r.getIndex(ctx, name, subject); err == nil {
			all = ix.entries
		}
	}
	if err != nil {
		return nil, api, err
	}
	for _, raw := range all {
		var d Descriptor
		if json.Unmarshal(raw, &d) == nil && d.ArtifactType == artifactType && digests.Valid(d.Digest) {
			list = append(list, d)
		}
	}
	return list, api, nil
}

// lacksReferrers reports whether an answer is that of a registry that does
// not know the API. The specification has 404 for that.
func lacksReferrers(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Status {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	case http.StatusOK:
		return errors.Is(err, errNoIndex)
	}
	return false
}

var errNoIndex = errors.New("the answer is no index")

// askReferrers asks the API, page after page.
func (r *Registry) askReferrers(ctx context.Context, t target, name, subject, artifactType string) (all []json.RawMessage, err error) {
	u := r.at(name + "/referrers/" + subject)
	query := u.Query()
	query.Set("artifactType", artifactType)
	u.RawQuery = query.Encode()
	for page := 0; u != nil && page < maxReferrerPages && len(all) < maxReferrers; page++ {
		q := request{target: t, method: http.MethodGet, url: u, header: http.Header{"Accept": {indexType}}, access: access{name: name}}
		ix, next, err := r.referrersPage(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, ix.entries...)
		u = next
	}
	return all, nil
}

// referrersPage returns one page, and where the next one is or nil.
func (r *Registry) referrersPage(ctx context.Context, q request) (ix *referrersIndex, next *url.URL, err error) {
	ix, err = retry(ctx, r, q.target, func() (*referrersIndex, error) {
		resp, err := r.do(ctx, q)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, q.status(resp)
		}
		next = nextPage(q.url, resp.Header.Get("Link"))
		kind := mediaType(resp.Header.Get("Content-Type"))
		raw, err := r.readSmall(resp, maxManifest, q.target)
		if err != nil {
			return nil, err
		}
		ix, ok := parseIndex(raw)
		if !ok || kind != indexType && kind != "application/json" {
			e := q.fail(ErrContent, errNoIndex)
			e.Status = http.StatusOK
			return nil, e
		}
		return ix, nil
	})
	return ix, next, err
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

// nextPage returns the URL of a Link header, if it stays on the host.
func nextPage(at *url.URL, link string) *url.URL {
	m := nextLink.FindStringSubmatch(link)
	if m == nil {
		return nil
	}
	u, err := at.Parse(m[1])
	if err != nil || !sameOrigin(at, u) || u.User != nil {
		return nil
	}
	return u
}

// referrersIndex is an image index whose entries are kept as they are.
type referrersIndex struct {
	digest  string // of its bytes; "" for one that is not there yet
	fields  map[string]json.RawMessage
	entries []json.RawMessage
}

func parseIndex(raw []byte) (*referrersIndex, bool) {
	ix := &referrersIndex{digest: digests.Of(raw)}
	if json.Unmarshal(raw, &ix.fields) != nil || ix.fields["manifests"] == nil {
		return nil, false
	}
	var kind string
	if f := ix.fields["mediaType"]; f != nil && (json.Unmarshal(f, &kind) != nil || kind != indexType) {
		return nil, false
	}
	if json.Unmarshal(ix.fields["manifests"], &ix.entries) != nil {
		return nil, false
	}
	return ix, len(ix.entries) <= maxReferrers
}

// has reports whether a manifest is in the index.
func (ix *referrersIndex) has(digest string) bool {
	for _, raw := range ix.entries {
		var d Descriptor
		if json.Unmarshal(raw, &d) == nil && d.Digest == digest {
			return true
		}
	}
	return false
}

// with returns the index's text with another entry.
func (ix *referrersIndex) with(d Descriptor) ([]byte, error) {
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	entries, err := json.Marshal(append(ix.entries[:len(ix.entries):len(ix.entries)], raw))
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	for k, v := range ix.fields {
		fields[k] = v
	}
	fields["schemaVersion"] = json.RawMessage("2")
	fields["mediaType"] = json.RawMessage(`"` + indexType + `"`)
	fields["manifests"] = entries
	return json.Marshal(fields)
}

// referrersTag is the tag of the index of a subject's referrers, for
// registries without the API.
func referrersTag(subject string) string { return strings.Replace(subject, ":", "-", 1) }

// getIndex returns that index, which is empty if there is none.
func (r *Registry) getIndex(ctx context.Context, name, subject string) (*referrersIndex, error) {
	tag := referrersTag(subject)
	raw, _, err := r.GetManifest(ctx, name, tag)
	if errors.Is(err, ErrNotFound) {
		return &referrersIndex{}, nil
	}
	if err != nil {
		return nil, err
	}
	ix, ok := parseIndex(raw)
	if !ok {
		return nil, r.target("read referrers", name, tag).wrong("%w", errNoIndex)
	}
	return ix, nil
}

// PutReferrer stores a manifest, which must have subject as its subject, and
// makes it one of the subject's referrers. d describes it for a list of
// them; its digest and size are filled in. The manifest gets the tag too,
// unless that is "". The subject need not be there yet.
func (r *Registry) PutReferrer(ctx context.Context, name, tag, subject string, data []byte, d Descriptor) error {
	d.Digest, d.Size = digests.Of(data), int64(len(data))
	if tag == "" {
		tag = d.Digest
	}
	header, err := r.putManifest(ctx, name, tag, data, d.MediaType)
	if err != nil || header.Get("OCI-Subject") == subject {
		return err
	}
	// Some registries have the API and do not say so.
	if _, api, err := r.Referrers(ctx, name, subject, d.ArtifactType); api || err != nil {
		return err
	}
	return r.addReferrer(ctx, name, subject, d)
}

// addReferrer adds an entry to the index of referrers. The registry has no
// way to change it at once: another writer that read it before this one
// wrote will write it without this one's entry. So it is looked at again
// until it has stood unchanged, with the entry, for longer than a writer
// takes.
func (r *Registry) addReferrer(ctx context.Context, name, subject string, d Descriptor) error {
	tag, written, stood := referrersTag(subject), false, ""
	for range maxIndexRounds {
		began := time.Now()
		ix, err := r.getIndex(ctx, name, subject)
		if err != nil {
			return err
		}
		if ix.has(d.Digest) {
			if !written || stood == ix.digest {
				return nil
			}
			stood = ix.digest
			if err := pause(ctx, max(r.limits.settle, 4*time.Since(began))); err != nil {
				return r.target("add referrer", name, tag).broken(err)
			}
			continue
		}
		text, err := ix.with(d)
		if err != nil {
			return err
		}
		if err := r.PutManifest(ctx, name, tag, text, indexType); err != nil {
			return err
		}
		written, stood = true, ""
	}
	if stood != "" {
		return nil // it is there, and others go on adding theirs
	}
	return r.target("add referrer", name, tag).fail(ErrUnreachable, errors.New("others keep writing the tag"))
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Referrers is Registry's. Who answers must be allowed to say what a tag
// names, because no digest vouches for the list. That a mirror has none means nothing.
func (m *Mirrors) Referrers(ctx context.Context, name, subject, artifactType string) ([]Descriptor, bool, error) {
	type answer struct {
		list []Descriptor
		api  bool
	}
	w := want{id: "referrers of " + subject, resolve: true}
	a, err := ask(ctx, m, w, func(p *upstream) (a answer, err error) {
		a.list, a.api, err = p.reg.Referrers(ctx, name, subject, artifactType)
		if err == nil && len(a.list) == 0 && !p.own { // it may not have got them
			err = p.reg.target("list referrers of", name, subject).fail(ErrNotFound, nil)
		}
		return a, err
	})
	return a.list, a.api, err
}
