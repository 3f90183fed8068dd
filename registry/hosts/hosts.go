// Package hosts reads which mirrors a registry has, by containerd's
// convention: a directory HOST/hosts.toml below one of a few directories, or
// _default/hosts.toml for every registry without its own.
//
// Without a hosts.toml, certificates HOST/*.crt are trusted for the registry
// itself, by docker's convention.
package hosts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// Dirs returns the default configuration directories, in order.
func Dirs() []string { return []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"} }

// Host is a server with a registry's content: a mirror, or the registry
// itself.
type Host struct {
	Scheme string // "http" or "https"
	Host   string // host[:port]
	Path   string // of the API, "/v2" by default; without a trailing slash

	Pull    bool // serves manifests by digest, and blobs
	Resolve bool // resolves tags

	CA         []string // PEM files with root certificates
	SkipVerify bool     // accept any certificate

	Header http.Header // sent with every request to the host; or nil
}

// Config is the configuration of a registry.
type Config struct {
	File    string   // its file; "" if there is none
	Mirrors []Host   // in the order of use
	Server  *Host    // replaces the registry's own host; or nil
	Unknown []string // unknown keys, which have no effect
}

// maxFile bounds a hosts.toml, in bytes.
const maxFile = 256 << 10

// Lookup reads the configuration of the registry at host[:port], from the
// first of dirs that has a directory for the host, or a _default. It
// returns an empty Config if there is none. A file that cannot be understood
// is an error, because it may be meant to keep traffic away from the
// registry.
func Lookup(dirs []string, host string) (*Config, error) {
	for _, dir := range dirs {
		for _, name := range names(host) {
			c, err := read(filepath.Join(dir, name), host)
			if c != nil || err != nil {
				return c, err
			}
		}
	}
	return &Config{}, nil
}

// names returns the possible names of a host's directory, in order.
func names(host string) []string {
	var all []string
	if i := strings.LastIndexByte(host, ':'); i > 0 && !strings.HasSuffix(host, "]") {
		all = append(all, host[:i]+"_"+host[i+1:]+"_")
	}
	if !strings.ContainsAny(host, `/\`) {
		all = append(all, host)
	}
	return append(all, "_default")
}

// read reads one directory. It returns nil if there is none, or if it is
// empty.
func read(dir, host string) (*Config, error) {
	file := filepath.Join(dir, "hosts.toml")
	raw, err := readFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return certificates(dir, host)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	c, err := Parse(raw, dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c.File = file
	return c, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(raw) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	return raw, err
}

// certificates reads a directory by docker's convention.
func certificates(dir, host string) (*Config, error) {
	files, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.crt"))
	if err != nil || len(files) == 0 || filepath.Base(dir) == "_default" {
		return nil, err
	}
	server := &Host{Scheme: "https", Host: host, Path: "/v2", Pull: true, Resolve: true, CA: files}
	return &Config{File: dir, Server: server}, nil
}

// escapeGlob escapes a path so that it matches only itself.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `[`, `\[`, `*`, `\*`, `?`, `\?`).Replace(path)
}
