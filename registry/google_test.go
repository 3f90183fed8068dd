package registry

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// googleMachine makes this process one on a machine in Google's cloud, whose
// user has no other credentials.
func googleMachine(t *testing.T) *registrytest.Metadata {
	t.Helper()
	m := registrytest.NewMetadata(t)
	t.Setenv("GCE_METADATA_HOST", m.Host)
	home := t.TempDir()
	for _, name := range []string{"HOME", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "CLOUDSDK_CONFIG"} {
		t.Setenv(name, home)
	}
	for _, name := range []string{"GOOGLE_APPLICATION_CREDENTIALS", "REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG"} {
		t.Setenv(name, "")
	}
	shared.mu.Lock()
	shared.auth = nil
	shared.mu.Unlock()
	return m
}

// namedRegistry is a registry of that name, to which all connections go. It
// names the token endpoint realm.
func namedRegistry(t *testing.T, name, realm string) (*Registry, *registrytest.GoogleRegistry) {
	t.Helper()
	g := &registrytest.GoogleRegistry{Realm: realm, Backend: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte(`{"schemaVersion":2}`))
	})}
	server := httptest.NewTLSServer(g)
	t.Cleanup(server.Close)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	at := endpoint{ref: Reference{Scheme: "https", Host: name}, path: apiPath, tries: 1, skipVerify: true}
	r, err := newAt(at, Options{}, defaultLimits(), dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, g
}

// The credentials of a machine of Google's open its registries, and are asked
// for again after the metadata server was away.
func TestGoogleCredentials(t *testing.T) {
	m := googleMachine(t)
	const host = "us-docker.pkg.dev"
	m.Away.Store(true)
	r, _ := namedRegistry(t, host, "https://"+host+"/token")
	if _, _, err := r.GetManifest(t.Context(), "team/vm", "v1"); err == nil {
		t.Fatal("read without a token")
	}
	m.Away.Store(false)
	if _, _, err := r.GetManifest(t.Context(), "team/vm", "v1"); err != nil {
		t.Fatal(err)
	}
	if from, err := r.CredentialsFrom(); from != googleSource || err != nil {
		t.Errorf("from %q, %v", from, err)
	}
	again, _ := namedRegistry(t, "gcr.io", "https://gcr.io/token")
	if _, _, err := again.GetManifest(t.Context(), "team/vm", "v1"); err != nil {
		t.Fatal(err)
	}
	if n := m.Tokens.Load(); n != 1 {
		t.Errorf("%d access tokens", n)
	}
}

// Nobody else gets them: another registry, another port, a token endpoint
// elsewhere, a registry without TLS.
func TestGoogleCredentialsStay(t *testing.T) {
	m := googleMachine(t)
	for host, realm := range map[string]string{
		"r.example":              "https://r.example/token",
		"pkg.dev.r.example":      "https://pkg.dev.r.example/token",
		"eu-docker.pkg.dev:5000": "https://eu-docker.pkg.dev:5000/token",
		"eu-docker.pkg.dev":      "https://elsewhere.example/token",
	} {
		r, g := namedRegistry(t, host, realm)
		if _, _, err := r.GetManifest(t.Context(), "team/vm", "v1"); err == nil {
			t.Errorf("%s was read", host)
		}
		if got, _ := g.Sent.Load().(string); strings.Contains(got, registrytest.GoogleToken) {
			t.Errorf("%s: %s was sent", host, got)
		}
	}
	plain := registrytest.Odd{Account: registrytest.Account{User: "_token", Password: registrytest.GoogleToken}}
	o := newOdd(t, plain, random(100))
	r := clientWith(t, "http://us-docker.pkg.dev", Options{PlainHTTP: true}, defaultLimits(), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(o.URL, "http://"))
	})
	if _, _, err := r.GetManifest(t.Context(), "vm", "1"); err == nil {
		t.Error("read over plain HTTP")
	}
	if n := m.Tokens.Load(); n > 1 {
		t.Errorf("%d access tokens", n)
	}
}

// Docker's credentials go before Google's.
func TestDockerBeforeGoogle(t *testing.T) {
	m := googleMachine(t)
	const host = "us-docker.pkg.dev"
	t.Setenv("DOCKER_AUTH_CONFIG", `{"auths":{"`+host+`":{"username":"joe","password":"pw"}}}`)
	r, g := namedRegistry(t, host, "https://"+host+"/token")
	if _, _, err := r.GetManifest(t.Context(), "team/vm", "v1"); err == nil {
		t.Error("joe was let in")
	}
	if got, _ := g.Sent.Load().(string); got != host+" joe:pw" || m.Tokens.Load() != 0 {
		t.Errorf("%s; %d access tokens", got, m.Tokens.Load())
	}
}
