package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Kinds of failures, for errors.Is.
var (
	ErrNotFound    = errors.New("not found")              // the registry does not have it
	ErrDenied      = errors.New("not allowed")            // credentials are missing or refused
	ErrUnreachable = errors.New("not reachable")          // no answer, a broken one, or one that asks to come back later
	ErrContent     = errors.New("wrong content")          // a wrong digest, size or range
	ErrRoots       = errors.New("read root certificates") // from a file that EPOCH_CA_CERT or hosts.toml names
	errStalled     = errors.New("no data arrived for too long")
	errHungUp      = errors.New("the connection was closed without an answer")
	errPlainHTTP   = errors.New("plain HTTP is allowed only to loopback hosts, or with --plain-http")
)

// Error is the error of a failed request. Its text is one line and contains
// no token and no query string.
type Error struct {
	Op      string // operation, such as "get manifest"
	Host    string // the registry
	What    string // repository, with the tag or digest if any
	Status  int    // HTTP status of the answer; 0 without one
	Code    string // the registry's error code, such as MANIFEST_UNKNOWN, or ""
	Hint    string // what the user can do about it, or ""
	Message string // the registry's own message, cleaned for one line, or ""
	Helper  string // the credential helper that docker's config names and that is not installed, or ""

	kind  error // ErrNotFound, ErrDenied, ErrUnreachable, ErrContent or nil
	cause error // what happened, or nil
	again bool
	after time.Duration
	odd   bool // another way of uploading may avoid it
}

// Error returns the operation, the host, the repository and the cause.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s on %s: ", e.Op, e.What, e.Host)
	switch {
	case e.Status != 0 && e.cause == nil:
		b.WriteString(e.answer())
	case e.cause != nil:
		b.WriteString(clip(e.cause.Error()))
	case e.kind != nil:
		b.WriteString(e.kind.Error())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// answer returns the answer's status with the registry's code and message.
func (e *Error) answer() string {
	text := strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status)))
	switch {
	case e.Code != "" && e.Message != "":
		return text + " (" + e.Code + ": " + e.Message + ")"
	case e.Code != "" || e.Message != "":
		return text + " (" + e.Code + e.Message + ")"
	}
	return text
}

// Is reports whether target is the kind of e.
func (e *Error) Is(target error) bool { return e.kind != nil && target == e.kind }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Temporary reports whether the same request may succeed later.
func (e *Error) Temporary() bool { return e.again }

// RetryAfter returns how long the registry asked to wait, or 0.
func (e *Error) RetryAfter() time.Duration { return e.after }

// clip makes foreign text fit for one line of a terminal.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// target names the subject of a request in its errors.
type target struct {
	op, host, what string
	name, id       string    // repository; tag, digest or ""
	r              *Registry // nil in tests
}

// fail returns a permanent error of the given kind.
func (t target) fail(kind, cause error) *Error {
	return &Error{Op: t.op, Host: t.host, What: t.what, kind: kind, cause: cause}
}

// wrong returns an ErrContent with a reason.
func (t target) wrong(format string, args ...any) *Error {
	return t.fail(ErrContent, fmt.Errorf(format, args...))
}

// broken turns an error of the transport or of a body into an *Error.
func (t target) broken(err error) error {
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	if errors.Is(err, io.EOF) {
		// The caller must not take a closed connection for the end of its
		// stream.
		err = errHungUp
	}
	e := t.fail(ErrUnreachable, err)
	e.again = true
	switch {
	case errors.Is(err, context.Canceled):
		e.kind = nil // caused by the caller
	case errors.Is(err, errPlainHTTP):
		e.again = false
		e.kind = ErrDenied
	case speaksPlain(err):
		e.Hint = "the server speaks plain HTTP, which --plain-http allows"
	case proxyHint(err) != "":
		e.Hint = proxyHint(err)
	case isCertificate(err):
		e.Hint = "to trust another root certificate, name its file in EPOCH_CA_CERT"
	}
	return e
}

// speaksPlain reports whether a TLS handshake was answered in plain HTTP.
func speaksPlain(err error) bool {
	var h tls.RecordHeaderError
	return errors.As(err, &h) && string(h.RecordHeader[:]) == "HTTP/"
}

func isCertificate(err error) bool {
	var c *tls.CertificateVerificationError
	return errors.As(err, &c)
}

// short returns the temporary error of a body that ended too early.
func (t target) short() error {
	e := t.fail(ErrUnreachable, io.ErrUnexpectedEOF)
	e.again = true
	return e
}

// status turns an answer with an error status into an *Error, and closes its
// body.
func (t target) status(resp *http.Response) error {
	e := t.fail(nil, nil)
	e.Status = resp.StatusCode
	body := drain(resp)
	e.Code, e.Message = errorCode(body), message(resp, body)
	e.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound, s == http.StatusGone:
		e.kind = ErrNotFound
		if _, err := t.credentialsFrom(); err != nil {
			e.Hint = err.Error() // some registries hide content from anonymous clients
		}
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		e.kind = ErrDenied
		// The registry allowed it; its storage complains about an expired
		// signed URL, or about a clock.
		e.again = redirected(resp)
		if !e.again && t.r != nil && t.r.auth.asksForMore() {
			e.Hint, e.Helper = t.r.auth.hint(s)
		}
	case s == http.StatusProxyAuthRequired:
		t.proxyRefused(e, resp)
	case s == http.StatusRequestedRangeNotSatisfiable:
		e.kind = ErrContent
	case s == http.StatusTooManyRequests, s == http.StatusRequestTimeout, s >= 500,
		s == http.StatusBadRequest && redirected(resp): // S3 says so of an expired token of its own
		e.kind, e.again = ErrUnreachable, true
	case s == http.StatusBadRequest && speaksTLS(resp, body):
		e.kind = ErrUnreachable
		e.Hint = "the server speaks TLS: set EPOCH_SERVER=https://" + t.host
	case e.Code == "DIGEST_INVALID":
		e.kind = ErrContent
	case s < 300:
		e.kind = ErrContent
		e.cause = fmt.Errorf("unexpected answer %d %s", s, http.StatusText(s))
	}
	return e
}

// speaksTLS reports whether a TLS server answered a plain HTTP request. An
// answer to HEAD has no body; Go's servers send it as HTTP/1.0, which no
// current server does otherwise.
func speaksTLS(resp *http.Response, body []byte) bool {
	return resp.Request != nil && resp.Request.URL.Scheme == "http" &&
		(bytes.Contains(body, []byte("HTTPS")) || len(body) == 0 && resp.ProtoMajor == 1 && resp.ProtoMinor == 0)
}

// errorCode returns the first code in a registry's error body.
func errorCode(raw []byte) string {
	var doc struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	code := doc.Errors[0].Code
	if len(code) > 40 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return ""
	}
	return code
}

// retryAfter parses the seconds or the date of a Retry-After header, and
// bounds them to one hour.
func retryAfter(v string, now time.Time) time.Duration {
	const most = time.Hour
	var d time.Duration
	if n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, most))
}
