package registry

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// A lifetime that cannot be read is the shortest there is.
func TestExpiresIn(t *testing.T) {
	t.Parallel()
	for form, want := range map[string]time.Duration{
		`300`: 270 * time.Second, `"300"`: 270 * time.Second, `300.5`: 270*time.Second + 450*time.Millisecond,
		`"300.0"`: 270 * time.Second, `" 300 "`: 270 * time.Second, `3e2`: 270 * time.Second,
		`null`: 50 * time.Second, `""`: 50 * time.Second, `"soon"`: 50 * time.Second, `0`: 50 * time.Second, `-5`: 50 * time.Second,
		`true`: 50 * time.Second, `{}`: 50 * time.Second, `[300]`: 50 * time.Second, `"NaN"`: 50 * time.Second, `"-Inf"`: 50 * time.Second,
		`1e300`: 24*time.Hour - 24*time.Hour/10, `"Inf"`: 24*time.Hour - 24*time.Hour/10, `"99999999999999999999"`: 24*time.Hour - 24*time.Hour/10,
	} {
		for _, issued := range []string{`"2001-01-01T00:00:00Z"`, `"yesterday"`, `0`, `null`, `{"a":1}`} {
			before := time.Now()
			tok, err := parseToken([]byte(`{"token":"t","expires_in":`+form+`,"issued_at":`+issued+`}`), target{})
			if err != nil {
				t.Errorf("%s, %s: %v", form, issued, err)
				continue
			}
			if got := tok.expires.Sub(before); got < want || got > want+time.Minute/6 {
				t.Errorf("%s: used for %v and not %v", form, got, want)
			}
		}
	}
}

// Whatever form the token's lifetime has, the token is got once and works.
func TestTokenForms(t *testing.T) {
	t.Parallel()
	for _, form := range []string{
		`{"token":"%s","expires_in":"300"}`, `{"access_token":"%s","expires_in":300.0,"issued_at":"now"}`, `{"token":null,"access_token":"%s","expires_in":null}`,
		`{"token":"","access_token":"%s"}`, `{"token":"%s","access_token":5,"refresh_token":{}}`,
	} {
		o := newOdd(t, registrytest.Odd{Account: registrytest.Account{User: "joe", Password: "hunter2", Endpoint: form}}, random(10_000))
		o.readsRight(t, client(t, o.URL, Options{Keychain: account("joe", "hunter2")}))
		if n := o.Asked(); n != 1 {
			t.Errorf("%s: %d tokens", form, n)
		}
	}
}

// A token endpoint that is well and gives no token means: go on without.
func TestEmptyToken(t *testing.T) {
	t.Parallel()
	for _, form := range []string{`{"token":""}`, `{"token":"","access_token":""}`, `{"token":null}`, `{}`, ``} {
		odd := registrytest.Odd{Account: registrytest.Account{User: "joe", Password: "hunter2", Endpoint: form + "\n", SeenIsIn: true}}
		o := newOdd(t, odd, random(10_000))
		o.readsRight(t, client(t, o.URL, Options{}))
		if n := o.Asked(); n != 1 {
			t.Errorf("%s: %d tokens", form, n)
		}
		// One that wants more is left after one more try, without a word.
		o.Account.SeenIsIn = false
		r := client(t, o.URL, Options{Keychain: account("joe", "hunter2")})
		o.Reset()
		_, _, err := r.GetManifest(t.Context(), "vm", "1")
		wantError(t, err, ErrDenied, false, "hunter2")
		if c := o.Counts(); c.Manifests != 2 || c.Other > 2 {
			t.Errorf("%+v", c)
		}
	}
}

// A registry that does not show to everybody what it has is asked at its
// root for what it wants, if there are credentials.
func TestHiddenFromUnknown(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusNotFound} {
		for _, basic := range []bool{false, true} {
			odd := registrytest.Odd{Account: registrytest.Account{User: "joe", Password: "hunter2", Refuse: status, RootOnly: true, Basic: basic}}
			o := newOdd(t, odd, random(10_000))
			r := client(t, o.URL, Options{Keychain: account("joe", "hunter2")})
			o.readsRight(t, r)
			root := 0
			for _, q := range o.Requests() {
				if q.Path == "/v2/" {
					root++
				}
			}
			if root != 1 || o.Asked() > 1 {
				t.Errorf("%d: %d requests to the root, %d to the endpoint", status, root, o.Asked())
			}
			if status == http.StatusForbidden {
				if _, _, err := r.UploadBlob(t.Context(), "vm", strings.NewReader("x")); err != nil {
					t.Error("upload:", err)
				}
				if _, _, err := client(t, o.URL, Options{Keychain: account("joe", "hunter2")}).UploadBlob(t.Context(), "vm", strings.NewReader("y")); err != nil {
					t.Error("upload first:", err)
				}
			}
			// Nobody asks without credentials, and with wrong ones the answer
			// is what it was.
			kind := map[int]error{403: ErrDenied, 404: ErrNotFound}[status]
			o.Reset()
			_, _, err := client(t, o.URL, Options{}).GetManifest(t.Context(), "vm", "1")
			wantError(t, err, kind, false)
			if n := len(o.Requests()); n != 1 {
				t.Errorf("%d: %d requests without credentials", status, n)
			}
			o.Reset()
			_, _, err = client(t, o.URL, Options{Keychain: account("joe", "wr0ng")}).GetManifest(t.Context(), "vm", "1")
			if basic {
				kind = ErrDenied
				if status == 404 {
					kind = ErrNotFound
				}
			}
			wantError(t, err, kind, false, "wr0ng")
			if n := len(o.Requests()); n > 4 {
				t.Errorf("%d: %d requests with wrong credentials", status, n)
			}
		}
	}
}

// Where there is nothing to show, credentials are not looked for with every
// blob that is not there.
func TestNotFoundWithoutCredentials(t *testing.T) {
	t.Parallel()
	o := newOdd(t, registrytest.Odd{}, random(100))
	k := &keys{}
	r := client(t, o.URL, Options{Keychain: k})
	for range 5 {
		_, err := r.GetBlob(t.Context(), "vm", someDigest)
		wantError(t, err, ErrNotFound, false)
	}
	if len(k.asked) != 1 || len(o.Requests()) != 5 {
		t.Errorf("%d lookups, %d requests", len(k.asked), len(o.Requests()))
	}
	r.auth.mu.Lock()
	r.auth.unknown["vm"] = time.Now()
	r.auth.mu.Unlock()
	_, err := r.GetBlob(t.Context(), "vm", someDigest)
	if wantError(t, err, ErrNotFound, false); len(k.asked) != 2 {
		t.Errorf("%d lookups after a while", len(k.asked))
	}
}

// Where the root asks for nothing, what is not there is not there: no
// credentials are sent, and the root is asked once.
func TestNotFoundWhereAllIsOpen(t *testing.T) {
	t.Parallel()
	o := newOdd(t, registrytest.Odd{}, random(100))
	r := client(t, o.URL, Options{Keychain: account("joe", "hunter2")})
	for range 3 {
		_, _, err := r.GetManifest(t.Context(), "vm", "none")
		wantError(t, err, ErrNotFound, false)
	}
	if n := len(o.Requests()); n != 4 {
		t.Errorf("%d requests", n)
	}
	for _, q := range o.Requests() {
		if h := q.Header.Get("Authorization"); h != "" {
			t.Errorf("%s got %q", q.Path, h)
		}
	}
}

// A 401 that does not say what it wants is answered with the credentials of
// the host, once; and from then on they are sent at once.
func TestUnauthorizedWithoutChallenge(t *testing.T) {
	t.Parallel()
	odd := registrytest.Odd{Account: registrytest.Account{User: "joe", Password: "hunter2", Silent: true}}
	o := newOdd(t, odd, random(10_000))
	o.readsRight(t, client(t, o.URL, Options{Keychain: account("joe", "hunter2")}))
	refused := 0
	for _, q := range o.Requests() {
		if q.Status() == http.StatusUnauthorized {
			refused++
		}
	}
	if refused > 2 { // the manifest, and the root
		t.Errorf("%d requests were refused", refused)
	}
	for _, k := range []*keys{account("joe", "wr0ng"), {cfg: &authn.AuthConfig{IdentityToken: "1dentity"}},
		{cfg: &authn.AuthConfig{Username: "<token>", Password: "1dentity"}}, {cfg: &authn.AuthConfig{Username: "0-0", IdentityToken: "1dentity"}}, {}} {
		o.Reset()
		_, _, err := client(t, o.URL, Options{Keychain: k}).GetManifest(t.Context(), "vm", "1")
		wantError(t, err, ErrDenied, false, "wr0ng", "1dentity")
		sent := 0
		for _, q := range o.Requests() {
			if q.Header.Get("Authorization") != "" {
				sent++
			}
		}
		if want := map[bool]int{true: 1}[k.cfg != nil && k.cfg.Password == "wr0ng"]; sent != want {
			t.Errorf("%+v: credentials were sent %d times", k.cfg, sent)
		}
	}
	// With an upload it is no different.
	if _, _, err := client(t, o.URL, Options{Keychain: account("joe", "hunter2")}).UploadBlob(t.Context(), "vm", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	// The root may say what the rest does not.
	odd.Account = registrytest.Account{User: "joe", Password: "hunter2", RootOnly: true, Identity: "1dentity"}
	o = newOdd(t, odd, random(10_000))
	o.readsRight(t, client(t, o.URL, Options{Keychain: &keys{cfg: &authn.AuthConfig{IdentityToken: "1dentity"}}}))
}

// What nobody asked for goes to no other host, not after a redirect, and
// not over plain HTTP to another machine.
func TestUnaskedCredentialsStayAtHome(t *testing.T) {
	t.Parallel()
	silent := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	other := answers(t, silent)
	there := "" // where the registry sends its clients
	home := answers(t, func(w http.ResponseWriter, r *http.Request) {
		if there == "" || strings.HasPrefix(r.URL.Path, "/moved") {
			silent(w, r)
			return
		}
		w.Header().Set("Location", there+"/moved"+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	for _, there = range []string{other.URL, home.URL, ""} {
		for _, base := range []string{home.URL, "http://r.example.com"} {
			home.Reset()
			d := &dialLog{to: home.Host}
			if base == home.URL {
				d.to = ""
			}
			r := clientWith(t, base, Options{Keychain: account("joe", "hunter2"), PlainHTTP: true}, quickLimits(), d.dial)
			_, _, err := r.GetManifest(t.Context(), "vm", "1")
			elsewhere := there == other.URL || there != "" && base != home.URL
			wantError(t, err, ErrDenied, elsewhere, "hunter2") // storage may be of another mind next time
			for _, q := range append(home.Requests(), other.Requests()...) {
				h := q.Header.Get("Authorization")
				if h != "" && (there != "" || base != home.URL) {
					t.Errorf("redirected to %q from %s: %s got %q", there, base, q.Path, h)
				}
			}
		}
	}
	// Accepted once, they do not go along with a redirect either.
	odd := registrytest.Odd{Account: registrytest.Account{User: "joe", Password: "hunter2", Silent: true}}
	o := newOdd(t, odd, random(100))
	r := client(t, o.URL, Options{Keychain: account("joe", "hunter2")})
	o.readsRight(t, r)
	o.Inject(&registrytest.Fault{Match: registrytest.Path("/v2/vm/blobs/"), Status: 307, Header: http.Header{"Location": {"/elsewhere"}}})
	_, _ = r.GetBlob(t.Context(), "vm", o.digest)
	for _, q := range o.Requests() {
		if h := q.Header.Get("Authorization"); q.Path == "/elsewhere" && h != "" {
			t.Errorf("after a redirect comes %q", h)
		}
	}
}

// Credentials may be for one namespace of a host.
func TestCredentialsAreOfARepository(t *testing.T) {
	t.Parallel()
	var seen headers
	f := answers(t, func(w http.ResponseWriter, r *http.Request) {
		user, _, _ := r.BasicAuth()
		seen.note(r)
		if !strings.HasPrefix(r.URL.Path, "/v2/"+user+"/") || user == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"tags": []string{user}})
	})
	r := client(t, f.URL, Options{Keychain: byOrg{}})
	for _, org := range []string{"a", "b", "a", "b"} {
		tags, err := r.Tags(t.Context(), org+"/vm")
		if err != nil || len(tags) != 1 || tags[0] != org {
			t.Error(tags, err)
		}
	}
	if n := len(seen.all()); n != 6 {
		t.Errorf("%d requests", n)
	}
}

// byOrg has an account for each namespace.
type byOrg struct{}

func (byOrg) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: strings.Split(r.String(), "/")[1], Password: "pw"}, nil
}
