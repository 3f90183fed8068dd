package registry_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/cocoonstack/epochfs/registry"
)

// A registry is named by a reference. Blobs and manifests are written to and
// read from its repository.
func Example() {
	server := httptest.NewServer(ggcr.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")

	ref, err := registry.ParseReference(host+"/team/vm:v1", registry.ReferenceOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := registry.New(ref, registry.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	ctx := context.Background()
	const digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	if err := r.PutBlob(ctx, ref.Repository, digest, strings.NewReader("hello"), 5); err != nil {
		fmt.Println(err)
		return
	}
	there, err := r.BlobExists(ctx, ref.Repository, digest)
	fmt.Println(ref.Repository, ref.Tag, there, err)
	// Output: team/vm v1 true <nil>
}
