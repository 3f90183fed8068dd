package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cocoonstack/epochfs/registry/credentials"
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
	unasked bool      // nobody asked for it, and it works
}

func (t *token) fresh() bool {
	return t != nil && (t.expires.IsZero() || time.Now().Before(t.expires))
}

// authorizer keeps what a registry asked for and what it was given.
// Nothing of it is ever written to disk.
type authorizer struct {
	r        *Registry
	isEpoch  bool
	epoch    string         // the epoch server's token where r is that server, else ""
	keychain authn.Keychain // nil: store
	store    credentials.Store

	mu      sync.Mutex
	asked   map[access]challenge // the bearer challenge answered last
	tokens  map[access]*token
	basic   map[string]*token // by repository: credentials may be for one only
	flights map[errand]*flight
	unknown map[string]time.Time // repositories that no credentials helped with, and until when that is believed
	api     *[]challenge         // what the API's root asks for; nil: not known
	looked  bool                 // for stored credentials
	keyErr  error                // why some of them could not be read
	from    string               // where those that were found are kept, or ""
}

// errand is what a flight is for.
type errand struct {
	access
	basic bool // basic credentials, and no token
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
		basic:    map[string]*token{},
		unknown:  map[string]time.Time{},
		flights:  map[errand]*flight{},
		store:    credentials.Store{Pause: r.limits.first},
	}
	if isEpoch {
		a.epoch = o.EpochToken
	}
	return a
}

// authorization is the header that a request is sent with.
type authorization struct {
	header  string // "" is none
	unasked bool   // the registry did not ask for it: it goes to q.url only
}

// first is the Authorization to begin with: what was accepted before,
// renewed if it is too old; the epoch token; or none.
func (a *authorizer) first(ctx context.Context, acc access) authorization {
	a.mu.Lock()
	key := acc
	tok := a.tokens[key]
	if tok == nil && !acc.push {
		key.push = true // who may write may read
		tok = a.tokens[key]
	}
	asked, basic := a.asked[key], a.basic[acc.name]
	a.mu.Unlock()
	switch {
	case tok.fresh():
		return authorization{header: tok.header}
	case tok != nil:
		fresh, err := a.once(ctx, errand{access: key}, func(ctx context.Context) (*token, error) {
			return a.exchange(ctx, asked, key)
		})
		if err != nil {
			return authorization{} // the plain request tells
		}
		return authorization{header: fresh.header}
	case basic != nil:
		return authorization{basic.header, basic.unasked}
	case a.epoch != "":
		return authorization{header: "Bearer " + a.epoch}
	}
	return authorization{}
}

// answer finds an Authorization for challenges that a request with the
// header used got. The error is ErrDenied where there is none, errNoToken
// where the token endpoint wants none to be sent, or what kept the endpoint
// from answering.
func (a *authorizer) answer(ctx context.Context, all []challenge, acc access, used string) (string, error) {
	var last error = ErrDenied
	for _, c := range all {
		var tok *token
		var err error
		switch c.scheme {
		case "bearer":
			tok, err = a.bearer(ctx, c, acc, used)
		case "basic":
			tok, err = a.basicAuth(ctx, acc, used)
		default:
			continue
		}
		if err == nil {
			return tok.header, nil
		}
		if !errors.Is(last, errNoToken) {
			last = err
		}
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
	tok, err := a.once(ctx, errand{access: acc}, func(ctx context.Context) (*token, error) {
		return a.exchange(ctx, c, acc)
	})
	if err == nil && tok.header == used {
		return nil, ErrDenied
	}
	return tok, err
}

// basicAuth makes a header of the credentials, unless that was refused.
func (a *authorizer) basicAuth(ctx context.Context, acc access, used string) (*token, error) {
	who := errand{access: access{name: acc.name}, basic: true}
	tok, err := a.once(ctx, who, func(ctx context.Context) (*token, error) {
		cfg, err := a.credentials(ctx, acc)
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

// basicHeader is the header for a name and a password, or "". The name that
// stands beside an identity token has no password.
func basicHeader(cfg authn.AuthConfig) string {
	switch {
	case cfg.IdentityToken != "" && cfg.Password == "":
		return ""
	case cfg.Username != "" || cfg.Password != "":
		pair := cfg.Username + ":" + cfg.Password
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	}
	return ""
}

// once runs get, for all who want the same at the same time, and keeps its
// token. A caller that leaves does not end it for the others.
func (a *authorizer) once(ctx context.Context, e errand, get func(context.Context) (*token, error)) (*token, error) {
	const patience = 2 * time.Minute
	a.mu.Lock()
	f := a.flights[e]
	if f == nil {
		if a.r.ctx.Err() != nil {
			a.mu.Unlock()
			return nil, context.Canceled
		}
		f = &flight{done: make(chan struct{})}
		a.flights[e] = f
		a.r.owned.Add(1)
		go func() {
			defer a.r.owned.Done()
			ctx, cancel := context.WithTimeout(a.r.ctx, patience)
			defer cancel()
			f.token, f.err = get(ctx)
			a.land(e, f)
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
func (a *authorizer) land(e errand, f *flight) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.flights, e)
	switch {
	case f.err != nil:
	case e.basic:
		a.basic[e.name] = f.token
	default:
		a.tokens[e.access] = f.token
	}
	close(f.done)
}
