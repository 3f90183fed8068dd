package registry

import (
	"bytes"
	"errors"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// Blobs are requested without content coding. Some registries still label
// them with a coding, but send the stored bytes; some proxies really
// compress them. The length of the answer or its digest decides, not the
// label.

// isLabelled reports whether an answer claims a content coding.
func isLabelled(h http.Header) bool {
	for _, label := range labels(h) {
		if label != "identity" {
			return true
		}
	}
	return false
}

// labels returns the claimed codings in lower case.
func labels(h http.Header) []string {
	var all []string
	for _, v := range h.Values("Content-Encoding") {
		for label := range strings.SplitSeq(v, ",") {
			if label = strings.ToLower(strings.TrimSpace(label)); label != "" {
				all = append(all, label)
			}
		}
	}
	return all
}

// starts report whether bytes may begin a stream of a coding. Other labels
// are no codings of HTTP.
var starts = map[string]func([]byte) bool{
	"gzip":        begins("\x1f\x8b"),
	"x-gzip":      begins("\x1f\x8b"),
	"compress":    begins("\x1f\x9d"),
	"x-compress":  begins("\x1f\x9d"),
	"deflate":     begins(""), // without a header, or with an optional one
	"br":          begins(""),
	"dcb":         begins(""),
	"dcz":         begins(""),
	"zstd":        beginsFrame,
	"aws-chunked": func(b []byte) bool { return chunkSize().Match(b) },
}

// chunkSize matches the size before a chunk.
var chunkSize = lazily("^[0-9a-fA-F]{1,8}(?:;[!-~]*)?\r\n")

func begins(with string) func([]byte) bool {
	return func(b []byte) bool { return len(b) > 0 && bytes.HasPrefix(b, []byte(with)) }
}

// beginsFrame reports whether b begins with a zstd frame, or with a
// skippable one.
func beginsFrame(b []byte) bool {
	return bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")) ||
		len(b) > 3 && b[0]&0xf0 == 0x50 && bytes.Equal(b[1:4], []byte("\x2a\x4d\x18"))
}

// maxStart is the number of bytes inspected for that.
const maxStart = 128

// beginsEncoded reports whether the first bytes of an answer fit its label.
func beginsEncoded(h http.Header, first []byte) bool {
	for _, label := range labels(h) {
		if start := starts[label]; start != nil && start(first[:min(len(first), maxStart)]) {
			return true
		}
	}
	return false
}

// maxTried is the largest blob that is read into memory to check its label.
const maxTried = 8 << 20

// decideLabel refuses an answer that may really be encoded, and closes it.
// An answer of the right announced length is not; else its first bytes
// decide, and for a small whole blob the digest. size is -1 for a part of a
// blob.
func decideLabel(resp *http.Response, right bool, size int64, t target) error {
	if right || !isLabelled(resp.Header) {
		return nil
	}
	first, err := take(resp.Body, maxStart)
	if err == nil && beginsEncoded(resp.Header, first) {
		if size < 0 || size > maxTried {
			resp.Body.Close()
			return t.encoded(resp.Header)
		}
		var rest []byte
		rest, err = take(resp.Body, size-int64(len(first)))
		if first = append(first, rest...); err == nil && digests.Of(first) != t.id {
			resp.Body.Close()
			return t.encoded(resp.Header)
		}
	}
	if err != nil {
		resp.Body.Close()
		return t.broken(err)
	}
	resp.Body = &prefixed{io.MultiReader(bytes.NewReader(first), resp.Body), resp.Body}
	return nil
}

// take reads up to n bytes.
func take(r io.Reader, n int64) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, max(n, 0)))
}

// prefixed is a body with bytes put back in front.
type prefixed struct {
	io.Reader
	io.Closer
}

// encoded returns the error of an encoded answer.
func (t target) encoded(h http.Header) *Error {
	e := t.wrong("it came with Content-Encoding %q", clip(strings.Join(labels(h), ", ")))
	e.Hint = "something between here and the registry compresses the stored bytes"
	return e
}

// labelled is a whole blob with a claimed coding. Its last Read fails unless
// the bytes have the blob's digest.
type labelled struct {
	io.ReadCloser
	hash   hash.Hash
	digest string
	err    *Error
}

func (l *labelled) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	l.hash.Write(p[:n])
	if errors.Is(err, io.EOF) && digests.OfHash(l.hash) != l.digest {
		return n, l.err
	}
	return n, err
}
