package registrytest

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// GoogleToken is the access token that a Metadata gives.
const GoogleToken = "ya29.access-t0ken"

// Metadata stands for the metadata server of a machine in Google's cloud.
type Metadata struct {
	Host   string       // for GCE_METADATA_HOST
	Tokens atomic.Int32 // how many it gave
	Away   atomic.Bool  // it has no service account
}

// NewMetadata starts one, which lives as long as the test.
func NewMetadata(t testing.TB) *Metadata {
	t.Helper()
	m := new(Metadata)
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.Host = strings.TrimPrefix(server.URL, "http://")
	return m
}

func (m *Metadata) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	switch {
	case req.Header.Get("Metadata-Flavor") != "Google":
		http.Error(w, "not asked as it must be", http.StatusForbidden)
	case m.Away.Load():
		http.Error(w, "no service account", http.StatusNotFound)
	case strings.HasSuffix(req.URL.Path, "/service-accounts/default/token"):
		m.Tokens.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": GoogleToken, "expires_in": 3600, "token_type": "Bearer"})
	case strings.HasSuffix(req.URL.Path, "/universe-domain"):
		_, _ = io.WriteString(w, "googleapis.com")
	default:
		_, _ = io.WriteString(w, "project")
	}
}

// GoogleRegistry is a registry that wants a token of its own, which it gives for
// GoogleToken at /token.
type GoogleRegistry struct {
	Realm   string       // the token endpoint that it names
	Backend http.Handler // what answers requests with a token
	Sent    atomic.Value // the host, user and password of the last request for a token, as a string
}

func (g *GoogleRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	switch {
	case req.URL.Path == "/token":
		g.Sent.Store(req.Host + " " + user + ":" + password)
		if user != "_token" || password != GoogleToken {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"token":"of-the-registry","expires_in":300}`)
	case req.Header.Get("Authorization") == "Bearer of-the-registry":
		g.Backend.ServeHTTP(w, req)
	default:
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+g.Realm+`",service="test"`)
		http.Error(w, "who is there?", http.StatusUnauthorized)
	}
}

// Tunnel starts a proxy that connects every client with one address,
// whatever host is requested. It returns its URL, and lives as long as the
// test.
func Tunnel(t testing.TB, to string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		in, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			out.Close()
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(out, buffered)
			out.Close()
		}()
		_, _ = io.Copy(in, out)
		in.Close()
	}))
	t.Cleanup(server.Close)
	return server.URL
}
