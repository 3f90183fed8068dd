package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// errNoToken means that the token endpoint answered without a token, so that
// the request is to be sent without one.
var errNoToken = errors.New("the token endpoint gives no token")

// attempt is the authentication state of one request.
type attempt struct {
	r       *Registry
	q       request
	authz   authorization
	without bool // the request was sent again without a token
	probed  bool // the API's root was asked for its challenges
}

// again reports whether the request is to be sent once more, with a.authz.
// If so, or on error, it has closed resp.
func (a *attempt) again(ctx context.Context, resp *http.Response) (bool, error) {
	if redirected(resp) || a.q.stream != nil {
		return false, nil
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return a.unauthorized(ctx, resp)
	case http.StatusForbidden, http.StatusNotFound:
		return a.hidden(ctx, resp)
	}
	if a.authz.unasked {
		a.r.auth.keep(a.q.access, a.authz.header)
	}
	return false, nil
}

// unauthorized handles a 401.
func (a *attempt) unauthorized(ctx context.Context, resp *http.Response) (bool, error) {
	challenges := parseChallenges(resp.Header.Values("WWW-Authenticate"))
	body := drain(resp)
	var err error
	if len(challenges) > 0 {
		err = a.answer(ctx, challenges)
	} else {
		err = a.unchallenged(ctx, moved(resp))
	}
	if err != nil {
		return false, a.r.refused(a.q.target, err, resp, body)
	}
	return true, nil
}

// answer sets the Authorization that the challenges ask for.
func (a *attempt) answer(ctx context.Context, challenges []challenge) error {
	header, err := a.r.auth.answer(ctx, challenges, a.q.access, a.authz.header)
	if errors.Is(err, errNoToken) {
		if a.without {
			return ErrDenied
		}
		a.without = true
		a.authz = authorization{}
		return nil
	}
	if err == nil {
		a.authz = authorization{header: header}
	}
	return err
}

// unchallenged sets an Authorization for a 401 without a challenge: one for
// the registry's earlier challenge, for its root's, or the stored
// credentials, once. Those are sent only to the registry's own host, never
// after a redirect, and only over TLS or within this machine.
func (a *attempt) unchallenged(ctx context.Context, moved bool) error {
	auth := a.r.auth
	if c, ok := auth.askedBefore(a.q.access); ok {
		return a.answer(ctx, []challenge{c})
	}
	if a.probed || a.authz.header != "" {
		return ErrDenied
	}
	a.probed = true
	cfg, err := auth.credentials(ctx, a.q.access)
	if err != nil {
		return err
	}
	if cfg == (authn.AuthConfig{}) {
		return ErrDenied
	}
	if all := a.r.rootAsks(ctx); len(all) > 0 {
		return a.answer(ctx, all)
	}
	base := &a.r.base
	if moved || base.Scheme != "https" && !isLoopback(base.Host) {
		return ErrDenied
	}
	header := basicHeader(cfg)
	if cfg.RegistryToken != "" {
		header = "Bearer " + cfg.RegistryToken
	}
	if header == "" {
		return ErrDenied
	}
	a.authz = authorization{header: header, unasked: true}
	return nil
}

// hidden handles a 403 or 404 that may hide content from anonymous clients:
// if there are credentials and the API's root asks for some. Uploads are not
// affected, because they are challenged when they begin.
func (a *attempt) hidden(ctx context.Context, resp *http.Response) (bool, error) {
	if a.probed || a.authz.header != "" || moved(resp) || resp.StatusCode == http.StatusNotFound && a.q.access.push {
		return false, nil
	}
	a.probed = true
	hold(resp)
	auth, name := a.r.auth, a.q.access.name
	if a.r.rootIsOpen() || auth.isUnknown(name, time.Now()) {
		return false, nil
	}
	if cfg, err := auth.credentials(ctx, a.q.access); err != nil || cfg == (authn.AuthConfig{}) {
		auth.staysUnknown(name, time.Now())
		return false, nil
	}
	challenges := a.r.rootAsks(ctx)
	if len(challenges) == 0 {
		auth.unused()
		return false, nil
	}
	err := a.answer(ctx, challenges)
	if err != nil && !errors.Is(err, ErrDenied) {
		resp.Body.Close()
		return false, a.q.broken(err)
	}
	if err != nil || a.authz.header == "" {
		auth.staysUnknown(name, time.Now())
		return false, nil
	}
	resp.Body.Close()
	return true, nil
}

// unknownFor is how long a 403 or 404 is believed after no credentials were
// found. The user may log in later; and a helper must not run for every blob
// that a mirror lacks.
const unknownFor = 30 * time.Second

func (a *authorizer) isUnknown(name string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.unknown[name])
}

func (a *authorizer) staysUnknown(name string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unknown[name] = now.Add(unknownFor)
}

// hold reads the rest of a small body into memory, so that its connection is
// free for another request.
func hold(resp *http.Response) {
	resp.Body = io.NopCloser(bytes.NewReader(drain(resp)))
}

// askedBefore returns the challenge that was answered last for acc.
func (a *authorizer) askedBefore(acc access) (challenge, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.asked[acc]
	return c, ok
}

// keep stores credentials that were accepted without a challenge.
func (a *authorizer) keep(acc access, header string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.basic[acc.name] = &token{header: header, unasked: true}
}

// rootIsOpen reports whether the API's root is known to need no
// authentication.
func (r *Registry) rootIsOpen() bool {
	r.auth.mu.Lock()
	defer r.auth.mu.Unlock()
	return r.auth.api != nil && len(*r.auth.api) == 0
}

// rootAsks returns the challenges of the API's root. It sends one request in
// all; an answer that shows nothing about authentication does not count.
func (r *Registry) rootAsks(ctx context.Context) []challenge {
	a := r.auth
	a.mu.Lock()
	known := a.api
	a.mu.Unlock()
	if known != nil {
		return *known
	}
	q := request{target: r.target("look for", "registry", ""), method: http.MethodGet, url: r.at("")}
	resp, err := r.follow(ctx, q, authorization{})
	if err != nil {
		return nil
	}
	drain(resp)
	var all []challenge
	switch {
	case redirected(resp):
		return nil // challenges of another host
	case resp.StatusCode == http.StatusUnauthorized:
		all = parseChallenges(resp.Header.Values("WWW-Authenticate"))
	case resp.StatusCode != http.StatusOK:
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.api = &all
	return all
}
