package registrytest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
)

// Odd is a handler before a registry that answers as some registries, caches
// and proxies do that stray from the protocol. Its zero value, with a
// registry, strays nowhere.
type Odd struct {
	Registry http.Handler

	RangesAre200 bool                       // a part of a blob comes with its Content-Range, and the status of the whole
	Announce     func(digest string) string // Docker-Content-Digest of every answer that has one
	Label        string                     // Content-Encoding of blobs and manifests that come as they are
	Compress     bool                       // blobs and manifests really come as gzip
	NoLength     bool                       // answers are chunked

	Account Account // what it wants to know; the zero value is nothing
}

// Account configures how a registry treats anonymous clients.
type Account struct {
	User, Password string // if both are "", clients without an account are served
	Identity       string // an identity token that the endpoint takes instead

	Refuse    int    // status for unknown clients; 0 is 401
	RootOnly  bool   // only the API's root has a challenge
	Silent    bool   // nothing has a challenge
	Basic     bool   // the account is wanted itself, and no token for it
	Endpoint  string // text of the token endpoint's answer, with %s for the token; "" is a plain one
	SeenIsIn  bool   // a client that was at the token endpoint is served without a token
	seen      bool
	endpoints int
}

const oddToken = "odd-t0ken"

// Asked returns how often the token endpoint was asked.
func (o *Odd) Asked() int { return o.Account.endpoints }

// ServeHTTP answers one request. Requests come one at a time in tests that
// look at Asked.
func (o *Odd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &o.Account
	switch {
	case r.URL.Path == "/token" && a.User != "":
		a.token(w, r)
		return
	case a.User != "" && !a.knows(r):
		a.refuse(w, r)
		return
	}
	rec := httptest.NewRecorder()
	o.Registry.ServeHTTP(rec, r)
	o.answer(w, r, rec)
}

// knows reports whether a request shows that its client has the account.
func (a *Account) knows(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	switch {
	case a.Basic || a.Silent:
		return ok && user == a.User && password == a.Password
	case a.SeenIsIn && a.seen:
		return r.Header.Get("Authorization") == ""
	}
	return r.Header.Get("Authorization") == "Bearer "+oddToken
}

func (a *Account) token(w http.ResponseWriter, r *http.Request) {
	a.endpoints++
	user, password, _ := r.BasicAuth()
	known := user == a.User && password == a.Password ||
		a.Identity != "" && r.Method == http.MethodPost && r.PostFormValue("refresh_token") == a.Identity
	if !known && !a.SeenIsIn {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.seen = true
	text := a.Endpoint
	if text == "" {
		text = `{"token":"%s"}`
	}
	io.WriteString(w, strings.ReplaceAll(text, "%s", oddToken))
}

func (a *Account) refuse(w http.ResponseWriter, r *http.Request) {
	root := r.URL.Path == "/v2/"
	status := a.Refuse
	if status == 0 || root && !a.Silent {
		status = http.StatusUnauthorized
	}
	if !a.Silent && (root || !a.RootOnly) {
		challenge := fmt.Sprintf(`Bearer realm="http://%s/token",service="odd"`, r.Host)
		if a.Basic {
			challenge = `Basic realm="odd"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	w.WriteHeader(status)
}

// answer sends the registry's answer on, as odd as it is to be.
func (o *Odd) answer(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder) {
	h, body, status := rec.Header(), rec.Body.Bytes(), rec.Code
	if d := h.Get("Docker-Content-Digest"); d != "" && o.Announce != nil {
		h.Set("Docker-Content-Digest", o.Announce(d))
	}
	read := r.Method == http.MethodGet && status < 300 && (strings.Contains(r.URL.Path, "/blobs/") || strings.Contains(r.URL.Path, "/manifests/"))
	if read && o.RangesAre200 && status == http.StatusPartialContent {
		status = http.StatusOK
	}
	if read && o.Label != "" {
		h.Set("Content-Encoding", o.Label)
	}
	if read && o.Compress {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(body)
		z.Close()
		body = b.Bytes()
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	if read && o.NoLength {
		h.Del("Content-Length")
	} else if read {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	for k, v := range h {
		w.Header()[k] = v
	}
	w.WriteHeader(status)
	if read && o.NoLength {
		w.(http.Flusher).Flush()
	}
	w.Write(body)
}
