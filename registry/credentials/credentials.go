// Package credentials finds the credentials that a user has stored for a
// registry: in docker's config file, with the credential helpers that it
// names, and in podman's auth files. It sends nothing and writes nothing.
//
// Its errors name the file, the helper, the helper's exit code and its
// output for people. They never contain a secret from a file or a helper.
package credentials

import (
	"context"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Credentials are the credentials that one location holds for a registry.
type Credentials struct {
	Username      string
	Password      string
	IdentityToken string // exchanged for an access token; not a password
	RegistryToken string // sent to the registry as it is
	Source        string // where they were found, for messages
}

// Empty reports whether there is nothing to authenticate with.
func (c Credentials) Empty() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// Store looks up credentials in the locations that the environment names. It
// reads them again for each lookup. Its zero value is ready to use.
type Store struct {
	Pause time.Duration       // before a failed helper is run again; 0 for 200 ms
	Env   func(string) string // nil for os.Getenv
}

// Lookup returns the credentials for a repository on a host. It tries
// docker's locations before podman's; within a location the entry with the longest
// path wins: host/team/vm, host/team, host. Lookup skips a location that cannot
// be read, and returns its error even if another location has credentials.
func (s *Store) Lookup(ctx context.Context, host, repository string) (Credentials, error) {
	var failed []error
	for _, p := range s.locations() {
		f, err := p.read()
		if err != nil {
			failed = append(failed, err)
			continue
		}
		c, errs := s.inFile(ctx, f, host, repository)
		failed = append(failed, errs...)
		if !c.Empty() {
			return c, joined(failed)
		}
	}
	return Credentials{}, joined(failed)
}

// Check reads all files and returns their errors. It runs no helper.
func (s *Store) Check() error {
	var failed []error
	for _, p := range s.locations() {
		f, err := p.read()
		if err != nil {
			failed = append(failed, err)
			continue
		}
		failed = append(failed, f.check()...)
	}
	return joined(failed)
}

// inFile looks into one file and runs the helpers that it names.
func (s *Store) inFile(ctx context.Context, f *file, host, repository string) (Credentials, []error) {
	var failed []error
	for _, path := range prefixes(repository) {
		for _, alias := range aliases(host) {
			key := strings.TrimSuffix(alias+"/"+path, "/")
			helper, named := f.helpers[key]
			if !named && path == "" && alias == host {
				helper = f.store
			}
			if helper != "" {
				c, err := s.ask(ctx, f, helper, serverName(key))
				if err != nil {
					failed = append(failed, err)
				}
				if !c.Empty() {
					return c, failed
				}
			}
			if c, err := f.entry(key); err != nil {
				failed = append(failed, err)
			} else if !c.Empty() {
				return c, failed
			}
		}
	}
	return Credentials{}, failed
}

// prefixes returns a repository and its parents, longest first, ending with
// "".
func prefixes(repository string) []string {
	all := []string{}
	for repository != "" {
		all = append(all, repository)
		repository = repository[:max(0, strings.LastIndexByte(repository, '/'))]
	}
	return append(all, "")
}

// hub is the host that Docker Hub's credentials are kept under.
const hub = "index.docker.io"

// aliases returns the names under which a host's credentials may be stored.
func aliases(host string) []string {
	switch host {
	case hub, "docker.io", "registry-1.docker.io":
		return []string{hub, "docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

// serverName returns the name that a helper is asked for.
func serverName(key string) string {
	if key == hub {
		return "https://" + hub + "/v1/"
	}
	return key
}

// location is a file that may hold credentials, or the contents of one.
type location struct {
	path  string
	named bool   // the user named this very file: it must exist
	text  []byte // contents of a file; nil to read path
}

func (s *Store) env(name string) string {
	if s.Env != nil {
		return s.Env(name)
	}
	return os.Getenv(name)
}

// locations returns all files to look into, in order.
func (s *Store) locations() []location {
	var all []location
	add := func(dir string, names ...string) {
		if dir != "" {
			all = append(all, location{path: filepath.Join(append([]string{dir}, names...)...)})
		}
	}
	if text := s.env("DOCKER_AUTH_CONFIG"); text != "" {
		all = append(all, location{path: "DOCKER_AUTH_CONFIG", text: []byte(text)})
	}
	if dir := s.env("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(s.home(), ".docker", "config.json")
	}
	if path := s.env("REGISTRY_AUTH_FILE"); path != "" {
		return append(all, location{path: path, named: true}) // podman reads no other file then
	}
	if dir := s.env("XDG_RUNTIME_DIR"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add("/run/containers", strconv.Itoa(os.Getuid()), "auth.json")
	}
	if dir := s.env("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add(s.home(), ".config", "containers", "auth.json")
	}
	return all
}

// home returns the user's home directory, or "".
func (s *Store) home() string {
	if dir := s.env("HOME"); dir != "" {
		return dir
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

// joined joins errors into one, on one line.
func joined(all []error) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return &several{all}
}

type several struct{ all []error }

func (s *several) Error() string {
	texts := make([]string, len(s.all))
	for i, err := range s.all {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (s *several) Unwrap() []error { return s.all }

// MissingHelper returns the first helper in err that is not installed, or "".
func MissingHelper(err error) string {
	var many *several
	if errors.As(err, &many) {
		for _, err := range many.all {
			if name := MissingHelper(err); name != "" {
				return name
			}
		}
		return ""
	}
	var e *HelperError
	if errors.As(err, &e) && e.Missing {
		return e.Helper
	}
	return ""
}
