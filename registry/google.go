package registry

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/google"
	"golang.org/x/oauth2"
)

// googleSource is where Google's credentials come from, for people.
const googleSource = "this machine's Google account (application-default credentials)"

// googleKeys are Google's application-default credentials: of the file that
// GOOGLE_APPLICATION_CREDENTIALS names, of gcloud's well-known file, or of the
// metadata server of a machine of Google's. Their access tokens open more than a
// registry, so they are sent to Google's registries alone, by TLS.
//
// google.Keychain is not used itself: it never asks again after a failure, and a
// mount lives longer than an outage of the metadata server.
type googleKeys struct {
	mu   sync.Mutex
	auth authn.Authenticator // nil until there were some
}

// tokenTimeout bounds a request for an access token.
const tokenTimeout = 30 * time.Second

// shared is for all registries of the process: a token is for all of them.
var shared googleKeys

// get returns a name and a fresh access token as password, or empty credentials.
func (g *googleKeys) get() (authn.AuthConfig, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.auth == nil {
		// The context is kept for later tokens.
		ctx := context.WithValue(context.Background(), oauth2.HTTPClient, &http.Client{Timeout: tokenTimeout})
		auth, err := google.NewEnvAuthenticator(ctx)
		if err != nil {
			return authn.AuthConfig{}, err
		}
		g.auth = auth
	}
	cfg, err := g.auth.Authorization()
	if err != nil {
		return authn.AuthConfig{}, err
	}
	return *cfg, nil
}

// isGoogle reports whether a host is one of Google's registries.
func isGoogle(host string) bool {
	if name, port, err := net.SplitHostPort(host); err == nil {
		if port != "443" {
			return false
		}
		host = name
	}
	host = strings.ToLower(host)
	return host == "gcr.io" || strings.HasSuffix(host, ".gcr.io") || strings.HasSuffix(host, ".pkg.dev")
}
