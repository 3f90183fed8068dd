// Package hosts reads which hosts may stand in for a registry, by
// containerd's convention: a directory HOST/hosts.toml below one of a few
// places, or _default/hosts.toml for every registry without its own.
//
// Where there is no hosts.toml, certificates HOST/*.crt are trusted for the
// registry itself, by docker's convention.
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

// Places are the directories looked into where nobody names one, in order.
func Places() []string { return []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"} }

// Host is one place where a registry's content can be had.
type Host struct {
	Scheme string // "http" or "https"
	Host   string // host[:port]
	Path   string // of the API, "/v2" where nothing else was said; no slash at the end

	Pull    bool // manifests by digest, and blobs
	Resolve bool // what a tag stands for

	CA         []string // PEM files with root certificates
	SkipVerify bool     // take any certificate

	Header http.Header // goes with every request to the host; nil for none
}

// Config is what is known of a registry.
type Config struct {
	File    string   // where it stands; "" where there is none
	Mirrors []Host   // in the order in which they are to be asked
	Server  *Host    // instead of the registry's own host; nil for that
	Unknown []string // keys that were not understood, and have no effect
}

// maxFile bounds a hosts.toml, in bytes.
const maxFile = 256 << 10

// Lookup reads the configuration of the registry at host[:port]. The first
// of the places decides that has a directory for it, or a _default. A
// configuration with nothing in it is returned where there is
// none; one that cannot be understood is an error, for it may be what
// keeps traffic away from the registry.
func Lookup(places []string, host string) (*Config, error) {
	for _, place := range places {
		for _, name := range names(host) {
			c, err := read(filepath.Join(place, name), host)
			if c != nil || err != nil {
				return c, err
			}
		}
	}
	return &Config{}, nil
}

// names are those that a host's directory can have, in order.
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

// read reads one directory; nil where there is none, or nothing in it.
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

// certificates is docker's form of a directory.
func certificates(dir, host string) (*Config, error) {
	files, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.crt"))
	if err != nil || len(files) == 0 || filepath.Base(dir) == "_default" {
		return nil, err
	}
	server := &Host{Scheme: "https", Host: host, Path: "/v2", Pull: true, Resolve: true, CA: files}
	return &Config{File: dir, Server: server}, nil
}

// escapeGlob makes a path match itself only.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `[`, `\[`, `*`, `\*`, `?`, `\?`).Replace(path)
}
