package registry

import (
	"errors"
	"fmt"
	"net/http"
)

// judge classifies the refusal of n bytes. It marks it as odd if another way
// may avoid it, and as temporary if only the session is lost.
func (u *uploader) judge(err error, n int64) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.Status == http.StatusRequestEntityTooLarge:
		u.r.ways.tooLarge(n)
		e.odd = true
		e.Hint = "push --chunk 4MiB (format v2) makes blobs that may fit"
	case e.refusal() && u.unsure(e, n):
		e.odd, e.again = true, false
		if e.kind != nil { // the content or the name is not the problem
			e.kind = ErrUnreachable
		}
	default:
		return u.lost(err)
	}
	return err
}

// unsure reports whether a refusal of n bytes may concern the way, or the
// number of bytes. Some registries take small blobs in a way in which they
// refuse large ones, and accept chunks that they cannot join into a blob.
func (u *uploader) unsure(e *Error, n int64) bool {
	switch state := u.r.ways.state(u.way); {
	case state == wayUnknown:
		return true
	case u.way == byStream || u.way == byWhole:
		if state == wayDone && n > u.r.ways.taking(u.way) {
			u.r.ways.limitTo(u.way, n)
			return true
		}
		return state == wayOpen
	case state == wayDone:
		return false
	}
	// One session may break off by chance; a second one is the fault of the
	// way.
	u.refusals++
	return u.refusals > 1 || !e.endsSession()
}

// refusal reports whether the registry may accept another way.
func (e *Error) refusal() bool {
	switch s := e.Status; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusProxyAuthRequired,
		s == http.StatusRequestTimeout, s == http.StatusTooManyRequests:
		return false
	case s == http.StatusNotImplemented, s == http.StatusHTTPVersionNotSupported:
		return true
	case s == 0:
		return e.kind == ErrContent
	default:
		return s < 500
	}
}

// lost marks an error that ends only the session.
func (u *uploader) lost(err error) error {
	var e *Error
	if errors.As(err, &e) {
		switch {
		case !e.endsSession():
		case e.Status == http.StatusNotFound, e.Status == http.StatusRequestedRangeNotSatisfiable:
			e.kind, e.again = ErrUnreachable, true
			e.cause = fmt.Errorf("the upload session broke off (%s)", e.answer())
		default:
			e.again = true // bytes were lost or duplicated on the way
		}
	}
	return err
}

// endsSession reports whether a refusal may concern only the session.
func (e *Error) endsSession() bool {
	return e.Status == http.StatusNotFound || e.Status == http.StatusRequestedRangeNotSatisfiable ||
		e.Code == "DIGEST_INVALID" || e.Status == 0 && e.kind == ErrContent
}
