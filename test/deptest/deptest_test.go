// Package deptest pins which package may import which.
package deptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cocoonstack/epochfs"

// allowed are the packages of this module that each may import, not in
// tests. Imports go downwards only; a package that is not here is an
// error, so that a new one gets its place by decision.
var allowed = map[string][]string{
	// Leaves: each knows one thing, and others build on it.
	"cocoon":              nil,
	"registry/hosts":      nil,
	"snapshot/manifest":   nil,
	"snapshot/sparse":     nil,
	"internal/control":    nil,
	"internal/crashpoint": nil,
	"internal/digests":    nil,
	"internal/keeper":     nil,
	"internal/mounts":     nil,
	"internal/text":       nil,
	"internal/transport":  nil,
	"internal/whole":      nil,
	"internal/zstdframe":  nil,

	// Files and helpers of docker and podman. It sends nothing.
	"registry/credentials": {"internal/text"},

	// Implements interfaces of snapshot and cache without knowing them.
	"registry": {"internal/digests", "registry/credentials", "registry/hosts"},

	// The form of a parsed artifact, and its parser. No HTTP, no FUSE: it
	// is a library for whoever has a Downloader.
	"snapshot/packed": {"internal/zstdframe", "snapshot/sparse"},
	"snapshot/layout": {"internal/digests", "snapshot/packed", "snapshot/sparse"},
	"snapshot":        {"cocoon", "internal/digests", "internal/whole", "internal/zstdframe", "snapshot/layout", "snapshot/manifest", "snapshot/packed", "snapshot/sparse"},

	// Which pages are wanted after a start: a hint, and how it is written.
	"internal/workingset": {"internal/zstdframe"},

	// The cache asks an interface for bytes: no registry, no FUSE.
	"cache": {
		"cache/internal/buffers", "cache/internal/disk", "cache/internal/inventory", "cache/internal/overlay", "cache/internal/quota", "cache/internal/readahead",
		"internal/crashpoint", "internal/digests", "internal/transport", "internal/zstdframe", "snapshot/layout", "snapshot/packed",
	},
	// Its rooms. What lies on disk knows no fetching, and who measures or
	// lists it knows nothing else.
	"cache/internal/buffers":   nil,
	"cache/internal/readahead": nil,
	"cache/internal/overlay":   nil,
	"cache/internal/disk":      {"cache/internal/buffers", "internal/crashpoint", "internal/digests", "snapshot/layout", "snapshot/packed", "snapshot/sparse"},
	"cache/internal/quota":     {"cache/internal/disk"},
	"cache/internal/inventory": {"cache/internal/buffers", "cache/internal/disk", "internal/digests", "snapshot/layout"},
	// The tree asks an interface for contents: no registry, no cache.
	"fs": {"internal/crashpoint", "snapshot/sparse"},

	// Payloads in order, straight from the same kind of interface.
	"internal/direct": {"internal/digests", "internal/transport", "internal/zstdframe", "snapshot/layout", "snapshot/packed"},

	// Guests' disks: hostile bytes in, files out. No HTTP, no paths.
	"internal/guestfs/vfs":     nil,
	"internal/guestfs/ext4":    {"internal/guestfs/vfs"},
	"internal/guestfs/fat":     {"internal/guestfs/vfs"},
	"internal/guestfs/ntfs":    {"internal/guestfs/vfs"},
	"internal/guestfs/qcow2":   {"internal/guestfs/vfs"},
	"internal/guestfs/xfs":     {"internal/guestfs/vfs"},
	"internal/guestfs/volumes": {"internal/guestfs/ext4", "internal/guestfs/vfs"},
	"internal/guestfs": {
		"internal/guestfs/ext4", "internal/guestfs/fat", "internal/guestfs/ntfs", "internal/guestfs/qcow2",
		"internal/guestfs/vfs", "internal/guestfs/volumes", "internal/guestfs/xfs",
	},

	// Looks into guests' disks: the parent's half parses nothing, the child's
	// half and the parsers run in a sandbox.
	"internal/sandbox":       nil,
	"internal/inside/wire":   nil,
	"internal/inside":        {"internal/guestfs/vfs", "internal/inside/wire", "internal/sandbox"},
	"internal/inside/reader": {"internal/guestfs", "internal/inside/wire", "internal/sandbox"},

	// Where log lines go.
	"internal/logging": {"internal/text"},

	// Shows what control has to others.
	"internal/metrics": {"internal/control"},

	// Where everything is joined.
	"internal/mounting": {"cache", "fs", "internal/control", "internal/digests", "internal/direct", "internal/whole", "internal/workingset", "registry", "registry/hosts", "snapshot", "snapshot/layout", "snapshot/manifest", "snapshot/sparse"},
	"internal/doctor":   {"cocoon", "fs", "internal/keeper", "internal/mounting", "internal/sandbox", "registry", "registry/credentials", "registry/hosts", "snapshot", "snapshot/layout", "snapshot/manifest"},
	"internal/demo":     nil, // shows the program from outside
	"cmd/epochfs": {
		"cache", "cocoon", "fs", "internal/control", "internal/demo", "internal/digests", "internal/doctor", "internal/keeper", "internal/logging", "internal/metrics", "internal/mounting", "internal/mounts", "registry",
		"internal/guestfs/vfs", "internal/inside", "internal/inside/reader", "internal/sandbox",
		"internal/text", "internal/whole", "internal/workingset", "snapshot", "snapshot/layout", "snapshot/manifest", "snapshot/sparse",
	},

	// For tests.
	"test/artifacttest": {"internal/digests", "snapshot/manifest", "snapshot/sparse"},
	"test/bench":        {"*"}, // measures all of them
	"test/soak":         {"*"}, // tries all of them
	"test/cocoontest":   nil,
	"test/epochlike":    {"internal/digests"},
	"test/faultdisk":    nil,
	"test/guesttest":    {"internal/guestfs/vfs", "test/tier"},
	"test/packedtest":   {"internal/digests", "internal/zstdframe", "snapshot/layout", "snapshot/manifest", "snapshot/packed", "test/artifacttest"},
	"test/registrytest": {"internal/digests", "test/tier"},
	"test/shaping":      nil,
	"test/tier":         nil,
	"test/traces":       {"snapshot/sparse"},
	"test/vm":           nil,
}

// forbidden are packages of others that must not be reached from here,
// however indirectly.
var forbidden = []struct {
	from, prefix, why string
}{
	{"snapshot", "net/http", "a snapshot comes through a Downloader"},
	{"snapshot", "github.com/google/go-containerregistry", "a snapshot comes through a Downloader"},
	{"snapshot", "github.com/hanwen/go-fuse", "a library without FUSE"},
	{"cache", "net/http", "bytes come through a Source"},
	{"internal/transport", "net/http", "bytes come through a Source"},
	{"cache", "github.com/hanwen/go-fuse", "a cache without a mount"},
	{"fs", "net/http", "contents come through an interface"},
	{"fs", "github.com/klauspost/compress", "contents come decoded"},
	{"registry", "github.com/hanwen/go-fuse", "a client without a mount"},
	{"cocoon", "net/http", "it only runs a program"},
	{"internal/keeper", "github.com/", "what keeps a mount alive needs nobody"},
	{"internal/keeper", "net", "what keeps a mount alive needs nobody"},
	{"internal/guestfs", "net", "a guest's disk is read through an Image"},
	{"internal/guestfs", "os/exec", "a guest's disk is read through an Image"},
	{"internal/inside", module + "/internal/guestfs/ext4", "guests' bytes are parsed in a sandbox"},
	{"internal/inside", module + "/internal/guestfs/qcow2", "guests' bytes are parsed in a sandbox"},
	{"internal/inside", module + "/internal/guestfs/volumes", "guests' bytes are parsed in a sandbox"},
	{"internal/inside/reader", "net", "a sandbox has no network"},
	{"snapshot/sparse", "github.com/", "a leaf of the standard library"},
	{"snapshot/manifest", "github.com/", "a leaf of the standard library"},
}

// commandOnly may be imported by cmd/epochfs alone.
var commandOnly = []string{"github.com/spf13/cobra", "github.com/spf13/pflag"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) map[string]listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]listed{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module+"/")] = p
	}
}

func TestImports(t *testing.T) {
	all := list(t)
	for name, p := range all {
		may, known := allowed[name]
		if !known && len(p.Imports) > 0 {
			t.Errorf("package %s has no place yet", name)
		}
		for _, path := range p.Imports {
			ours, isOurs := strings.CutPrefix(path, module+"/")
			if isOurs && !slices.Contains(may, ours) && !slices.Contains(may, "*") {
				t.Errorf("%s may not import %s", name, ours)
			}
			if slices.Contains(commandOnly, path) && name != "cmd/epochfs" {
				t.Errorf("%s may not import %s: only the command line may", name, path)
			}
		}
	}
	for _, f := range forbidden {
		for _, path := range all[f.from].Deps {
			if path == f.prefix || strings.HasPrefix(path, f.prefix) && !strings.HasPrefix(path, module) {
				t.Errorf("%s depends on %s: %s", f.from, path, f.why)
			}
		}
	}
}
