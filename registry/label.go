package registry

import (
	"bytes"
	"errors"
	"hash"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// Blobs are asked for as they are. Some registries label them with what they
// were uploaded or are stored in, and send them as they are all the same;
// some proxies compress them on the way. The length of the answer, or its
// digest, decides which it is, and not the label.

// isLabelled reports whether an answer claims to be encoded.
func isLabelled(h http.Header) bool {
	for _, label := range labels(h) {
		if label != "identity" {
			return true
		}
	}
	return false
}

// labels are the codings that an answer claims, in lower case.
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

// starts report whether bytes may be the beginning of a coding. Labels that
// are not here are no codings of HTTP.
var starts = map[string]func([]byte) bool{
	"gzip":        begins("\x1f\x8b"),
	"x-gzip":      begins("\x1f\x8b"),
	"compress":    begins("\x1f\x9d"),
	"x-compress":  begins("\x1f\x9d"),
	"deflate":     begins(""), // these have no header, or may have none
	"br":          begins(""),
	"dcb":         begins(""),
	"dcz":         begins(""),
	"zstd":        beginsFrame,
	"aws-chunked": regexp.MustCompile("^[0-9a-fA-F]{1,8}(?:;[!-~]*)?\r\n").Match,
}

func begins(with string) func([]byte) bool {
	return func(b []byte) bool { return len(b) > 0 && bytes.HasPrefix(b, []byte(with)) }
}

// beginsFrame reports whether b begins with a frame of zstd, or with one that
// is skipped.
func beginsFrame(b []byte) bool {
	return bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")) ||
		len(b) > 3 && b[0]&0xf0 == 0x50 && bytes.Equal(b[1:4], []byte("\x2a\x4d\x18"))
}

// maxStart is how many bytes decide about it.
const maxStart = 128

// beginsEncoded reports whether bytes begin as the label of their answer
// says.
func beginsEncoded(h http.Header, first []byte) bool {
	for _, label := range labels(h) {
		if start := starts[label]; start != nil && start(first[:min(len(first), maxStart)]) {
			return true
		}
	}
	return false
}

// maxTried is the largest blob that is read into memory to find out whether
// its label is right.
const maxTried = 8 << 20

// decideLabel refuses an answer that may be encoded, and closes it. One whose
// announced length is the right one is not; else its first bytes decide, and
// of a whole blob that is small its digest. size is -1 for a part.
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

// take reads n bytes, or as many as there are.
func take(r io.Reader, n int64) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, max(n, 0)))
}

// prefixed is a body of which something was read already.
type prefixed struct {
	io.Reader
	io.Closer
}

// encoded is the error of an answer that is not what was asked for.
func (t target) encoded(h http.Header) *Error {
	e := t.wrong("it came with Content-Encoding %q", clip(strings.Join(labels(h), ", ")))
	e.Hint = "something on the way encodes what was asked for as it is"
	return e
}

// labelled is a whole blob that claims to be encoded. It ends with an error
// where it is not the blob.
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
