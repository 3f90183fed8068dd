package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// secrets are what must be seen nowhere but where it belongs: the epoch
// token, a password, a token that the registry gave, a signed URL's
// signature, and the forms in which they are sent.
var secrets = []string{
	"epoch-5ecret", "pw-5ecret", "tok-5ecret", "sig-5ecret",
	base64.StdEncoding.EncodeToString([]byte("epoch:epoch-5ecret")),
	base64.StdEncoding.EncodeToString([]byte("joe:pw-5ecret")),
}

func holdsSecret(raw []byte) string {
	for _, s := range secrets {
		if bytes.Contains(raw, []byte(s)) {
			return s
		}
	}
	return ""
}

// guarded is a registry that wants a token, which it gives for a password,
// and that redirects to storage with signed URLs. Its errors repeat what
// it was sent.
type guarded struct {
	registry http.Handler
	storage  *registrytest.Front
	mirror   *registrytest.Front // another host, which fails
}

func newGuarded(t *testing.T) *guarded {
	g := &guarded{registry: registrytest.NewHandler()}
	g.storage = registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "X-Sig=sig-5ecret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		r.URL.RawQuery = ""
		g.registry.ServeHTTP(w, r)
	}))
	g.mirror = registrytest.NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	return g
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	authz := r.Header.Get("Authorization")
	_, password, _ := r.BasicAuth()
	switch {
	case r.URL.Path == "/token":
		if password != "epoch-5ecret" && password != "pw-5ecret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"tok-5ecret","expires_in":300}`)
	case authz != "Bearer tok-5ecret":
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":%q}]}`, authz)
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
		w.Header().Set("Location", g.storage.URL+r.URL.Path+"?X-Sig=sig-5ecret")
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		g.registry.ServeHTTP(w, r)
	}
}

// nosecret N ARGS...: epochfs exits with N and prints no secret.
func nosecret(ts *testscript.TestScript, _ bool, args []string) {
	code(ts, false, append([]string{args[0], "epochfs"}, args[1:]...))
	for _, name := range []string{"stdout", "stderr"} {
		if s := holdsSecret([]byte(ts.ReadFile(name))); s != "" {
			ts.Fatalf("%s holds %q", name, s)
		}
	}
}

// secretless: no secret is in a file, in a command line, or in a request
// to another host.
func (w *world) secretless(ts *testscript.TestScript, _ bool, _ []string) {
	files := 0
	ts.Check(filepath.WalkDir(w.work, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == ".docker" {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		raw, err := os.ReadFile(path)
		if s := holdsSecret(raw); s != "" {
			ts.Fatalf("%s holds %q", path, s)
		}
		files++
		return err
	}))
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		if raw, err := os.ReadFile(name); err == nil && bytes.Contains(raw, []byte("epochfs")) {
			if s := holdsSecret(raw); s != "" {
				ts.Fatalf("%s holds %q", name, s)
			}
		}
	}
	var requests int
	for _, front := range []*registrytest.Front{w.guarded.storage, w.guarded.mirror} {
		for _, r := range front.Requests() {
			requests++
			for key, values := range r.Header {
				if s := holdsSecret([]byte(strings.Join(values, "\n"))); s != "" {
					ts.Fatalf("%s of a request to another host holds %q", key, s)
				}
			}
		}
	}
	for _, r := range slices.Concat(w.front.Requests(), w.guarded.mirror.Requests()) {
		if s := holdsSecret([]byte(r.Path + "?" + r.RawQuery)); s != "" {
			ts.Fatalf("the URL of a request holds %q", s)
		}
	}
	if files < 10 || len(lines) < 2 || len(w.guarded.storage.Requests()) == 0 || len(w.guarded.mirror.Requests()) == 0 {
		ts.Fatalf("looked at %d files, %d command lines, %d requests: too few to say anything", files, len(lines), requests)
	}
}

// hostsfile FILE: a hosts.toml that names the mirror.
func (w *world) hostsFile(ts *testscript.TestScript, _ bool, args []string) {
	text := "[host.\"" + w.guarded.mirror.URL + "\"]\n"
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// dockerlogin FILE: docker's config with an account of the registry.
func (w *world) dockerLogin(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o700))
	text := `{"auths":{"` + w.front.Host + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("joe:pw-5ecret")) + `"}}}`
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// storagefails: storage refuses all signatures.
func (w *world) storageFails(*testscript.TestScript, bool, []string) {
	w.guarded.storage.Inject(&registrytest.Fault{Status: http.StatusForbidden, Body: "sig-5ecret is too old"})
}
