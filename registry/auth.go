package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/go-containerregistry/pkg/authn"
)

// access is what a request needs to be allowed.
type access struct {
	name string // repository
	push bool   // to write to it
	from string // another repository to read, for mounts; or ""
}

// scopes are the words of the token protocol for it.
func (a access) scopes() []string {
	actions := "pull"
	if a.push {
		actions = "pull,push"
	}
	all := []string{"repository:" + a.name + ":" + actions}
	if a.from != "" {
		all = append(all, "repository:"+a.from+":pull")
	}
	return all
}

// token is an Authorization header that a registry accepted, or will.
type token struct {
	header  string
	expires time.Time // zero: it does not say
}

func (t *token) fresh() bool {
	return t != nil && (t.expires.IsZero() || time.Now().Before(t.expires))
}

// authorizer keeps what a registry asked for and what it was given.
// Nothing of it is ever written to disk.
type authorizer struct {
	r        *Registry
	isEpoch  bool
	epoch    string // the epoch server's token where r is that server, else ""
	keychain authn.Keychain

	mu      sync.Mutex
	asked   map[access]challenge // the bearer challenge answered last
	tokens  map[access]*token
	basic   *token // for every repository
	flights map[access]*flight
	keyErr  error // why docker's credentials could not be read
	keyed   bool  // there were some
}

// flight is one exchange that several requests wait for.
type flight struct {
	done  chan struct{} // closed once the rest is final
	token *token
	err   error
}

func newAuthorizer(r *Registry, o Options, isEpoch bool) *authorizer {
	a := &authorizer{
		r:        r,
		isEpoch:  isEpoch,
		keychain: o.Keychain,
		asked:    map[access]challenge{},
		tokens:   map[access]*token{},
		flights:  map[access]*flight{},
	}
	if isEpoch {
		a.epoch = o.EpochToken
	}
	if a.keychain == nil {
		a.keychain = authn.DefaultKeychain
	}
	return a
}

// header is the Authorization to begin with: what was accepted before,
// renewed if it is too old; the epoch token; or none.
func (a *authorizer) header(ctx context.Context, acc access) string {
	a.mu.Lock()
	key := acc
	tok := a.tokens[key]
	if tok == nil && !acc.push {
		key.push = true // who may write may read
		tok = a.tokens[key]
	}
	asked, basic := a.asked[key], a.basic
	a.mu.Unlock()
	switch {
	case tok.fresh():
		return tok.header
	case tok != nil:
		fresh, err := a.once(ctx, key, func(ctx context.Context) (*token, error) {
			return a.exchange(ctx, asked, key)
		})
		if err != nil {
			return "" // the plain request tells
		}
		return fresh.header
	case basic != nil:
		return basic.header
	case a.epoch != "":
		return "Bearer " + a.epoch
	}
	return ""
}

// answer finds an Authorization for challenges that a request with the
// header used got. The error is ErrDenied where there is none, or what
// kept the token endpoint from answering.
func (a *authorizer) answer(ctx context.Context, all []challenge, acc access, used string) (string, error) {
	var last error = ErrDenied
	for _, c := range all {
		var tok *token
		var err error
		switch c.scheme {
		case "bearer":
			tok, err = a.bearer(ctx, c, acc, used)
		case "basic":
			tok, err = a.basicAuth(ctx, used)
		default:
			continue
		}
		if err == nil {
			return tok.header, nil
		}
		last = err
	}
	return "", last
}

// bearer gets a token for acc that is not the one that was refused.
func (a *authorizer) bearer(ctx context.Context, c challenge, acc access, used string) (*token, error) {
	a.mu.Lock()
	tok := a.tokens[acc]
	a.asked[acc] = c
	a.mu.Unlock()
	if tok.fresh() && tok.header != used {
		return tok, nil // another request got it in the meantime
	}
	tok, err := a.once(ctx, acc, func(ctx context.Context) (*token, error) {
		return a.exchange(ctx, c, acc)
	})
	if err == nil && tok.header == used {
		return nil, ErrDenied
	}
	return tok, err
}

// basicAuth makes a header of the credentials, unless that was refused.
func (a *authorizer) basicAuth(ctx context.Context, used string) (*token, error) {
	tok, err := a.once(ctx, access{}, func(ctx context.Context) (*token, error) {
		cfg, err := a.credentials(ctx, access{})
		if err != nil {
			return nil, err
		}
		header := basicHeader(cfg)
		if header == "" {
			return nil, ErrDenied
		}
		return &token{header: header}, nil
	})
	if err == nil && tok.header == used {
		return nil, ErrDenied
	}
	return tok, err
}

// basicHeader is the header for a name and a password, or "".
func basicHeader(cfg authn.AuthConfig) string {
	switch {
	case cfg.Username != "" || cfg.Password != "":
		pair := cfg.Username + ":" + cfg.Password
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	}
	return ""
}

// once runs get, for all who want acc at the same time, and keeps its
// token. A caller that leaves does not end it for the others. The zero
// access stands for basic credentials.
func (a *authorizer) once(ctx context.Context, acc access, get func(context.Context) (*token, error)) (*token, error) {
	const patience = 2 * time.Minute
	a.mu.Lock()
	f := a.flights[acc]
	if f == nil {
		if a.r.ctx.Err() != nil {
			a.mu.Unlock()
			return nil, context.Canceled
		}
		f = &flight{done: make(chan struct{})}
		a.flights[acc] = f
		a.r.owned.Add(1)
		go func() {
			defer a.r.owned.Done()
			ctx, cancel := context.WithTimeout(a.r.ctx, patience)
			defer cancel()
			f.token, f.err = get(ctx)
			a.land(acc, f)
		}()
	}
	a.mu.Unlock()
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// land keeps what a flight brought.
func (a *authorizer) land(acc access, f *flight) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.flights, acc)
	if f.err == nil {
		if acc == (access{}) {
			a.basic = f.token
		} else {
			a.tokens[acc] = f.token
		}
	}
	close(f.done)
}

// resource is what the keychain is asked for.
type resource struct{ host, name string }

func (r resource) String() string      { return r.host + "/" + r.name }
func (r resource) RegistryStr() string { return r.host }

// credentials are those of the registry: the epoch token for the epoch
// server, else what the keychain has; empty where there are none. They
// are asked for anew each time: somebody may have logged in.
func (a *authorizer) credentials(ctx context.Context, acc access) (authn.AuthConfig, error) {
	if a.epoch != "" {
		return authn.AuthConfig{Username: "epoch", Password: a.epoch}, nil
	}
	type found struct {
		cfg *authn.AuthConfig
		err error
	}
	ch := make(chan found, 1)
	// A credential helper knows no context. One that hangs must not keep
	// the program from ending, so nobody waits for this goroutine.
	go func() {
		cfg, err := a.askKeychain(ctx, acc)
		ch <- found{cfg, err}
	}()
	select {
	case f := <-ch:
		a.mu.Lock()
		a.keyErr = f.err
		a.keyed = f.err == nil && f.cfg != nil && *f.cfg != authn.AuthConfig{}
		a.mu.Unlock()
		if f.err != nil || f.cfg == nil {
			return authn.AuthConfig{}, nil // as docker does: on without them
		}
		return *f.cfg, nil
	case <-ctx.Done():
		return authn.AuthConfig{}, fmt.Errorf("docker's credential helper does not answer: %w", ctx.Err())
	}
}

// keychainTries is how often docker's credentials are asked for before that
// counts as a failure: a helper may have to ask somebody itself.
const keychainTries = 4

// askKeychain asks it, and again after a pause where it fails.
func (a *authorizer) askKeychain(ctx context.Context, acc access) (*authn.AuthConfig, error) {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = a.r.limits.first
	return backoff.Retry(ctx, func() (*authn.AuthConfig, error) {
		auth, err := authn.Resolve(ctx, a.keychain, resource{a.r.base.Host, acc.name})
		if err != nil {
			return nil, err
		}
		return authn.Authorization(ctx, auth)
	}, backoff.WithBackOff(b), backoff.WithMaxTries(keychainTries))
}

// missingHelper finds a helper's name in what running it failed with.
var missingHelper = regexp.MustCompile(`exec: "(docker-credential-[\w.-]+)": executable file not found`)

// hint says what somebody whose credentials are missing can do, and
// which helper is missing.
func (a *authorizer) hint() (text, helper string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.epoch != "":
		return "EPOCH_REGISTRY_TOKEN was not accepted", ""
	case a.isEpoch:
		return "EPOCH_REGISTRY_TOKEN, or `docker login " + a.r.host + "`, gives it credentials", ""
	case a.keyErr != nil:
		// Its words may have what the helper printed.
		if m := missingHelper.FindStringSubmatch(a.keyErr.Error()); m != nil {
			return "docker's config names the credential helper " + m[1] + ", which is not in the PATH", m[1]
		}
		return "docker's config or its credential helper cannot be read", ""
	case a.keyed:
		return "the credentials of docker's config were refused, `docker login " + a.r.host + "` stores others", ""
	}
	return "`docker login " + a.r.host + "` stores credentials", ""
}
