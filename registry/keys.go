package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cocoonstack/epochfs/registry/credentials"
)

// resource is a repository, as the keychain knows it.
type resource struct{ host, name string }

func (r resource) String() string      { return r.host + "/" + r.name }
func (r resource) RegistryStr() string { return r.host }

// credentials returns the credentials for the registry: the epoch token for
// the epoch server, else the stored ones, or empty ones. It looks them up
// again each time, because the user may have logged in.
func (a *authorizer) credentials(ctx context.Context, acc access) (authn.AuthConfig, error) {
	if a.epoch != "" {
		return authn.AuthConfig{Username: "epoch", Password: a.epoch}, nil
	}
	type found struct {
		cfg  authn.AuthConfig
		from string
		err  error
	}
	ch := make(chan found, 1)
	// A keychain may ignore the context, and a disk may hang. Neither may
	// keep the program from exiting, so nothing waits for this goroutine.
	go func() {
		var f found
		if a.keychain != nil {
			f.cfg, f.err = a.askKeychain(ctx, acc)
			if f.cfg != (authn.AuthConfig{}) {
				f.from = "the keychain"
			}
		} else {
			f.cfg, f.from, f.err = a.lookUp(ctx, acc)
		}
		ch <- f
	}()
	select {
	case f := <-ch:
		a.mu.Lock()
		a.looked, a.keyErr, a.from = true, f.err, f.from
		a.mu.Unlock()
		return f.cfg, nil // as docker does: go on without what cannot be read
	case <-ctx.Done():
		return authn.AuthConfig{}, fmt.Errorf("the credential helper does not answer: %w", ctx.Err())
	}
}

// lookUp searches docker's and podman's files and helpers, and then, for a
// registry of Google's, Google's own credentials. The error is what could not be
// read; without Google's credentials there is none, because most machines have
// no such thing.
func (a *authorizer) lookUp(ctx context.Context, acc access) (authn.AuthConfig, string, error) {
	c, err := a.store.Lookup(ctx, a.r.base.Host, acc.name)
	if c.Empty() && a.r.base.Scheme == "https" && isGoogle(a.r.base.Host) {
		if cfg, noKeys := shared.get(); noKeys == nil {
			return cfg, googleSource, err
		}
	}
	return authn.AuthConfig{
		Username:      c.Username,
		Password:      c.Password,
		IdentityToken: c.IdentityToken,
		RegistryToken: c.RegistryToken,
	}, c.Source, err
}

// ofGoogle reports whether the last used credentials are Google's.
func (a *authorizer) ofGoogle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.from == googleSource
}

// keychainTries is how often a failing keychain is asked: the service behind
// it may be temporarily away.
const keychainTries = 4

// askKeychain asks the keychain, and again after a pause if it fails.
func (a *authorizer) askKeychain(ctx context.Context, acc access) (authn.AuthConfig, error) {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = a.r.limits.first
	cfg, err := backoff.Retry(ctx, func() (*authn.AuthConfig, error) {
		auth, err := authn.Resolve(ctx, a.keychain, resource{a.r.base.Host, acc.name})
		if err != nil {
			return nil, err
		}
		return authn.Authorization(ctx, auth)
	}, backoff.WithBackOff(b), backoff.WithMaxTries(keychainTries))
	if err != nil {
		// Its message may contain the output of a helper.
		return authn.AuthConfig{}, errors.New("docker's config or its credential helper cannot be read")
	}
	if cfg == nil {
		return authn.AuthConfig{}, nil
	}
	if cfg.Username == tokenUser { // docker stores an identity token so
		cfg = &authn.AuthConfig{IdentityToken: cmp.Or(cfg.IdentityToken, cfg.Password), RegistryToken: cfg.RegistryToken}
	}
	return *cfg, nil
}

// tokenUser is the user name under which docker's helpers store identity
// tokens.
const tokenUser = "<token>"

// hint returns what the user can do about credentials that are missing or
// were refused with this status, and the name of a missing helper.
func (a *authorizer) hint(status int) (text, helper string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	login := "`docker login " + a.r.host + "`"
	var read string // what could not be read
	if a.keyErr != nil {
		read = "; " + a.keyErr.Error()
		helper = credentials.MissingHelper(a.keyErr)
	}
	switch {
	case a.epoch != "":
		return "EPOCH_REGISTRY_TOKEN was not accepted", ""
	case a.from != "" && status == http.StatusForbidden:
		return "the credentials of " + a.from + " do not allow it" + read, helper
	case a.from != "":
		return "the credentials of " + a.from + " were refused; run " + login + " to store others" + read, helper
	case a.isEpoch:
		return "set EPOCH_REGISTRY_TOKEN, or run " + login + read, helper
	case a.keyErr != nil:
		return a.keyErr.Error(), helper
	}
	return "run " + login + " to store credentials", ""
}

// unused records that the credentials were not sent, so that no hint blames
// them.
func (a *authorizer) unused() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.looked, a.from = false, ""
}

// asksForMore reports whether credentials may be the reason of a refusal,
// because the registry was seen to ask for some.
func (a *authorizer) asksForMore() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.looked || a.epoch != "" || a.isEpoch
}

// credentialsFrom is CredentialsFrom of the target's registry.
func (t target) credentialsFrom() (string, error) {
	if t.r == nil {
		return "", nil
	}
	return t.r.CredentialsFrom()
}

// CredentialsFrom returns where the last used credentials are stored, such
// as a file name, or "" if none were used. The error is what could not be
// read during the lookup.
func (r *Registry) CredentialsFrom() (string, error) {
	a := r.auth
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.epoch != "" {
		return "EPOCH_REGISTRY_TOKEN", nil
	}
	return a.from, a.keyErr
}
