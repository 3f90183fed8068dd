package mounting

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/registry/hosts"
)

// Hosts returns the mirrors and other settings of the reference's registry.
func (c *Config) Hosts(ref registry.Reference) (*hosts.Config, error) {
	return hosts.Lookup(slices.Concat(c.HostsDirs, hosts.Dirs()), ref.Host)
}

// Client returns a client of one host: h, or ref's own if h is nil; without
// credentials if anonymous is set.
func (c *Config) Client(ref registry.Reference, h *hosts.Host, anonymous bool) (*registry.Mirrors, error) {
	opts := c.options()
	if anonymous {
		opts.EpochToken, opts.Keychain = "", nobody{}
	}
	return registry.NewMirrors(ref, &hosts.Config{Server: h}, opts)
}

// nobody is a keychain without credentials.
type nobody struct{}

func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

const (
	// mostTags bounds the tags that an error names.
	mostTags = 8
	// tagsPatience bounds the wait for a list of tags, which is only for an
	// error message.
	tagsPatience = 5 * time.Second
)

// WithTags adds the existing tags to the error about a missing one.
func (c *Config) WithTags(ctx context.Context, ref registry.Reference, h *hosts.Host, err error) error {
	client, clientErr := c.Client(ref, h, false)
	if clientErr != nil {
		return err
	}
	defer client.Close()
	return withTags(ctx, client.Own(), ref, err)
}

func withTags(ctx context.Context, reg *registry.Registry, ref registry.Reference, err error) error {
	var e *registry.Error
	if ref.Digest != "" || !errors.Is(err, registry.ErrNotFound) || !errors.As(err, &e) || !strings.HasSuffix(e.What, ":"+ref.Tag) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tagsPatience)
	defer cancel()
	tags, listErr := reg.Tags(ctx, ref.Repository)
	if listErr != nil || len(tags) == 0 {
		return err
	}
	slices.SortFunc(tags, func(a, b string) int { // most similar first
		return cmp.Or(alike(b, ref.Tag)-alike(a, ref.Tag), strings.Compare(a, b))
	})
	text := strings.Join(tags[:min(len(tags), mostTags)], ", ")
	if more := len(tags) - mostTags; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%w; existing tags: %s", err, text)
}

// alike returns the length of two names' common prefix.
func alike(a, b string) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
