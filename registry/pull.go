package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/cocoonstack/epochfs/internal/digests"
)

const (
	// maxManifest bounds the bytes read of a manifest: registries take at
	// least 4 MiB, and few take more.
	maxManifest = 4<<20 + 64<<10
	maxTagList  = 1 << 20
	maxTags     = 100
)

// manifestTypes are all types of manifests that may be stored; a registry
// converts a manifest, or answers 404, if its type is not listed.
const manifestTypes = "application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.oci.image.index.v1+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json"

// GetManifest returns the manifest with a tag or a digest, and its content
// type. If tag is a digest, the manifest is verified.
func (r *Registry) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	t := r.target("get manifest", name, tag)
	if !validRepository(name) || !validTag(tag) && !digests.Valid(tag) {
		return nil, "", fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	q := request{
		target: t,
		method: http.MethodGet,
		url:    r.at(name + "/manifests/" + tag),
		header: http.Header{"Accept": {manifestTypes}},
		access: access{name: name},
	}
	var kind string
	raw, err := retry(ctx, r, t, func() ([]byte, error) {
		resp, err := r.do(ctx, q)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, t.status(resp)
		}
		kind = mediaType(resp.Header.Get("Content-Type"))
		raw, err := r.readSmall(resp, maxManifest, t)
		if err != nil {
			return nil, err
		}
		return raw, checkManifest(raw, tag, t)
	})
	if err != nil {
		return nil, "", err
	}
	return raw, kind, nil
}

// checkManifest verifies a manifest that was requested by digest. It ignores
// the digest that the registry announces, because the real one can be
// computed.
func checkManifest(raw []byte, tag string, t target) error {
	if got := digests.Of(raw); digests.Valid(tag) && tag != got {
		return t.wrong("the answer has digest %s", got)
	}
	return nil
}

func mediaType(header string) string {
	kind, _, err := mime.ParseMediaType(header)
	if err != nil {
		return ""
	}
	return kind
}

// Tags returns up to 100 tags of a repository, for messages. It leaves out
// invalid ones.
func (r *Registry) Tags(ctx context.Context, name string) ([]string, error) {
	t := r.target("list the tags of", name, "")
	if !validRepository(name) {
		return nil, fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	u := r.at(name + "/tags/list")
	u.RawQuery = "n=" + strconv.Itoa(maxTags)
	q := request{target: t, method: http.MethodGet, url: u, access: access{name: name}}
	raw, err := retry(ctx, r, t, func() ([]byte, error) {
		resp, err := r.do(ctx, q)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, t.status(resp)
		}
		return r.readSmall(resp, maxTagList, t)
	})
	if err != nil {
		return nil, err
	}
	var doc struct {
		Tags []string `json:"tags"`
	}
	if json.Unmarshal(raw, &doc) != nil {
		return nil, t.wrong("the list is not a JSON object")
	}
	var tags []string
	for _, tag := range doc.Tags {
		if validTag(tag) && len(tags) < maxTags {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// blobRequest returns a GET or HEAD of a blob.
func (r *Registry) blobRequest(op, method, name, digest string) (request, error) {
	t := r.target(op, name, digest)
	if !validRepository(name) || !digests.Valid(digest) {
		return request{}, t.wrong("invalid repository or sha256 digest")
	}
	return request{
		target: t,
		method: method,
		url:    r.at(name + "/blobs/" + digest),
		header: http.Header{},
		access: access{name: name},
	}, nil
}

// GetBlob opens a whole blob as a stream of the stored bytes. The caller
// must verify the digest. A stream that breaks ends with an error and is not
// resumed.
func (r *Registry) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	q, err := r.blobRequest("read blob", http.MethodGet, name, digest)
	if err != nil {
		return nil, err
	}
	resp, err := r.do(ctx, q)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, q.status(resp)
	}
	if err := wholeOrNone(resp, -1, q.target); err != nil {
		return nil, err
	}
	var body io.ReadCloser = &open{resp.Body, q.target}
	if n := resp.ContentLength; n >= 0 {
		body = &exact{rc: resp.Body, left: n, t: q.target}
	}
	if isLabelled(resp.Header) {
		body = &labelled{ReadCloser: body, hash: sha256.New(), digest: digest, err: q.encoded(resp.Header)}
	}
	return body, nil
}

// GetBlobRange opens exactly n bytes of a blob from offset off; if the blob
// has fewer, reading fails. If the registry ignores ranges, the bytes before
// off are read and dropped.
func (r *Registry) GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error) {
	q, err := r.blobRequest("read blob", http.MethodGet, name, digest)
	if err != nil {
		return nil, err
	}
	body, whole, err := r.openRange(ctx, q, -1, off, n)
	if err != nil || !whole {
		return body, err
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		body.Close()
		return nil, q.broken(err)
	}
	return &exact{rc: body, left: n, t: q.target}, nil
}

// Source is one repository as a source of blobs.
type Source struct {
	r    *Registry
	name string
}

// Source returns the blobs of a repository.
func (r *Registry) Source(repository string) *Source { return &Source{r, repository} }

// OpenBlob opens bytes [off, off+n) of a blob of size bytes. whole reports
// that the registry ignored the range: body is then the whole blob. Body ends
// with io.EOF only after its last byte; before, it may end with an error that
// is Temporary. Its bytes are not verified. The caller must close it, and may
// do so early, even during a Read.
func (s *Source) OpenBlob(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error) {
	q, err := s.r.blobRequest("read blob", http.MethodGet, s.name, digest)
	if err != nil {
		return nil, false, err
	}
	if size < 0 {
		return nil, false, q.wrong("a blob of %d bytes was asked for", size)
	}
	return s.r.openRange(ctx, q, size, off, n)
}

// openRange opens [off, off+n) of a blob; size is -1 if it is not known.
func (r *Registry) openRange(ctx context.Context, q request, size, off, n int64) (io.ReadCloser, bool, error) {
	const most = 1 << 61
	if off < 0 || n < 0 || off > most || n > most || size >= 0 && off+n > size {
		return nil, false, q.wrong("bytes %d+%d are not in a blob of %d bytes", off, n, size)
	}
	if n == 0 {
		return http.NoBody, false, nil
	}
	part := off != 0 || n != size
	if part {
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := r.do(ctx, q)
	if err != nil {
		return nil, false, err
	}
	ranged := len(resp.Header.Values("Content-Range")) > 0
	switch {
	case resp.StatusCode == http.StatusPartialContent && part, resp.StatusCode == http.StatusOK && part && ranged:
		return r.partial(resp, q.target, size, off, n)
	case resp.StatusCode == http.StatusOK:
		if part {
			r.ranges.CompareAndSwap(rangesUnknown, rangesIgnored)
		}
		return r.whole(resp, q.target, size, off+n)
	case resp.StatusCode == http.StatusPartialContent:
		resp.Body.Close()
		return nil, false, q.wrong("the registry sent a part of the blob instead of all of it")
	}
	return nil, false, q.status(resp)
}

// partial checks an answer that says it is a part of a blob, whatever its
// status. A part that starts elsewhere, or is longer than requested, is
// ErrContent; a shorter one is accepted.
func (r *Registry) partial(resp *http.Response, t target, size, off, n int64) (io.ReadCloser, bool, error) {
	refuse := func(format string, args ...any) (io.ReadCloser, bool, error) {
		resp.Body.Close()
		return nil, false, t.wrong(format, args...)
	}
	start, end, total, ok := contentRange(resp)
	switch {
	case !ok:
		return refuse("the Content-Range of the answer cannot be read")
	case start != off || end > off+n-1:
		return refuse("bytes %d-%d were asked for, %d-%d came", off, off+n-1, start, end)
	case total >= 0 && size >= 0 && total != size:
		return refuse("the registry has %d bytes, but the artifact says %d", total, size)
	case total >= 0 && total < off+n:
		return refuse("the registry has %d bytes, but %d are needed", total, off+n)
	case resp.ContentLength >= 0 && resp.ContentLength != end-start+1:
		return refuse("bytes %d-%d were announced with a length of %d", start, end, resp.ContentLength)
	}
	if err := decideLabel(resp, resp.ContentLength >= 0, -1, t); err != nil {
		return nil, false, err
	}
	r.ranges.Store(rangesServed)
	// If the server sends less than requested, the body ends early with a
	// temporary error, and the rest can be requested.
	came := end - start + 1
	return &exact{rc: resp.Body, left: came, lacking: n - came, t: t}, false, nil
}

// whole checks a 200. need is the number of bytes wanted if the size is not
// known.
func (r *Registry) whole(resp *http.Response, t target, size, need int64) (io.ReadCloser, bool, error) {
	if err := wholeOrNone(resp, size, t); err != nil {
		return nil, false, err
	}
	have := resp.ContentLength
	known, right := size, size >= 0 && have == size
	switch {
	case size < 0 && have >= 0 && have < need:
		resp.Body.Close()
		return nil, false, t.wrong("the registry has %d bytes, but %d are needed", have, need)
	case size < 0:
		size = need
	case have >= 0 && have != size:
		resp.Body.Close()
		return nil, false, t.wrong("the registry has %d bytes, but the artifact says %d", have, size)
	}
	if err := decideLabel(resp, right, known, t); err != nil {
		return nil, false, err
	}
	return &exact{rc: resp.Body, left: size, t: t}, true, nil
}

// contentRange parses the one Content-Range of an answer. An answer with
// several parts has another form, which is never requested.
func contentRange(resp *http.Response) (start, end, total int64, ok bool) {
	all := resp.Header.Values("Content-Range")
	if len(all) != 1 || strings.HasPrefix(mediaType(resp.Header.Get("Content-Type")), "multipart/") {
		return 0, 0, 0, false
	}
	return parseContentRange(all[0])
}

// wholeOrNone refuses a partial answer to a request for a whole blob, and
// closes it. size is -1 if it is not known.
func wholeOrNone(resp *http.Response, size int64, t target) error {
	if len(resp.Header.Values("Content-Range")) == 0 {
		return nil
	}
	start, end, total, ok := contentRange(resp)
	if size < 0 {
		size = total
	}
	have := resp.ContentLength
	if ok && start == 0 && end == size-1 && (total < 0 || total == size) && (have < 0 || have == size) {
		return nil
	}
	resp.Body.Close()
	return t.wrong("the registry sent a part of the blob instead of all of it")
}

// parseContentRange parses "bytes start-end/total"; total is -1 for "*".
func parseContentRange(v string) (start, end, total int64, ok bool) {
	unit, rest, ok1 := strings.Cut(strings.TrimSpace(v), " ")
	span, size, ok2 := strings.Cut(rest, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !ok3 || !strings.EqualFold(unit, "bytes") {
		return 0, 0, 0, false
	}
	start, ok1 = parseCount(from)
	end, ok2 = parseCount(to)
	total, ok3 = -1, true
	if size != "*" {
		total, ok3 = parseCount(size)
	}
	if !ok1 || !ok2 || !ok3 || end < start || total >= 0 && end >= total {
		return 0, 0, 0, false
	}
	return start, end, total, true
}

// parseCount parses a decimal number without sign.
func parseCount(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err == nil
}
