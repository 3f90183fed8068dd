package snapshot

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// maxName bounds a file name, in bytes, as Linux does.
const maxName = 255

// checkName returns an error unless name is safe as a file name in a
// directory, in a tar and on a terminal.
func checkName(name string) error {
	switch {
	case name == "":
		return wrong("a layer has no file name (annotation %s)", manifest.AnnotationTitle)
	case len(name) > maxName:
		return wrong("file name of %d bytes, at most %d", len(name), maxName)
	case name == "." || name == ".." || strings.Contains(name, "/"):
		return wrong("%q is not a plain file name", name)
	case !printable(name):
		return wrong("file name %q has forbidden characters", name)
	case name == EnvelopeName:
		return wrong("a layer is called %s, which is the envelope's name", EnvelopeName)
	}
	return nil
}

// printable reports whether s is UTF-8 of letters, marks, digits,
// punctuation and plain spaces: without control characters, and without
// characters that are invisible or change the direction of text.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// checkDigest returns an error unless s is a digest.
func checkDigest(s string) error {
	if !digests.Valid(s) {
		return wrong("%q is not a sha256 digest", s)
	}
	return nil
}

// checkDescriptor validates a descriptor's digest and size.
func checkDescriptor(d *manifest.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > sparse.MaxSize {
		return wrong("blob %s has size %d", d.Digest, d.Size)
	}
	if d.Size == 0 && d.Digest != digests.Empty {
		return wrong("blob %s has size 0", d.Digest)
	}
	return nil
}
