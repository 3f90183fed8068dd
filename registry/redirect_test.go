package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// redirectTo starts a registry that sends every GET of a blob elsewhere,
// once it has the right account.
func redirectTo(t *testing.T, location func() string, conf *tls.Config) *registrytest.Front {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "joe" || password != "hunter2" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Location", location())
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	if conf != nil {
		return registrytest.NewTLSFront(t, h, conf)
	}
	return registrytest.NewFront(t, h)
}

const signature = "X-Signature=s1gned"

func TestRedirectToStorage(t *testing.T) {
	data := random(1000)
	var seen headers
	storage := answers(t, func(w http.ResponseWriter, r *http.Request) {
		seen.note(r)
		if r.URL.RawQuery != signature {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", noTime, bytes.NewReader(data))
	})
	reg := redirectTo(t, func() string { return storage.URL + "/bucket/x?" + signature }, nil)
	r := client(t, reg.URL, Options{Keychain: account("joe", "hunter2")})
	ctx := context.Background()
	body, whole, err := r.Source("vm").OpenBlob(ctx, someDigest, 1000, 10, 20)
	reads(t, "range behind a redirect", body, err, data[10:30])
	if whole {
		t.Error("taken for the whole blob")
	}
	body, err = r.GetBlob(ctx, "vm", someDigest)
	reads(t, "blob behind a redirect", body, err, data)
	for _, h := range seen.all() {
		if h != "" {
			t.Errorf("storage got %q", h)
		}
	}
	if got := storage.Requests()[0].Header.Get("Range"); got != "bytes=10-29" {
		t.Errorf("storage was asked for %q", got)
	}
	if there, err := r.BlobExists(ctx, "vm", someDigest); err != nil || !there {
		t.Error(there, err)
	}
}

// Storage that refuses a signed URL is no final word: the next request
// gets a new one.
func TestExpiredSignature(t *testing.T) {
	storage := answers(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="thief"`)
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "expired: "+r.URL.RawQuery)
	})
	reg := redirectTo(t, func() string { return storage.URL + "/x?" + signature }, nil)
	r := client(t, reg.URL, Options{Keychain: account("joe", "hunter2")})
	_, err := r.GetBlob(context.Background(), "vm", someDigest)
	wantError(t, err, ErrDenied, true, "s1gned", "hunter2")
	if there, err := r.BlobExists(context.Background(), "vm", someDigest); err != nil || there {
		t.Error("storage that does not say:", there, err)
	}
	// A challenge from elsewhere is not answered.
	storage.Inject(&registrytest.Fault{Status: 401, Header: http.Header{"Www-Authenticate": {`Basic realm="thief"`}}})
	_, err = r.GetBlob(context.Background(), "vm", someDigest)
	wantError(t, err, ErrDenied, true, "s1gned", "hunter2")
	for _, q := range storage.Requests() {
		if h := q.Header.Get("Authorization"); h != "" {
			t.Errorf("storage got %q", h)
		}
	}
}

func TestRedirectsThatAreRefused(t *testing.T) {
	ca := registrytest.NewCA(t)
	plain := answers(t, func(w http.ResponseWriter, r *http.Request) { t.Error("somebody came:", r.URL) })
	for _, c := range []struct {
		name, to string
		tls      bool
	}{
		{"https to http", plain.URL + "/x?" + signature, true},
		{"http to another host", "http://storage.example.com/x?" + signature, false},
		{"http to a private address", "http://10.1.2.3/x?" + signature, false},
		{"link-local", "http://169.254.169.254/latest?" + signature, false},
		{"another scheme", "ftp://127.0.0.1/x?" + signature, false},
		{"a file", "file:///etc/passwd", false},
		{"with an account", "http://a:s1gned@127.0.0.1/x", false},
		{"not a URL", "http://%zz/s1gned", false},
		{"nowhere", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var conf *tls.Config
			if c.tls {
				conf = ca.Config(t)
			}
			reg := redirectTo(t, func() string { return c.to }, conf)
			d := &dialLog{}
			r := clientWith(t, reg.URL, Options{Keychain: account("joe", "hunter2"), CACert: ca.File}, quickLimits(), d.dial)
			_, err := r.GetBlob(context.Background(), "vm", someDigest)
			wantError(t, err, ErrDenied, false, "s1gned", "hunter2")
			if out := d.outside(); len(out) > 0 {
				t.Errorf("connections to %q", out)
			}
		})
	}
}

func TestRedirectLoop(t *testing.T) {
	reg := redirectTo(t, func() string { return "/v2/again?" + signature }, nil)
	r := client(t, reg.URL, Options{Keychain: account("joe", "hunter2")})
	_, err := r.GetBlob(context.Background(), "vm", someDigest)
	wantError(t, err, ErrUnreachable, false, "s1gned")
	if n := len(reg.Requests()); n > 1+maxRedirects+1 {
		t.Error("requests:", n)
	}
}

func TestRedirectToTLS(t *testing.T) {
	ca := registrytest.NewCA(t)
	data := random(100)
	storage := registrytest.NewTLSFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 || r.Header.Get("Authorization") != "" {
			t.Error(r.Proto, r.Header)
		}
		w.Write(data)
	}), ca.Config(t))
	reg := redirectTo(t, func() string { return storage.URL }, ca.Config(t))
	r := client(t, reg.URL, Options{Keychain: account("joe", "hunter2"), CACert: ca.File})
	body, err := r.GetBlob(context.Background(), "vm", someDigest)
	reads(t, "blob", body, err, data)

	r = client(t, reg.URL, Options{Keychain: account("joe", "hunter2")})
	_, err = r.GetBlob(context.Background(), "vm", someDigest)
	if e := wantError(t, err, ErrUnreachable, true); !strings.Contains(e.Hint, "EPOCH_CA_CERT") {
		t.Error("hint:", e.Hint)
	}
	if got := reg.Requests(); len(got) != 2 {
		t.Error("requests:", len(got))
	}
}

// Nothing falls back from TLS, and plain HTTP goes to allowed hosts only.
func TestPlainHTTP(t *testing.T) {
	plain := answers(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello")) })
	ctx := context.Background()
	d := &dialLog{to: plain.Host}
	get := func(ref string, ro ReferenceOptions, opts Options) error {
		p, err := ParseReference(ref, ro)
		if err != nil {
			t.Fatal(err)
		}
		opts.Keychain = account("joe", "hunter2")
		r, err := newRegistry(p, opts, quickLimits(), d.dial)
		if err != nil {
			return err
		}
		defer r.Close()
		rc, err := r.GetBlob(ctx, p.Repository, someDigest)
		if err != nil {
			return err
		}
		defer rc.Close()
		_, err = io.Copy(io.Discard, rc)
		return err
	}
	for _, ref := range []string{"r.example.com/vm", "10.0.0.1:5000/vm", "192.168.1.1/vm", "x.localhost:5000/vm"} {
		e := wantError(t, get(ref, ReferenceOptions{}, Options{}), ErrUnreachable, true)
		if !strings.Contains(e.Hint, "--plain-http") {
			t.Errorf("%s: hint %q", ref, e.Hint)
		}
	}
	if n := len(plain.Requests()); n != 0 {
		t.Fatalf("%d plain requests", n)
	}
	if err := get("r.example.com/vm", ReferenceOptions{PlainHTTP: true}, Options{PlainHTTP: true}); err != nil {
		t.Error(err)
	}
	if err := get("vm", ReferenceOptions{Server: "http://epoch.example.com"}, Options{EpochServer: "http://epoch.example.com"}); err != nil {
		t.Error(err)
	}
	if n := len(plain.Requests()); n != 2 {
		t.Errorf("%d plain requests", n)
	}
	// Allowed for one host is not allowed for its redirects.
	plain.Inject(&registrytest.Fault{Status: 307, Header: http.Header{"Location": {"http://other.example.com/x"}}})
	err := get("vm", ReferenceOptions{Server: "http://epoch.example.com"}, Options{EpochServer: "http://epoch.example.com"})
	wantError(t, err, ErrDenied, false)
	for _, addr := range d.outside() {
		if strings.HasPrefix(addr, "other") {
			t.Error("connected to", addr)
		}
	}
}

// A server of TLS on loopback, which is spoken to in plain HTTP, is told
// from one that refuses; also where its answer has no body.
func TestTLSOnLoopback(t *testing.T) {
	tls := registrytest.NewTLSFront(t, http.NotFoundHandler(), registrytest.NewCA(t).Config(t))
	r := client(t, "http://"+tls.Host, Options{})
	_, getErr := r.GetBlob(t.Context(), "vm", someDigest)
	_, headErr := r.BlobExists(t.Context(), "vm", someDigest)
	for _, err := range []error{getErr, headErr} {
		if e := wantError(t, err, ErrUnreachable, false); e.Hint != "the server speaks TLS: set EPOCH_SERVER=https://"+tls.Host {
			t.Errorf("hint %q", e.Hint)
		}
	}
	refuses := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }
	old := func(w http.ResponseWriter, _ *http.Request) { // as some small servers do
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.0 400 Bad Request\r\n\r\n"+`{"errors":[{"code":"NAME_INVALID"}]}`)
		_ = conn.Close()
	}
	for _, answer := range []http.HandlerFunc{refuses, old} {
		own := httptest.NewServer(answer)
		t.Cleanup(own.Close)
		_, err := client(t, own.URL, Options{}).GetBlob(t.Context(), "vm", someDigest)
		if e := wantError(t, err, err, false); e.Hint != "" {
			t.Errorf("hint %q", e.Hint)
		}
	}
}
