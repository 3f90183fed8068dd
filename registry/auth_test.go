package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/google/go-containerregistry/pkg/authn"
)

// tokenRegistry is a registry in memory behind bearer tokens, each good
// for the scope it was asked for. joe with hunter2 gets them, or whoever
// has the identity token "identity".
type tokenRegistry struct {
	*registrytest.Front
	inner    http.Handler
	lifetime int
	anyone   bool // tokens for clients without credentials

	mu      sync.Mutex
	granted map[string]string // token to scopes
	asked   int               // requests for tokens
	delay   chan struct{}     // the endpoint answers when it is closed
	realm   string            // instead of its own
	seen    headers           // at the registry
}

func newTokenRegistry(t testing.TB) *tokenRegistry {
	r := &tokenRegistry{inner: registrytest.NewHandler(), lifetime: 300, granted: map[string]string{}}
	r.Front = registrytest.NewFront(t, r)
	return r
}

func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.token(w, req)
		return
	}
	r.seen.note(req)
	name := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")[0]
	need := "repository:" + name + ":pull"
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		need += ",push"
	}
	r.mu.Lock()
	scope := r.granted[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
	realm := r.realm
	r.mu.Unlock()
	if !strings.Contains(scope, need) {
		if realm == "" {
			realm = "http://" + req.Host + "/token"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope=%q`, realm, need))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.inner.ServeHTTP(w, req)
}

func (r *tokenRegistry) token(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	r.mu.Lock()
	delay := r.delay
	r.asked++
	r.mu.Unlock()
	if delay != nil {
		<-delay
	}
	good := r.anyone || user == "joe" && password == "hunter2" || req.PostFormValue("refresh_token") == "identity"
	if !good || req.FormValue("service") != "test" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	token := fmt.Sprintf("tok-%d", len(r.granted))
	r.granted[token] = strings.Join(req.Form["scope"], " ")
	json.NewEncoder(w).Encode(map[string]any{"access_token": token, "expires_in": r.lifetime})
}

func (r *tokenRegistry) tokens() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// revoke makes every token bad.
func (r *tokenRegistry) revoke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.granted)
	r.granted["spent"] = ""
}

func TestTokenIsKeptPerScope(t *testing.T) {
	srv := newTokenRegistry(t)
	r := client(t, srv.URL, Options{Keychain: account("joe", "hunter2")})
	ctx := context.Background()
	var digests []string
	for i := range missesInARow + 1 {
		d, _, err := r.UploadBlob(ctx, "vm", strings.NewReader(fmt.Sprint("blob", i)))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	for _, d := range digests {
		rc, err := r.GetBlob(ctx, "vm", d)
		readAll(t, rc, err)
	}
	if n := srv.tokens(); n != 1 {
		t.Errorf("%d tokens for one repository that is written and read", n)
	}
	// Blobs in memory belong to every repository.
	rc, err := r.GetBlob(ctx, "other", digests[0])
	readAll(t, rc, err)
	if n := srv.tokens(); n != 2 {
		t.Errorf("%d tokens for two repositories", n)
	}
}

func TestTokenIsRenewed(t *testing.T) {
	srv := newTokenRegistry(t)
	r := client(t, srv.URL, Options{Keychain: account("joe", "hunter2")})
	ctx := context.Background()
	digest, _, err := r.UploadBlob(ctx, "vm", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	srv.revoke()
	rc, err := r.GetBlob(ctx, "vm", digest)
	reads(t, "after the token was revoked", rc, err, []byte("x"))

	// One that is too old is not even tried.
	r.auth.mu.Lock()
	for _, tok := range r.auth.tokens {
		tok.expires = time.Now().Add(-time.Second)
	}
	r.auth.mu.Unlock()
	srv.Reset()
	rc, err = r.GetBlob(ctx, "vm", digest)
	readAll(t, rc, err)
	if c := srv.Counts(); c.Blobs != 1 || c.Other != 1 {
		t.Errorf("%+v", c)
	}
	// The endpoint is gone: the error says: later.
	srv.revoke()
	srv.Inject(&registrytest.Fault{Match: registrytest.Path("/token"), Status: 503})
	_, err = r.GetBlob(ctx, "vm", digest)
	wantError(t, err, ErrUnreachable, true)
}

func TestIdentityToken(t *testing.T) {
	srv := newTokenRegistry(t)
	r := client(t, srv.URL, Options{Keychain: &keys{cfg: &authn.AuthConfig{IdentityToken: "identity"}}})
	if _, _, err := r.UploadBlob(context.Background(), "vm", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	r = client(t, srv.URL, Options{Keychain: &keys{cfg: &authn.AuthConfig{IdentityToken: "false-one"}}})
	_, _, err := r.UploadBlob(context.Background(), "vm", strings.NewReader("x"))
	wantError(t, err, ErrDenied, false, "false-one")
}

func TestOneExchangeForMany(t *testing.T) {
	srv := newTokenRegistry(t)
	srv.anyone = true
	srv.delay = make(chan struct{})
	r := client(t, srv.URL, Options{})
	var wg sync.WaitGroup
	var failed atomic.Int32
	// One of them leaves; the exchange goes on for the others.
	leaves, leave := context.WithCancel(context.Background())
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx := context.Background()
			if i == 0 {
				ctx = leaves
			}
			if _, err := r.Tags(ctx, "vm"); i != 0 {
				wantError(t, err, ErrNotFound, false)
			} else if err == nil {
				failed.Add(1)
			}
		}()
	}
	eventually(t, func() bool { return len(srv.seen.all()) == 20 && srv.tokens() == 1 })
	leave()
	close(srv.delay)
	wg.Wait()
	if n := srv.tokens(); n != 1 {
		t.Errorf("%d exchanges for 20 requests", n)
	}
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTokenAnswersThatAreNone(t *testing.T) {
	for _, body := range []string{``, `[]`, `{}`, `{"token":""}`, `{"token":"a b\nc"}`, `{"token":5}`, `{"token":"s3cretish`,
		`{"token":"` + strings.Repeat("x", maxToken) + `"}`} {
		srv := newTokenRegistry(t)
		srv.Inject(&registrytest.Fault{Match: registrytest.Path("/token"), Status: 200, Body: body})
		r := client(t, srv.URL, Options{})
		_, err := r.Tags(context.Background(), "vm")
		kind := ErrDenied
		if len(body) > maxToken {
			kind = ErrContent
		}
		wantError(t, err, kind, false, "s3cretish", "xxxxxxxx")
	}
}

func TestRealms(t *testing.T) {
	for _, c := range []struct {
		base, realm string
		plain       bool
		want        string // "" is refused
	}{
		{"https://r.io", "https://auth.io/token", false, "https://auth.io/token"},
		{"https://r.io", "https://10.0.0.1/token", false, "https://10.0.0.1/token"},
		{"https://r.io", "https://r.io/token?a=b", false, "https://r.io/token?a=b"},
		{"https://r.io", "http://r.io:443/token", false, "https://r.io:443/token"},
		{"https://r.io", "http://auth.io/token", false, ""},
		{"https://r.io", "http://auth.io/token", true, ""},
		{"https://r.io", "http://127.0.0.1/token", false, ""},
		{"https://r.io", "https://169.254.169.254/latest/meta-data", false, ""},
		{"https://r.io", "https://[fe80::1]/x", false, ""},
		{"https://r.io", "https://u:p@auth.io/token", false, ""},
		{"https://r.io", "", false, ""},
		{"https://r.io", "/token", false, ""},
		{"https://r.io", "ftp://auth.io", false, ""},
		{"http://127.0.0.1:1", "http://127.0.0.1:2/token", false, "http://127.0.0.1:2/token"},
		{"http://127.0.0.1:1", "https://auth.io/token", false, "https://auth.io/token"},
		{"http://127.0.0.1:1", "http://auth.io/token", false, ""},
		{"http://127.0.0.1:1", "http://10.0.0.1/token", false, ""},
		{"http://r.io", "http://r.io/token", true, "http://r.io/token"},
		{"http://r.io", "http://auth.io/token", true, "http://auth.io/token"},
		{"http://r.io", "http://127.0.0.1/token", true, ""},
		{"http://r.io", "http://169.254.169.254/latest", true, ""},
	} {
		r := client(t, c.base, Options{PlainHTTP: c.plain})
		u, err := r.auth.realm(c.realm)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s names %s: taken as %s", c.base, c.realm, u)
		case c.want != "" && (err != nil || u.String() != c.want):
			t.Errorf("%s names %s: %v, %v", c.base, c.realm, u, err)
		}
	}
}

// The epoch token goes to the epoch server and to nobody else, whatever
// the server says.
func TestEpochTokenStaysAtHome(t *testing.T) {
	const secret = "ep0ch-s3cret"
	var foreign headers
	thief := registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		foreign.note(r)
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body)+r.URL.String(), secret) {
			t.Error("the token came with the request itself")
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	srv := newTokenRegistry(t)
	srv.realm = thief.URL + "/token"
	ctx := context.Background()
	r := client(t, srv.URL, Options{EpochServer: srv.URL, EpochToken: secret})
	_, err := r.Tags(ctx, "vm")
	wantError(t, err, ErrDenied, false, secret)
	if got := foreign.all(); len(got) != 1 || got[0] != "" {
		t.Errorf("the other host got %q", got)
	}
	if got := srv.seen.all(); len(got) == 0 || got[0] != "Bearer "+secret {
		t.Errorf("the epoch server got %q", got)
	}
	// To another registry it is not sent at all.
	r = client(t, thief.URL, Options{EpochServer: srv.URL, EpochToken: secret})
	r.Tags(ctx, "vm")
	for _, h := range foreign.all() {
		if h != "" {
			t.Errorf("another registry got %q", h)
		}
	}
	if got := len(foreign.all()); got != 2 {
		t.Error("requests:", got)
	}
}

func TestHungCredentialHelper(t *testing.T) {
	reg := newTokenRegistry(t)
	hang := make(chan struct{})
	defer close(hang)
	r := client(t, reg.URL, Options{Keychain: hungKeys{hang}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := r.Tags(ctx, "vm")
		done <- err
	}()
	eventually(t, func() bool { return len(reg.seen.all()) == 1 })
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	r.Close() // returns although the helper does not
}

// TestCredentialHelperFailsForAMoment has one that fails some times in a
// row: up to a bound that is not the end of it.
func TestCredentialHelperFailsForAMoment(t *testing.T) {
	for failures, ok := range map[int32]bool{0: true, 1: true, keychainTries - 1: true, keychainTries: false} {
		reg := newTokenRegistry(t)
		keys := &moodyKeys{}
		keys.failures.Store(failures)
		_, err := client(t, reg.URL, Options{Keychain: keys}).Tags(t.Context(), "vm")
		if errors.Is(err, ErrDenied) == ok {
			t.Errorf("after %d failures: %v", failures, err)
		}
	}
}

// moodyKeys has the right credentials, after some failures.
type moodyKeys struct{ failures atomic.Int32 }

func (k *moodyKeys) Resolve(authn.Resource) (authn.Authenticator, error) {
	if k.failures.Add(-1) >= 0 {
		return nil, errors.New("error getting credentials")
	}
	return &authn.Basic{Username: "joe", Password: "hunter2"}, nil
}

type hungKeys struct{ until chan struct{} }

func (h hungKeys) Resolve(authn.Resource) (authn.Authenticator, error) {
	<-h.until
	return authn.Anonymous, nil
}

func writeDockerConfig(t *testing.T, dir, host, user, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeHelper makes docker's config name a credential helper, and puts
// that into PATH.
func writeHelper(t *testing.T, dir, host, user, password string) {
	t.Helper()
	config := fmt.Sprintf(`{"credHelpers":{%q:"epochfs-test"}}`, host)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"%s\",\"Username\":\"%s\",\"Secret\":\"%s\"}'\n", host, user, password)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-epochfs-test"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
