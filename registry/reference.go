package registry

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// DefaultServer is the registry of names without a host if EPOCH_SERVER is
// not set: the default of epoch's own client.
const DefaultServer = "http://127.0.0.1:8080"

// ErrReference is wrapped by errors about an invalid reference, or an
// invalid server that completes it.
var ErrReference = errors.New("invalid reference")

// maxRepository bounds the length of a repository name in bytes, as in the
// code of docker and distribution.
const maxRepository = 255

// Reference names an artifact in a registry. At least one of Tag and Digest
// is set; Digest has precedence.
type Reference struct {
	Scheme     string // "http" or "https"
	Host       string // host[:port]; a single word other than localhost has a port
	Repository string
	Tag        string
	Digest     string
}

// ReferenceOptions complete a reference.
type ReferenceOptions struct {
	Registry  string // OCI_REGISTRY's value, host[:port][/path]; "" for Server
	Server    string // EPOCH_SERVER's value; "" for DefaultServer
	PlainHTTP bool   // allow plain HTTP to hosts that are not loopback
}

// ParseReference parses [host[:port]/]repo/path[:tag|@sha256:...]. The first
// component is a host if it contains a dot or a colon, or is localhost;
// without one, the registry of opts is meant, whose path stands before the
// repository, or else the server. The default tag is "latest". The
// scheme is http for loopback hosts, for an http:// server of opts and, with
// PlainHTTP, for every host that is not an https:// server of opts; else
// https. Errors wrap ErrReference.
func ParseReference(s string, opts ReferenceOptions) (Reference, error) {
	server, err := parseServer(opts.Server)
	if err != nil {
		return Reference{}, err
	}
	def, err := parseRegistry(opts.Registry, server, opts.PlainHTTP)
	if err != nil {
		return Reference{}, err
	}
	// Do not repeat a possible user:password@host: errors are logged.
	if _, after, ok := strings.Cut(s, "@"); ok && !strings.HasPrefix(strings.ToLower(after), "sha") {
		return Reference{}, fmt.Errorf("%w: a sha256: digest must follow the @; a reference cannot contain credentials, use docker login", ErrReference)
	}
	bad := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("%w %q: %s", ErrReference, clip(s), why)
	}
	ref := Reference{Scheme: def.scheme, Host: def.host}
	rest := def.path + s
	if host, path, ok := splitHost(s); ok {
		if !validHost(host) {
			return bad("the host is not host[:port]")
		}
		rest = path
		ref.Host = strings.ToLower(host)
		ref.Scheme = schemeFor(ref.Host, server, opts.PlainHTTP)
	}
	if at := strings.IndexByte(rest, '@'); at >= 0 {
		rest, ref.Digest = rest[:at], rest[at+1:]
		if !digests.Valid(ref.Digest) {
			return bad("the digest is not sha256: and 64 lower-case hex digits")
		}
	}
	if colon := strings.LastIndexByte(rest, ':'); colon >= 0 {
		rest, ref.Tag = rest[:colon], rest[colon+1:]
		if !validTag(ref.Tag) {
			return bad("the tag has characters or a length that tags cannot have")
		}
	}
	if !validRepository(rest) {
		return bad("the repository is not lower-case letters, digits and separators")
	}
	ref.Repository = rest
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = "latest"
	}
	return ref, nil
}

// splitHost splits off a first component that is a host.
func splitHost(s string) (host, rest string, ok bool) {
	slash := strings.IndexByte(s, '/')
	if slash < 0 {
		return "", s, false
	}
	first := s[:slash]
	if first != "localhost" && !strings.ContainsAny(first, ".:") {
		return "", s, false
	}
	return first, s[slash+1:], true
}

// String returns host/repo@digest if there is a digest, else host/repo:tag.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Host + "/" + r.Repository + "@" + r.Digest
	}
	return r.Host + "/" + r.Repository + ":" + r.Tag
}

// Identifier returns the digest, or the tag if there is no digest.
func (r Reference) Identifier() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

// WithDigest returns the reference pinned to a digest.
func (r Reference) WithDigest(digest string) Reference {
	r.Digest = digest
	return r
}

// server is a base URL, reduced to the parts that a client uses.
type server struct{ scheme, host string }

// parseServer parses EPOCH_SERVER's value. Its errors do not repeat the
// value, which may contain a password.
func parseServer(s string) (server, error) {
	if s == "" {
		s = DefaultServer
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return server{}, fmt.Errorf("%w: EPOCH_SERVER is not a URL", ErrReference)
	case u.Scheme != "http" && u.Scheme != "https":
		return server{}, fmt.Errorf("%w: EPOCH_SERVER is neither http:// nor https://", ErrReference)
	case u.User != nil:
		return server{}, fmt.Errorf("%w: EPOCH_SERVER must not hold credentials; use EPOCH_REGISTRY_TOKEN", ErrReference)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return server{}, fmt.Errorf("%w: EPOCH_SERVER must be scheme://host[:port] and nothing more", ErrReference)
	case !validHost(u.Host):
		return server{}, fmt.Errorf("%w: EPOCH_SERVER has no usable host", ErrReference)
	}
	return server{u.Scheme, withPortIfWord(u.Scheme, strings.ToLower(u.Host))}, nil
}

// defaults complete a name without a host.
type defaults struct {
	server
	path string // ends with a slash, or is ""
}

// parseRegistry parses OCI_REGISTRY's value; without one, the server is meant.
// Its errors do not repeat the value, which may contain a password.
func parseRegistry(s string, srv server, plainHTTP bool) (defaults, error) {
	if s == "" {
		return defaults{server: srv}, nil
	}
	host, path, _ := strings.Cut(s, "/")
	path = strings.TrimSuffix(path, "/")
	if !validHost(host) || path != "" && !validRepository(path) {
		return defaults{}, fmt.Errorf("%w: OCI_REGISTRY must be host[:port] or host[:port]/path, without a scheme and without credentials", ErrReference)
	}
	if path != "" {
		path += "/"
	}
	host = strings.ToLower(host)
	scheme := schemeFor(host, srv, plainHTTP)
	return defaults{server{scheme, withPortIfWord(scheme, host)}, path}, nil
}

// withPortIfWord adds the port to a host that is a single word: a printed
// reference must parse to the same host.
func withPortIfWord(scheme, host string) string {
	if host == "localhost" || strings.ContainsAny(host, ".:") {
		return host
	}
	return host + ":" + defaultPort(scheme)
}

// schemeFor returns the scheme for an explicit host.
func schemeFor(host string, srv server, plainHTTP bool) string {
	switch {
	case withPort(srv.scheme, srv.host) == withPort(srv.scheme, host):
		return srv.scheme
	case plainHTTP, isLoopback(host):
		return "http"
	}
	return "https"
}

func validHost(host string) bool {
	if !validHostForm(host) {
		return false
	}
	u, err := url.Parse("//" + host)
	return err == nil && u.Host == host && u.Hostname() != ""
}

func validRepository(name string) bool {
	return len(name) <= maxRepository && validRepositoryForm(name)
}

func defaultPort(scheme string) string {
	if scheme == "http" {
		return "80"
	}
	return "443"
}

// withPort returns the form in which hosts are compared: lower case, with a
// port.
func withPort(scheme, host string) string {
	u := url.URL{Host: host}
	port := u.Port()
	if port == "" {
		port = defaultPort(scheme)
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// isLoopback reports whether host[:port] is this machine. Names under
// .localhost do not count, because resolvers may send them elsewhere.
func isLoopback(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
