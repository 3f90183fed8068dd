package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// proxyError is a proxy's refusal to connect to a host.
type proxyError struct {
	proxy    *url.URL
	status   int
	variable string // environment variable that names the proxy
}

// Error returns the proxy's name, without its password.
func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy %s answers CONNECT with %d %s", e.proxy.Host, e.status, http.StatusText(e.status))
}

// proxyAnswered turns a refused CONNECT into an error.
func proxyAnswered(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyError{proxy, resp.StatusCode, "HTTPS_PROXY"}
}

// proxyHint returns what the user can do about a refusing proxy, or "".
func proxyHint(err error) string {
	var p *proxyError
	switch {
	case !errors.As(err, &p):
		return ""
	case p.status != http.StatusProxyAuthRequired:
		return p.variable + " names this proxy, NO_PROXY the hosts to reach without it"
	case p.proxy.User != nil:
		return "the name and password in " + p.variable + " were not accepted by the proxy"
	}
	return p.variable + "=" + p.proxy.Scheme + "://NAME:PASSWORD@" + p.proxy.Host + " gives the proxy credentials"
}

// proxyRefused completes the error of a plain request that was answered with
// 407. The error is temporary, because the service behind the proxy's
// authentication may be away for a moment.
func (t target) proxyRefused(e *Error, resp *http.Response) {
	e.kind, e.again = ErrUnreachable, true
	e.Hint = "a proxy on the way wants credentials"
	if t.r == nil || t.r.inner.Proxy == nil || resp.Request == nil {
		return
	}
	if proxy, err := t.r.inner.Proxy(resp.Request); err == nil && proxy != nil {
		e.Hint = proxyHint(&proxyError{proxy, resp.StatusCode, "HTTP_PROXY"})
	}
}
