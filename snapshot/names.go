package snapshot

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// maxName is the longest file name that Linux takes, in bytes.
const maxName = 255

// checkName accepts what is safe as a file's name in a directory, in a
// tar and on a terminal.
func checkName(name string) error {
	switch {
	case name == "":
		return wrong("a layer has no file name (annotation %s)", manifest.AnnotationTitle)
	case len(name) > maxName:
		return wrong("file name of %d bytes, at most %d", len(name), maxName)
	case name == "." || name == ".." || strings.Contains(name, "/"):
		return wrong("%q is not a plain file name", name)
	case !printable(name):
		return wrong("file name %q has characters that must not be", name)
	case name == EnvelopeName:
		return wrong("a layer is called %s, which is the envelope's name", EnvelopeName)
	}
	return nil
}

// printable says that s is UTF-8 of letters, marks, digits, punctuation
// and plain blanks: no control characters, nothing invisible, nothing
// that turns text around.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isDigest says that a reference is a digest and not a tag.
func isDigest(s string) bool { return strings.HasPrefix(s, "sha256:") }

// checkDigest accepts sha256 in lower-case hex, which is what every
// registry and tool here uses.
func checkDigest(s string) error {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return wrong("%q is not a sha256 digest", s)
	}
	return nil
}

// checkDescriptor looks at what every descriptor must have.
func checkDescriptor(d *manifest.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > sparse.MaxSize {
		return wrong("blob %s has size %d", d.Digest, d.Size)
	}
	if d.Size == 0 && d.Digest != emptyDigest {
		return wrong("blob %s has size 0", d.Digest)
	}
	return nil
}

// emptyDigest is the sha256 of nothing.
const emptyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
