// Package registry is a client of one OCI registry: manifests, blobs,
// ranges of blobs, uploads.
//
// It sends the plain request first and authenticates when it is told to;
// what a registry asked for is remembered for each repository. It chooses
// the scheme by itself (see ParseReference), and nothing of it goes over
// plain HTTP to a host that is neither loopback nor allowed. Credentials
// go to the registry they belong to and to the token endpoint it names,
// never along with a redirect. A registry that refuses without asking for
// any gets them over TLS or on this machine only.
//
// Whatever a registry answers is taken for hostile: bodies are bounded,
// headers are checked, and a body that stops moving ends with an error.
// Errors are *Error; their Temporary method tells what is worth another
// try, and errors.Is with ErrNotFound, ErrDenied, ErrUnreachable and
// ErrContent tells what it was.
//
// Calls that are small and can be repeated (manifests, tokens, HEAD) are
// tried again a few times, quickly. Streams are not: who reads them knows
// how far it came.
package registry
