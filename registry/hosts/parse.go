package hosts

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// ErrInvalid is wrapped by errors about a hosts.toml that cannot be
// understood.
var ErrInvalid = errors.New("invalid hosts.toml")

const (
	maxMirrors = 32
	maxCA      = 16 // files per host
	maxUnknown = 8
)

// text is the section of a host. The same keys at the top level configure
// the server.
type text struct {
	Capabilities []string `toml:"capabilities"`
	CA           any      `toml:"ca"` // a string or a list
	SkipVerify   bool     `toml:"skip_verify"`
	OverridePath bool     `toml:"override_path"`

	Header map[string]any `toml:"header"` // strings or lists
}

type document struct {
	text
	Server string          `toml:"server"`
	Host   map[string]text `toml:"host"`
}

// Parse reads a hosts.toml. Paths in it are relative to dir. Errors wrap
// ErrInvalid.
func Parse(raw []byte, dir string) (*Config, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrInvalid, maxFile)
	}
	if err := checkDepth(raw); err != nil {
		return nil, err
	}
	var doc document
	meta, err := toml.Decode(string(raw), &doc)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, position(err))
	}
	c := &Config{}
	for _, key := range order(meta) {
		if len(c.Mirrors) == maxMirrors {
			return nil, fmt.Errorf("%w: more than %d hosts", ErrInvalid, maxMirrors)
		}
		part := doc.Host[key]
		h, err := part.host(key, dir)
		if err != nil {
			return nil, err
		}
		c.Mirrors = append(c.Mirrors, *h)
	}
	if doc.Server != "" {
		if c.Server, err = doc.text.host(doc.Server, dir); err != nil {
			return nil, err
		}
	}
	for _, key := range meta.Undecoded() {
		if len(c.Unknown) < maxUnknown {
			c.Unknown = append(c.Unknown, key.String())
		}
	}
	return c, nil
}

// maxDepth bounds the nesting of arrays and tables: the parser recurses.
const maxDepth = 64

func checkDepth(raw []byte) error {
	depth := 0
	for _, b := range raw {
		switch b {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(0, depth-1)
		}
		if depth > maxDepth {
			return fmt.Errorf("%w: nested too deeply", ErrInvalid)
		}
	}
	return nil
}

// position returns where the parser failed. The parser's own message may
// quote the file.
func position(err error) string {
	var p toml.ParseError
	if errors.As(err, &p) {
		return fmt.Sprintf("line %d cannot be understood", p.Position.Line)
	}
	return "a value has the wrong type"
}

// order returns the hosts' keys in the order of the file.
func order(meta toml.MetaData) []string {
	var keys []string
	for _, k := range meta.Keys() {
		if len(k) >= 2 && k[0] == "host" && !slices.Contains(keys, k[1]) {
			keys = append(keys, k[1])
		}
	}
	return keys
}

// host parses the section of one host.
func (t *text) host(key, dir string) (*Host, error) {
	h, err := parseURL(key, t.OverridePath)
	if err != nil {
		return nil, err
	}
	h.SkipVerify = t.SkipVerify
	h.Pull, h.Resolve = t.Capabilities == nil, t.Capabilities == nil
	for _, c := range t.Capabilities {
		switch c {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push":
		default:
			return nil, fmt.Errorf("%w: %s: capabilities are pull, resolve and push", ErrInvalid, h.Host)
		}
	}
	if h.CA, err = paths(t.CA, dir); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, h.Host, err)
	}
	if h.Header, err = header(t.Header); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, h.Host, err)
	}
	return h, nil
}

// maxHeader bounds the header values of one host.
const maxHeader = 32

// kept are headers of the request itself, which the file cannot set.
var kept = []string{
	"Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "Expect", "Host", "Range", "Te",
	"Trailer", "Transfer-Encoding", "Upgrade",
}

// header parses the headers of a host. Its errors repeat no value.
func header(all map[string]any) (http.Header, error) {
	var h http.Header
	for key, v := range all {
		values, err := list(v)
		if err != nil || !validName(key) || slices.Contains(kept, http.CanonicalHeaderKey(key)) {
			return nil, errors.New("a header is invalid or must not be set")
		}
		for _, value := range values {
			if !validValue(value) || len(h) == maxHeader {
				return nil, errors.New("a header's value is invalid, or there are too many")
			}
			if h == nil {
				h = http.Header{}
			}
			h.Add(key, value)
		}
	}
	return h, nil
}

// parseURL parses [scheme://]host[:port][/path].
func parseURL(s string, override bool) (*Host, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: a host is not a URL", ErrInvalid)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%w: a host is neither http:// nor https://", ErrInvalid)
	case u.User != nil:
		return nil, fmt.Errorf("%w: a host must not hold credentials", ErrInvalid)
	case u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return nil, fmt.Errorf("%w: a host must be scheme://host[:port][/path] and nothing more", ErrInvalid)
	}
	h := &Host{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimRight(u.Path, "/")}
	if !override && !strings.HasSuffix(h.Path, "/v2") {
		h.Path += "/v2"
	}
	return h, nil
}

// paths parses a path or a list of paths.
func paths(v any, dir string) ([]string, error) {
	names, err := list(v)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if len(names) > maxCA {
		return nil, fmt.Errorf("more than %d ca files", maxCA)
	}
	var files []string
	for _, name := range names {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		files = append(files, name)
	}
	return files, nil
}

// list parses a string or a list of strings, none of them empty.
func list(v any) ([]string, error) {
	var all []any
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []any:
		all = v
	default:
		all = []any{v}
	}
	var texts []string
	for _, v := range all {
		text, ok := v.(string)
		if !ok || text == "" {
			return nil, errors.New("it must be a string or a list of strings")
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// validName reports whether name can be the name of a header.
func validName(name string) bool {
	return name != "" && len(name) <= 128 && !strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", r)
	})
}

// validValue reports whether value can be the value of a header.
func validValue(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r >= 0x7f })
}
