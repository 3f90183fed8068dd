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

// Hosts returns what stands in for the reference's registry.
func (c *Config) Hosts(ref registry.Reference) (*hosts.Config, error) {
	return hosts.Lookup(slices.Concat(c.HostsDirs, hosts.Places()), ref.Host)
}

// Client makes a client of the one host that h says, instead of ref's own
// where it is not nil; without credentials where it is to be anonymous.
func (c *Config) Client(ref registry.Reference, h *hosts.Host, anonymous bool) (*registry.Mirrors, error) {
	opts := c.options()
	if anonymous {
		opts.EpochToken, opts.Keychain = "", nobody{}
	}
	return registry.NewMirrors(ref, &hosts.Config{Server: h}, opts)
}

// nobody is a keychain without keys.
type nobody struct{}

func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

const (
	// mostTags bounds how many tags an error names.
	mostTags = 8
	// tagsPatience is how long a list of tags is waited for, where the
	// answer was no anyway.
	tagsPatience = 5 * time.Second
)

// WithTags adds to the error of a tag that is not there the tags that are.
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
	slices.SortFunc(tags, func(a, b string) int { // the most alike first
		return cmp.Or(alike(b, ref.Tag)-alike(a, ref.Tag), strings.Compare(a, b))
	})
	text := strings.Join(tags[:min(len(tags), mostTags)], ", ")
	if more := len(tags) - mostTags; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%w; there are the tags %s", err, text)
}

// alike is how many bytes two names begin with in common.
func alike(a, b string) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
