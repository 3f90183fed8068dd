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

// access is what a request must be allowed to do.
type access struct {
	name string // repository
	push bool   // to write to it
	from string // another repository to read, for mounts; or ""
}

// scopes returns the access in the words of the token protocol.
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

// token is an Authorization header that a registry accepted, or is expected
// to accept.
type token struct {
	header  string
	expires time.Time // zero if the token endpoint gave no lifetime
	unasked bool      // sent without a challenge, and accepted
}

func (t *token) fresh() bool {
	return t != nil && (t.expires.IsZero() || time.Now().Before(t.expires))
}

// authorizer keeps the challenges of a registry and the tokens that answered
// them, in memory only.
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
	unknown map[string]time.Time // no credentials helped with these repositories; when to try again
	api     *[]challenge         // challenges of the API's root; nil if not known
	looked  bool                 // whether stored credentials were looked up
	keyErr  error                // why some stored credentials could not be read
	from    string               // where the credentials were found, or ""
}

// errand is the purpose of a flight.
type errand struct {
	access
	basic bool // basic credentials, and no token
}

// flight is one exchange that several requests wait for.
type flight struct {
	done  chan struct{} // closed once the other fields are final
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
	header  string // "" for none
	unasked bool   // not asked for by the registry: sent to q.url only
}

// first returns the Authorization of a request's first try: the one that was
// accepted before, renewed if it is too old; the epoch token; or none.
func (a *authorizer) first(ctx context.Context, acc access) authorization {
	a.mu.Lock()
	key := acc
	tok := a.tokens[key]
	if tok == nil && !acc.push {
		key.push = true // push access includes read access
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
			return authorization{} // the plain request shows what is needed
		}
		return authorization{header: fresh.header}
	case basic != nil:
		return authorization{basic.header, basic.unasked}
	case a.epoch != "":
		return authorization{header: "Bearer " + a.epoch}
	}
	return authorization{}
}

// answer returns an Authorization for the challenges to a request that was
// sent with the header used. It fails with ErrDenied if no credentials fit,
// with errNoToken if the token endpoint wants the request without a token,
// or with the error that kept the endpoint from answering.
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

// bearer returns a token for acc other than the refused one.
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

// basicAuth returns a header with the credentials, unless the registry
// refused just that header.
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

// basicHeader returns the header for a name and a password, or "". A name
// that accompanies an identity token has no password.
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

// once runs get for all callers with the same errand at the same time, and
// keeps its token. A caller that leaves does not end it for the others.
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

// land stores the result of a flight.
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
