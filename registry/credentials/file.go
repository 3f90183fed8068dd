package credentials

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cocoonstack/epochfs/internal/text"
)

// maxFile bounds the bytes read from a file.
const maxFile = 4 << 20

// FileError is the error of a file, or of an entry in it, that cannot be
// used.
type FileError struct {
	File   string
	Reason string
	Err    error // nil if the contents are wrong
}

// Error returns the file's name and what is wrong with it.
func (e *FileError) Error() string { return text.Line(e.File) + " " + text.Line(e.Reason) }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// file is a parsed config.json or auth.json. Its keys are normalized.
type file struct {
	path    string
	auths   map[string]json.RawMessage
	helpers map[string]string // suffix of the program by key
	store   string            // suffix of the helper for all other hosts
}

// read parses the location's file. Only a file that the user named must exist.
func (l location) read() (*file, error) {
	raw := l.text
	if raw == nil {
		var err error
		raw, err = readFile(l.path)
		if errors.Is(err, fs.ErrNotExist) && !l.named || errors.Is(err, syscall.ENOTDIR) && !l.named {
			return &file{path: l.path}, nil
		}
		if err != nil {
			return nil, &FileError{l.path, "cannot be read: " + reason(err), err}
		}
	}
	return parse(l.path, raw)
}

// reason returns err without the path, which the message already names.
func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

func readFile(path string) ([]byte, error) {
	// A pipe without a writer must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if len(raw) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return raw, err
}

// parse parses the contents of a file. Its errors do not quote the
// decoder's, which may contain a secret.
func parse(path string, raw []byte) (*file, error) {
	f := &file{path: path, auths: map[string]json.RawMessage{}, helpers: map[string]string{}}
	var doc struct {
		Auths   map[string]json.RawMessage `json:"auths"`
		Helpers map[string]string          `json:"credHelpers"`
		Store   string                     `json:"credsStore"`
	}
	switch {
	case len(bytes.TrimSpace(raw)) == 0:
		return f, nil
	case bytes.HasPrefix(raw, []byte("\xef\xbb\xbf")):
		return nil, &FileError{path, "begins with a byte order mark (BOM), which JSON must not have: save it as UTF-8 without one", nil}
	case bytes.HasPrefix(raw, []byte("\xff\xfe")), bytes.HasPrefix(raw, []byte("\xfe\xff")):
		return nil, &FileError{path, "begins with a byte order mark (BOM) of UTF-16: save it as UTF-8", nil}
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&doc); err != nil {
		return nil, &FileError{path, "is not valid: " + whatIsWrong(raw, err), nil}
	}
	for _, key := range byPlainness(doc.Auths) {
		if k := normal(key); isEmptyEntry(f.auths[k]) {
			f.auths[k] = doc.Auths[key]
		}
	}
	for _, key := range byPlainness(doc.Helpers) {
		if k := normal(key); f.helpers[k] == "" {
			f.helpers[k] = doc.Helpers[key]
		}
	}
	f.store = doc.Store
	return f, nil
}

// byPlainness returns the keys of m, normalized ones first.
func byPlainness[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if plain := normal(a) == a; plain != (normal(b) == b) {
			if plain {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return keys
}

// whatIsWrong describes a syntax error and the line it is in.
func whatIsWrong(raw []byte, err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		at := min(max(syntax.Offset-1, 0), int64(len(raw)-1))
		before := bytes.TrimSpace(raw[:at])
		if (raw[at] == '}' || raw[at] == ']') && bytes.HasSuffix(before, []byte(",")) {
			return fmt.Sprintf("line %d has a trailing comma, after which JSON wants another value", line(raw, int64(len(before))))
		}
		return fmt.Sprintf("line %d is not JSON", line(raw, at))
	case errors.As(err, &kind):
		return fmt.Sprintf("line %d has a value of the wrong type", line(raw, kind.Offset))
	}
	return "the JSON ends too early"
}

// line returns the number of the line that contains byte off.
func line(raw []byte, off int64) int {
	return 1 + bytes.Count(raw[:min(max(off, 0), int64(len(raw)))], []byte("\n"))
}

// normal normalizes a key to host or host/path. URLs, as older programs
// wrote them, stand for their host.
func normal(key string) string {
	if _, rest, isURL := strings.Cut(key, "://"); isURL {
		host, _, _ := strings.Cut(rest, "/")
		return strings.ToLower(host)
	}
	host, path, _ := strings.Cut(strings.TrimRight(key, "/"), "/")
	host = strings.ToLower(host)
	if path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}

// entry returns the credentials under a key, or empty ones.
func (f *file) entry(key string) (Credentials, error) {
	raw, ok := f.auths[key]
	if !ok || isEmptyEntry(raw) {
		return Credentials{}, nil
	}
	bad := func(why string) (Credentials, error) {
		return Credentials{}, &FileError{f.path, "has an entry for " + key + " that cannot be used: " + why, nil}
	}
	var e struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if json.Unmarshal(raw, &e) != nil {
		return bad("its values are not texts")
	}
	c := Credentials{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		pair, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(e.Auth), "="))
		if err != nil {
			return bad("auth is not base64")
		}
		name, password, ok := strings.Cut(string(pair), ":")
		if !ok {
			return bad("auth is not base64 of name:password")
		}
		c.Username, c.Password = name, strings.Trim(password, "\x00")
	}
	c.Source = text.Line(f.path)
	if strings.Contains(key, "/") {
		c.Source += " (" + text.Line(key) + ")"
	}
	return c.withToken(), nil
}

// isEmptyEntry reports whether an entry holds nothing. Docker leaves such
// entries for credentials that a helper keeps.
func isEmptyEntry(raw json.RawMessage) bool {
	switch string(bytes.Join(bytes.Fields(raw), nil)) {
	case "", "{}", "null":
		return true
	}
	return false
}

// withToken moves an identity token to its field: docker stores it as the
// password of a user with this name.
func (c Credentials) withToken() Credentials {
	if c.Username == tokenUser && c.IdentityToken == "" {
		c.IdentityToken, c.Password = c.Password, ""
	}
	if c.Username == tokenUser {
		c.Username = ""
	}
	return c
}

const tokenUser = "<token>"

// check decodes all entries.
func (f *file) check() []error {
	var failed []error
	for _, key := range byPlainness(f.auths) {
		if _, err := f.entry(key); err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}
