// Package digests computes, formats and parses the digests that name blobs
// and manifests: "sha256:" and 64 hex digits in lower case. Every registry
// and tool that epochfs works with uses this form; no other one is accepted.
package digests

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strings"
)

const prefix = "sha256:"

// Empty is the digest of no bytes.
const Empty = prefix + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Of returns the digest of data.
func Of(data []byte) string { return Format(sha256.Sum256(data)) }

// OfHash returns the digest of the bytes that were written to h, a SHA-256
// hash. It does not change h.
func OfHash(h hash.Hash) string { return prefix + hex.EncodeToString(h.Sum(nil)) }

// Format returns the digest with the given sum.
func Format(sum [sha256.Size]byte) string { return prefix + hex.EncodeToString(sum[:]) }

// Parse returns the sum in a digest. It reports false for anything but
// the form that Format returns.
func Parse(s string) (sum [sha256.Size]byte, ok bool) {
	digits, ok := Hex(s)
	if !ok {
		return sum, false
	}
	n, err := hex.Decode(sum[:], []byte(digits))
	return sum, err == nil && n == len(sum)
}

// Hex returns the hex digits of a digest, which are safe as a file name.
// It reports false for anything but the form that Format returns.
func Hex(s string) (digits string, ok bool) {
	digits, ok = strings.CutPrefix(s, prefix)
	if !ok || len(digits) != hex.EncodedLen(sha256.Size) || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", false
	}
	return digits, true
}

// FromHex returns the digest with hex digits from Hex.
func FromHex(digits string) string { return prefix + digits }

// HasPrefix reports whether a reference begins as a digest does. No tag
// does, because a tag has no colon.
func HasPrefix(ref string) bool { return strings.HasPrefix(ref, prefix) }

// Valid reports whether s has the form that Format returns.
func Valid(s string) bool {
	_, ok := Hex(s)
	return ok
}
