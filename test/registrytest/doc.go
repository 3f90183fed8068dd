// Package registrytest starts registries for tests, all on loopback:
// Debian's docker-registry as a process, go-containerregistry's in this
// process, and a Front before either that counts requests and makes the
// faults that networks make.
//
// Particular is a registry in this process that takes uploads only as its
// fields say.
//
// InMemory serves ranges (single ones, not past the end), takes uploads
// of every OCI kind, keeps all in memory and checks digests. It takes one
// upload body at a time.
package registrytest
