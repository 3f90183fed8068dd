package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	maxRedirects = 5
	maxTries     = 4               // of a small request
	maxSessions  = 8               // of an upload, each from its first byte
	maxQuickWait = 5 * time.Second // the caller decides on longer waits
)

// request is one request to the registry, before authentication and
// redirects.
type request struct {
	target
	method string
	url    *url.URL // on the registry's own host, or where it redirected the upload
	header http.Header
	body   []byte          // can be sent again
	closed *sync.WaitGroup // if not nil, waits until no connection reads body
	stream io.ReadCloser   // instead of body; can be sent once
	size   int64           // of stream
	access access          // the access it needs
	wait   time.Duration   // for the answer; 0 is limits.answer
	moves  bool            // follow a 307 or 308 for any method
}

// do sends a request, and again with a token if the registry asks for one.
// It returns any answer except a 401 that could be answered. Errors are
// *Error.
func (r *Registry) do(ctx context.Context, q request) (*http.Response, error) {
	foreign := !sameOrigin(q.url, &r.base) // credentials stay on the registry's host
	a := attempt{r: r, q: q}
	if foreign {
		ctx = context.WithValue(ctx, hopKey{}, true)
	} else {
		a.authz = r.auth.first(ctx, q.access)
	}
	for answers := 0; ; answers++ {
		resp, err := r.follow(ctx, q, a.authz)
		if err != nil {
			return nil, q.broken(err)
		}
		if foreign || answers == maxAnswers {
			return resp, nil
		}
		switch again, err := a.again(ctx, resp); {
		case err != nil:
			return nil, err
		case !again:
			return resp, nil
		}
	}
}

// maxAnswers is how often one request is sent again with another token. A
// token may be revoked before it is used, so one refusal is not final.
const maxAnswers = 3

// refused completes the error of a 401 that could not be answered.
func (r *Registry) refused(t target, err error, resp *http.Response, body []byte) error {
	var e *Error
	if errors.As(err, &e) || !errors.Is(err, ErrDenied) {
		return t.broken(err)
	}
	e = t.fail(ErrDenied, nil)
	e.Status, e.Code, e.Message = http.StatusUnauthorized, errorCode(body), message(resp, body)
	e.Hint, e.Helper = r.auth.hint(e.Status)
	return e
}

// hopKey marks redirected requests; its value is true if the redirect led to
// another host.
type hopKey struct{}

// redirected reports whether an answer came from another host than the
// request was sent to.
func redirected(resp *http.Response) bool {
	return resp.Request != nil && resp.Request.Context().Value(hopKey{}) == true
}

// moved reports whether an answer came after a redirect to any host.
func moved(resp *http.Response) bool {
	return resp.Request != nil && resp.Request.Context().Value(hopKey{}) != nil
}

// follow sends q and follows redirects. authz goes only to the host of
// q.url, or only to q.url if the registry did not ask for it.
func (r *Registry) follow(ctx context.Context, q request, authz authorization) (*http.Response, error) {
	wait := q.wait
	if wait == 0 {
		wait = r.limits.answer
	}
	u := q.url
	for hop := 0; ; hop++ {
		own := sameOrigin(u, q.url)
		reqCtx := ctx
		if hop > 0 {
			reqCtx = context.WithValue(ctx, hopKey{}, !own)
		}
		req, err := r.newRequest(reqCtx, q, u)
		if err != nil {
			return nil, err
		}
		if sameOrigin(u, &r.base) { // a token endpoint may be on another host
			for k, v := range r.header {
				req.Header[k] = v
			}
		}
		if own && authz.header != "" && (hop == 0 || !authz.unasked) {
			req.Header.Set("Authorization", authz.header)
		}
		resp, err := r.send(req, wait)
		if err != nil {
			if errors.Is(err, errPlainHTTP) && req.Body != nil {
				req.Body.Close() // not yet seen by anything else
			}
			return nil, err
		}
		if !q.follows(resp.StatusCode) {
			return resp, nil
		}
		location := resp.Header.Get("Location")
		drain(resp)
		if hop == maxRedirects {
			return nil, q.fail(ErrUnreachable, fmt.Errorf("more than %d redirects", maxRedirects))
		}
		if u, err = r.nextHop(u, location); err != nil {
			return nil, q.fail(ErrDenied, err)
		}
	}
}

func (r *Registry) newRequest(ctx context.Context, q request, u *url.URL) (*http.Request, error) {
	req := (&http.Request{
		Method:     q.method,
		URL:        u,
		Host:       u.Host,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     http.Header{},
	}).WithContext(ctx)
	for k, v := range q.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", r.agent)
	if q.method == http.MethodGet || q.method == http.MethodHead {
		req.Header.Set("Accept-Encoding", "identity") // digests are of the bytes as stored
	}
	switch {
	case q.stream != nil:
		req.Body = q.stream
		req.ContentLength = q.size
		req.Header.Set("Expect", "100-continue")
	case len(q.body) > 0:
		req.GetBody = func() (io.ReadCloser, error) {
			if q.closed != nil {
				q.closed.Add(1)
				return &lent{Reader: bytes.NewReader(q.body), back: sync.OnceFunc(q.closed.Done)}, nil
			}
			return io.NopCloser(bytes.NewReader(q.body)), nil
		}
		req.Body, _ = req.GetBody()
		req.ContentLength = int64(len(q.body))
	case q.method != http.MethodGet && q.method != http.MethodHead:
		req.Body = http.NoBody // announces a length of 0
	}
	return req, nil
}

// lent is a request's body whose buffer is reused after its Close. The
// transport closes each body, but maybe after the answer has arrived.
type lent struct {
	*bytes.Reader
	back func()
}

func (l *lent) Close() error {
	l.back()
	return nil
}

// follows reports whether a redirect with this status is followed: any for
// GET and HEAD, else one that keeps the method of a request that can be sent
// again.
func (q *request) follows(status int) bool {
	read := q.method == http.MethodGet || q.method == http.MethodHead
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		return read
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return read || q.moves && q.stream == nil
	}
	return false
}

// nextHop resolves a redirect. Its errors do not repeat the location,
// because a signed URL is a secret.
func (r *Registry) nextHop(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	switch {
	case err != nil || location == "":
		return nil, errors.New("it redirects to an invalid URL")
	case to.Scheme != "https" && to.Scheme != "http" || to.Host == "" || to.User != nil:
		return nil, errors.New("it redirects to an unusable URL")
	case from.Scheme == "https" && to.Scheme != "https":
		return nil, errors.New("it redirects from https to http")
	case isLinkLocal(to) && !sameOrigin(from, to):
		return nil, errors.New("it redirects to a link-local address")
	}
	to.Fragment = ""
	return to, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && withPort(a.Scheme, a.Host) == withPort(b.Scheme, b.Host)
}

// isLinkLocal reports whether u has a link-local address, such as a cloud's
// metadata service. No registry may redirect there.
func isLinkLocal(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname()) // with or without a zone
	ip = ip.Unmap()
	return err == nil && (ip.IsLinkLocalUnicast() || ip.IsUnspecified())
}

// quick is a backoff for small requests: short waits with jitter, or the
// wait that the registry asks for if it is short.
type quick struct {
	*backoff.ExponentialBackOff
	asked time.Duration
	most  time.Duration // longest wait the registry may ask for
}

// NextBackOff returns the next wait, or backoff.Stop.
func (q *quick) NextBackOff() time.Duration {
	if q.asked > q.most {
		return backoff.Stop
	}
	return max(q.asked, q.ExponentialBackOff.NextBackOff())
}

// retry calls try until it succeeds or fails for good, a few times at most.
// Only a temporary *Error is tried again.
func retry[T any](ctx context.Context, r *Registry, t target, try func() (T, error)) (T, error) {
	return retryTimes(ctx, r, t, r.tries, try)
}

// retryErr is retryTimes for a function without a result.
func retryErr(ctx context.Context, r *Registry, t target, tries uint, try func() error) error {
	_, err := retryTimes(ctx, r, t, tries, func() (struct{}, error) { return struct{}{}, try() })
	return err
}

// retryTimes is retry with the given number of tries.
func retryTimes[T any](ctx context.Context, r *Registry, t target, tries uint, try func() (T, error)) (T, error) {
	b := &quick{ExponentialBackOff: backoff.NewExponentialBackOff(), most: max(maxQuickWait, r.patience)}
	b.InitialInterval = r.limits.first
	b.Multiplier = 2
	value, err := backoff.Retry(ctx, func() (T, error) {
		v, err := try()
		var e *Error
		if err != nil && (!errors.As(err, &e) || !e.Temporary() || ctx.Err() != nil) {
			return v, backoff.Permanent(err)
		}
		if e == nil {
			return v, err
		}
		b.asked = e.RetryAfter()
		if !r.comesBack(ctx, err) {
			return v, backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(b), backoff.WithMaxTries(tries), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, wait time.Duration) {
			r.stats.retries.Add(1)
			r.reasons.count(err)
			r.log.Debug("registry: trying again", "error", err, "wait", wait)
		}))
	if err != nil {
		var forGood *backoff.PermanentError
		if errors.As(err, &forGood) {
			err = forGood.Err
		}
		if ctx.Err() != nil {
			err = t.broken(err)
		}
		return value, err
	}
	return value, nil
}
