package registry

import (
	"errors"
	"fmt"
	"net/http"
)

// judge decides what a refusal of n bytes means. It marks one that another
// way may get around as odd, and one that costs no more than the session as
// temporary.
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
		if e.kind != nil { // it is not the content, nor what is asked for, that is wrong
			e.kind = ErrUnreachable
		}
	default:
		return u.lost(err)
	}
	return err
}

// unsure reports whether a refusal of n bytes may be one of the way, or of
// so many bytes in it. Some registries take small blobs in a way in which
// they refuse large ones, and pieces of which they do not make a blob.
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
	// A session may break off. A second one that does is the way's fault.
	u.refusals++
	return u.refusals > 1 || !e.endsSession()
}

// refusal reports whether a registry that answers so may do better when it
// is asked in another way.
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

// lost marks an error that ends the session, and no more than that.
func (u *uploader) lost(err error) error {
	var e *Error
	if errors.As(err, &e) {
		switch {
		case !e.endsSession():
		case e.Status == http.StatusNotFound, e.Status == http.StatusRequestedRangeNotSatisfiable:
			e.kind, e.again = ErrUnreachable, true
			e.cause = fmt.Errorf("the upload session broke off (%s)", e.answer())
		default:
			e.again = true // bytes were lost or doubled on the way
		}
	}
	return err
}

// endsSession reports whether a refusal may be about the session alone.
func (e *Error) endsSession() bool {
	return e.Status == http.StatusNotFound || e.Status == http.StatusRequestedRangeNotSatisfiable ||
		e.Code == "DIGEST_INVALID" || e.Status == 0 && e.kind == ErrContent
}
