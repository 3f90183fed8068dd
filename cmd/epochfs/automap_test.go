package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/registry"
)

const someDigest = "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestAutomapEntry(t *testing.T) {
	t.Parallel()
	allowed := []string{"registry.example", "registry.example:5000/team", "127.0.0.1:5000", "localhost/a"}
	for name, ref := range map[string]string{
		"registry.example+vm":                          "registry.example/vm",
		"registry.example+team+vm:v1":                  "registry.example/team/vm:v1",
		"registry.example+team+vm@" + someDigest:       "registry.example/team/vm@" + someDigest,
		"registry.example+team+vm:V_1@" + someDigest:   "registry.example/team/vm:V_1@" + someDigest,
		"registry.example+" + strings.Repeat("a", 238): "registry.example/" + strings.Repeat("a", 238),
		"registry.example:5000+team+a_b--c.d:v1":       "registry.example:5000/team/a_b--c.d:v1",
		"registry.example:5000+team":                   "registry.example:5000/team",
		"127.0.0.1:5000+vm:v1":                         "127.0.0.1:5000/vm:v1",
		"localhost+a+b":                                "localhost/a/b",
	} {
		entry, err := automapEntry(name, allowed)
		if want := "-fstype=fuse.epochfs :" + ref; err != nil || entry != want {
			t.Errorf("%s: %q, %v", name, entry, err)
		}
		if _, err := automapEntry(name, nil); !errors.Is(err, errNotFound) {
			t.Errorf("%s is taken although nothing is allowed: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", "*", "/", "&", "-", "--help", "-o", "+", "++", "registry.example", "registry.example+", "+registry.example+vm",
		"registry.example++vm", "registry.example/vm", "registry.example+team/vm", "registry.example+..+vm", "..+registry.example+vm",
		"vm", "vm:v1", "team+vm:v1", "Registry.example+vm", "REGISTRY.EXAMPLE+vm", "registry.example+VM", "user:pass@registry.example+vm",
		"registry.example+vm:", "registry.example+vm@", "registry.example+vm@sha256:abc", "registry.example+vm:v1:v2", "registry.example+vm@" + someDigest + "+x",
		"registry.example+vm:v1 -o allow_other", "registry.example+vm,allow_other", "registry.example+vm:v1\n-fstype=nfs :evil.example/", "registry.example+vm\n",
		"registry.example+vm:v1\x00", "registry.example+vm:$KEY", "registry.example+vm:&", `registry.example+vm:"v1"`, `registry.example+vm:\v1`, "registry.example+vm:'v1'",
		"registry.example+vm#x", "registry.example+vm:v1;id", "registry.example+vm:`id`", "registry.example+vm:v\xff", "registry.example+vm:ｖ1", "[::1]:5000+vm",
		// These are references, of what is not allowed.
		"other.example+vm", "registry.example.evil+vm", "registry.example:5001+team", "registry.example:5000+teammate", "registry.example:5000+vm", "127.0.0.1:50000+vm", "localhost+ab",
		"registry.example+vm:" + strings.Repeat("v", 129), "registry.example+" + strings.Repeat("a", 256), strings.Repeat("x", 1<<20),
	} {
		if entry, err := automapEntry(name, allowed); !errors.Is(err, errNotFound) || entry != "" {
			t.Errorf("%q: %q, %v", name[:min(len(name), 80)], entry, err)
		}
	}
}

func TestAllowList(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "list")
	if list, err := readAllowList(name); list != nil || err != nil {
		t.Error(list, err)
	}
	text := "# comment\n\n  registry.example \nregistry.example:5000/team/ # ours\n\t\n/\n#x.example\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := readAllowList(name); !slices.Equal(list, []string{"registry.example", "registry.example:5000/team"}) || err != nil {
		t.Error(list, err)
	}
	installed, err := readAllowList("../../packaging/autofs/autofs.allow")
	if len(installed) != 0 || err != nil {
		t.Error("the list that is installed is not empty:", installed, err)
	}
}

// Whatever the name, it is refused or means one reference, and the entry has
// nothing else of it.
func FuzzAutomap(f *testing.F) {
	for _, name := range []string{"registry.example+team+vm:v1", "registry.example+vm@" + someDigest, "a.b+c\n", "..", "x:1+y -o z"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ref, err := referenceOfName(name)
		if err != nil {
			return
		}
		entry, err := automapEntry(name, []string{ref.Host})
		fields := strings.Fields(entry)
		if err != nil || len(fields) != 2 || strings.ContainsAny(fields[1], "\"'\\$&#,;*[] \n") {
			t.Fatalf("%q: %q, %v", name, entry, err)
		}
		again, err := registry.ParseReference(strings.TrimPrefix(fields[1], ":"), registry.ReferenceOptions{Server: "https://elsewhere.example"})
		if err != nil || again.Host != ref.Host || again.Repository != ref.Repository || again.Tag != ref.Tag || again.Digest != ref.Digest {
			t.Fatalf("%q: %+v, %+v, %v", name, ref, again, err)
		}
	})
}
