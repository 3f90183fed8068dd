package registrytest

import (
	"io"
	"log"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// NewHandler is an empty registry in memory, as a handler.
func NewHandler() http.Handler {
	return registry.New(registry.Logger(log.New(io.Discard, "", 0)))
}

// InMemory starts an empty registry in this process behind a Front.
func InMemory(t testing.TB) *Front {
	return NewFront(t, NewHandler())
}
