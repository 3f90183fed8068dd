// Package registry is a client of one OCI registry: manifests, blobs, ranges
// of blobs, uploads.
//
// It sends each request without credentials first and authenticates when the
// registry asks for it; it remembers the challenge for each repository. It
// chooses the scheme itself (see ParseReference), and uses plain HTTP only
// for loopback and for hosts where that is allowed. It sends credentials to
// the registry they belong to and to the token endpoint that the registry
// names, never along with a redirect. If a registry refuses without a
// challenge, it gets credentials only over TLS or on this machine.
//
// Every answer is treated as hostile: bodies are bounded, headers are
// checked, and a body that stalls ends with an error. Errors are *Error;
// their Temporary method reports whether another try is worthwhile, and
// errors.Is with ErrNotFound, ErrDenied, ErrUnreachable and ErrContent
// identifies the kind.
//
// Small requests that can be repeated (manifests, tokens, HEAD) are quickly
// tried again a few times. Streams are not: their readers know how far they
// came.
package registry
