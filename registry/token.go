package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	maxToken        = 64 << 10         // bytes of a token endpoint's answer
	defaultLifetime = 60 * time.Second // without expires_in, by the token protocol
	maxLifetime     = 24 * time.Hour
)

// exchange gets a token from the endpoint in a challenge, with the
// registry's credentials if there are any.
func (a *authorizer) exchange(ctx context.Context, c challenge, acc access) (*token, error) {
	t := a.r.target("get a token for", acc.name, "")
	realm, err := a.realm(c.params["realm"])
	if err != nil {
		return nil, t.fail(ErrDenied, err)
	}
	cfg, err := a.credentials(ctx, acc)
	if err != nil {
		return nil, t.broken(err)
	}
	if a.epoch != "" && !sameOrigin(realm, &a.r.base) {
		cfg = authn.AuthConfig{} // the epoch token is for the epoch server only
	}
	if a.ofGoogle() && !sameOrigin(realm, &a.r.base) && (realm.Scheme != "https" || !isGoogle(realm.Host)) {
		cfg = authn.AuthConfig{}
	}
	if cfg.RegistryToken != "" {
		return &token{header: "Bearer " + cfg.RegistryToken}, nil
	}
	t.host = realm.Host
	q, authz := tokenRequest(t, realm, c, acc, cfg)
	return retry(ctx, a.r, t, func() (*token, error) {
		resp, err := a.r.follow(ctx, q, authorization{header: authz})
		if err != nil {
			return nil, t.broken(err)
		}
		if resp.StatusCode != http.StatusOK {
			return nil, a.endpointRefused(t, resp)
		}
		raw, err := a.r.readSmall(resp, maxToken, t)
		if err != nil {
			return nil, err
		}
		return parseToken(raw, t)
	})
}

// realm validates the URL of a token endpoint. The credentials go there, as
// with docker; so it must be https, or plain HTTP if the registry itself
// uses plain HTTP and the host is allowed. Its answer goes to the registry,
// so it must not be an address that only this machine can reach.
func (a *authorizer) realm(text string) (*url.URL, error) {
	base := &a.r.base
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("the registry names no usable token endpoint")
	}
	if withPort(base.Scheme, u.Host) == withPort(base.Scheme, base.Host) {
		u.Scheme = base.Scheme // a registry behind a proxy does not know its own scheme
	}
	own := sameOrigin(u, base)
	switch {
	case own || u.Scheme == "https" && !isLinkLocal(u):
		return u, nil
	case u.Scheme != "http" || base.Scheme != "http" || isLinkLocal(u):
		return nil, errors.New("the registry names a token endpoint that must not be used")
	case isLoopback(u.Host) && isLoopback(base.Host):
		return u, nil
	case a.r.plain(withPort("http", u.Host)) && !isLoopback(u.Host):
		return u, nil
	}
	return nil, errors.New("the registry names a token endpoint that must not be used over plain HTTP")
}

// tokenRequest returns a GET, with name and password if there are any, or
// the POST of OAuth 2 for an identity token.
func tokenRequest(t target, realm *url.URL, c challenge, acc access, cfg authn.AuthConfig) (request, string) {
	scopes := wanted(acc, c.params["scope"])
	service := c.params["service"]
	if cfg.IdentityToken != "" {
		form := url.Values{
			"grant_type":    {"refresh_token"},
			"refresh_token": {cfg.IdentityToken},
			"client_id":     {"epochfs"},
			"scope":         {strings.Join(scopes, " ")},
		}
		if service != "" {
			form.Set("service", service)
		}
		return request{
			target: t,
			method: http.MethodPost,
			url:    realm,
			header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
			body:   []byte(form.Encode()),
		}, ""
	}
	u := *realm
	v := u.Query()
	v["scope"] = scopes
	if service != "" {
		v.Set("service", service)
	}
	if cfg.Username != "" {
		v.Set("account", cfg.Username)
	}
	u.RawQuery = v.Encode()
	return request{target: t, method: http.MethodGet, url: &u}, basicHeader(cfg)
}

// wanted returns the scopes to request: ours, preceded by the registry's if
// ours do not include it. Some endpoints use only the first.
func wanted(acc access, named string) []string {
	ours := acc.scopes()
	for _, s := range ours {
		if named == s || named+",push" == s {
			return ours
		}
	}
	if named == "" || len(named) > 1024 {
		return ours
	}
	return append([]string{named}, ours...)
}

// endpointRefused returns the error of a token endpoint's answer.
func (a *authorizer) endpointRefused(t target, resp *http.Response) error {
	err := t.status(resp)
	var e *Error
	if errors.As(err, &e) && !e.Temporary() {
		e.kind = ErrDenied
		e.Hint, e.Helper = a.hint(e.Status)
	}
	return err
}

// parseToken parses a token endpoint's answer. It returns errNoToken for a
// valid answer without a token.
func parseToken(raw []byte, t target) (*token, error) {
	var doc struct {
		Token       any `json:"token"`
		AccessToken any `json:"access_token"`
		ExpiresIn   any `json:"expires_in"`
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, errNoToken
	}
	// The decoder's errors may quote a secret, so they are dropped.
	if json.Unmarshal(raw, &doc) != nil {
		return nil, t.fail(ErrDenied, errors.New("the token endpoint's answer is not a JSON object"))
	}
	for _, v := range []any{doc.Token, doc.AccessToken} {
		switch text, ok := v.(string); {
		case v == nil || ok && text == "":
		case !ok || strings.Trim(text, printable) != "":
			return nil, t.fail(ErrDenied, errors.New("the token endpoint's answer contains an invalid token"))
		default:
			// issued_at is ignored: clocks differ.
			return &token{header: "Bearer " + text, expires: time.Now().Add(lifetime(doc.ExpiresIn))}, nil
		}
	}
	return nil, errNoToken
}

// lifetime parses expires_in, in seconds: a number, or a string with one. It
// subtracts the last tenth, and at least a few seconds.
func lifetime(v any) time.Duration {
	seconds, _ := v.(float64)
	if text, ok := v.(string); ok {
		seconds, _ = strconv.ParseFloat(strings.TrimSpace(text), 64)
	}
	life := defaultLifetime
	if seconds > 0 { // false for NaN
		life = time.Duration(min(seconds, maxLifetime.Seconds()) * float64(time.Second))
	}
	return life - max(life/10, min(10*time.Second, life/2))
}

// printable are the bytes of a valid bearer token, and a few more.
const printable = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
