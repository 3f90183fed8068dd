package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/google/go-containerregistry/pkg/authn"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// kinds are the registries that every client has to get along with.
var kinds = []struct {
	name   string
	ranges bool
	start  func(t *testing.T) (base string, opts Options)
}{
	{"memory", true, func(t *testing.T) (string, Options) {
		return registrytest.InMemory(t).URL, Options{}
	}},
	{"epoch", false, func(t *testing.T) (string, Options) {
		f := registrytest.NewFront(t, &epochlike.Server{Token: "t0ken"})
		return f.URL, Options{EpochServer: f.URL, EpochToken: "t0ken"}
	}},
	{"epoch by docker login", false, func(t *testing.T) (string, Options) {
		f := registrytest.NewFront(t, &epochlike.Server{Token: "t0ken"})
		return f.URL, Options{Keychain: account("any", "t0ken")}
	}},
	{"epoch without sessions", false, func(t *testing.T) (string, Options) {
		f := registrytest.NewFront(t, &epochlike.Server{Token: "t0ken", NoSessions: true})
		return f.URL, Options{EpochServer: f.URL, EpochToken: "t0ken"}
	}},
	{"debian", true, func(t *testing.T) (string, Options) {
		return registrytest.Debian(t, registrytest.DebianOptions{}).URL, Options{}
	}},
	{"debian with account", true, func(t *testing.T) (string, Options) {
		reg := registrytest.Debian(t, registrytest.DebianOptions{Auth: true})
		return reg.URL, Options{Keychain: account(registrytest.User, registrytest.Password)}
	}},
	{"debian with account and TLS", true, func(t *testing.T) (string, Options) {
		ca := registrytest.NewCA(t)
		reg := registrytest.Debian(t, registrytest.DebianOptions{Auth: true, CA: ca})
		return reg.URL, Options{CACert: ca.File, Keychain: account(registrytest.User, registrytest.Password)}
	}},
	{"bearer tokens", true, func(t *testing.T) (string, Options) {
		return newTokenRegistry(t).URL, Options{Keychain: account("joe", "hunter2")}
	}},
}

func TestConformance(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			base, opts := k.start(t)
			r := client(t, base, opts)
			t.Run("blobs", func(t *testing.T) { testBlobs(t, r, k.ranges, !strings.Contains(k.name, "without sessions")) })
			t.Run("manifests", func(t *testing.T) { testManifests(t, r) })
			t.Run("absent", func(t *testing.T) { testAbsent(t, r) })
		})
	}
}

func testBlobs(t *testing.T, r *Registry, ranges, sessions bool) {
	ctx := context.Background()
	for i, n := range []int{0, 1, 70_000, uploadChunk, uploadChunk + 1} {
		data := random(n)
		digest := digests.Of(data)
		if there, err := r.BlobExists(ctx, "vm", digest); err != nil || there {
			t.Fatal(n, there, err)
		}
		if sessions && i%2 == 1 || n > uploadChunk && sessions {
			// A pipe knows neither its size nor how to go back.
			got, size, err := r.UploadBlob(ctx, "vm", io.MultiReader(bytes.NewReader(data)))
			if err != nil || got != digest || size != int64(n) {
				t.Fatal(n, got, size, err)
			}
		}
		if err := r.PutBlob(ctx, "vm", digest, io.MultiReader(bytes.NewReader(data)), int64(n)); err != nil {
			t.Fatal(n, err)
		}
		if there, err := r.BlobExists(ctx, "vm", digest); err != nil || !there {
			t.Fatal(n, there, err)
		}
		rc, err := r.GetBlob(ctx, "vm", digest)
		reads(t, "whole blob", rc, err, data)
		testRanges(t, r, data, ranges)
	}
	if known, got := r.Ranges(); !known || got != ranges {
		t.Error("ranges:", known, got)
	}
}

func testRanges(t *testing.T, r *Registry, data []byte, ranges bool) {
	ctx := context.Background()
	size := int64(len(data))
	digest := digests.Of(data)
	for _, c := range [][2]int64{{0, size}, {0, size / 2}, {size / 3, size / 3}, {size - 1, 1}, {size / 2, size - size/2}, {size, 0}} {
		off, n := c[0], c[1]
		if off < 0 {
			continue
		}
		body, whole, err := r.Source("vm").OpenBlob(ctx, digest, size, off, n)
		got := readAll(t, body, err)
		switch {
		case n == 0:
			same(t, "nothing", got, nil)
		case !ranges:
			same(t, "all for a range", got, data)
			if !whole {
				t.Error("taken for a range")
			}
		default:
			same(t, "range", got, data[off:off+n])
			if whole != (n == size) {
				t.Error("whole:", whole)
			}
		}
		exactly, err := r.GetBlobRange(ctx, "vm", digest, off, n)
		reads(t, "exact range", exactly, err, data[off:off+n])
	}
}

func testManifests(t *testing.T, r *Registry) {
	ctx := context.Background()
	config := []byte(`{"os":"linux"}`)
	if err := r.PutBlob(ctx, "vm", digests.Of(config), bytes.NewReader(config), int64(len(config))); err != nil {
		t.Fatal(err)
	}
	manifest := []byte(`{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"mediaType":"application/x","digest":"` +
		digests.Of(config) + `","size":14},"layers":[]}`)
	for _, tag := range []string{"latest", "v1.2_3", digests.Of(manifest)} {
		if err := r.PutManifest(ctx, "vm", tag, manifest, manifestType); err != nil {
			t.Fatal(tag, err)
		}
		got, kind, err := r.GetManifest(ctx, "vm", tag)
		if err != nil || kind != manifestType {
			t.Fatal(tag, kind, err)
		}
		same(t, tag, got, manifest)
	}
	tags, err := r.Tags(ctx, "vm")
	if err != nil || strings.Join(tags, " ") != "latest v1.2_3" {
		t.Error(tags, err)
	}
}

func testAbsent(t *testing.T, r *Registry) {
	ctx := context.Background()
	_, _, err := r.GetManifest(ctx, "vm", "no-such-tag")
	if e := wantError(t, err, ErrNotFound, false); e.Code != "MANIFEST_UNKNOWN" || e.Status != http.StatusNotFound {
		t.Error(e.Code, e.Status)
	}
	_, _, err = r.GetManifest(ctx, "no/such/repo", someDigest)
	wantError(t, err, ErrNotFound, false)
	_, err = r.GetBlob(ctx, "vm", someDigest)
	wantError(t, err, ErrNotFound, false)
	_, _, err = r.Source("vm").OpenBlob(ctx, someDigest, 100, 10, 10)
	wantError(t, err, ErrNotFound, false)
	_, err = r.Tags(ctx, "no/such/repo")
	wantError(t, err, ErrNotFound, false)
}

func TestMountBlob(t *testing.T) {
	reg := registrytest.Debian(t, registrytest.DebianOptions{Auth: true})
	r := client(t, reg.URL, Options{Keychain: account(registrytest.User, registrytest.Password)})
	ctx := context.Background()
	data := random(5000)
	digest, _, err := r.UploadBlob(ctx, "from", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if done, err := r.MountBlob(ctx, "to", digest, "from"); err != nil || !done {
		t.Fatal(done, err)
	}
	rc, err := r.GetBlob(ctx, "to", digest)
	reads(t, "mounted blob", rc, err, data)
	if done, err := r.MountBlob(ctx, "to", someDigest, "from"); err != nil || done {
		t.Error(done, err)
	}

	epoch := &epochlike.Server{}
	r = client(t, registrytest.NewFront(t, epoch).URL, Options{})
	if done, err := r.MountBlob(ctx, "to", digest, "from"); err != nil || done {
		t.Error("epoch:", done, err)
	}
}

// What a mount asks for first costs few requests, whatever has to be
// found out about authentication on the way.
func TestFewRequests(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			base, opts := k.start(t)
			ctx := context.Background()
			writer := client(t, base, opts)
			config, file := []byte(`{"a":1}`), []byte(`{"b":2}`)
			for _, b := range [][]byte{config, file} {
				if err := writer.PutBlob(ctx, "vm", digests.Of(b), bytes.NewReader(b), int64(len(b))); err != nil {
					t.Fatal(err)
				}
			}
			manifest := []byte(`{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"mediaType":"application/x","digest":"` +
				digests.Of(config) + `","size":7},"layers":[]}`)
			if err := writer.PutManifest(ctx, "vm", "1", manifest, manifestType); err != nil {
				t.Fatal(err)
			}
			front := registrytest.Before(t, base)
			if strings.HasPrefix(base, "https") {
				opts.CACert = "" // the front speaks plain HTTP, on loopback
			}
			if opts.EpochServer != "" {
				opts.EpochServer = front.URL
			}
			r := client(t, front.URL, opts)
			if _, _, err := r.GetManifest(ctx, "vm", "1"); err != nil {
				t.Fatal(err)
			}
			for _, b := range [][]byte{config, file} {
				rc, err := r.GetBlob(ctx, "vm", digests.Of(b))
				reads(t, "blob", rc, err, b)
			}
			c := front.Counts()
			if n := c.Manifests + c.Blobs; n > 4 {
				t.Errorf("%d requests: %+v", n, c)
			}
			s := r.Stats()
			if got := int64(len(front.Requests())); s.Requests < got {
				t.Errorf("stats say %d requests, the server saw %d", s.Requests, got)
			}
			if want := c.ManifestBytes + c.BlobBytes; s.Bytes < want {
				t.Errorf("stats say %d bytes, the server sent %d", s.Bytes, want)
			}
		})
	}
}

func TestAnonymousEpoch(t *testing.T) {
	srv := &epochlike.Server{Token: "t0ken"}
	front := registrytest.NewFront(t, srv)
	digest := srv.PutBlob([]byte("hello"))
	srv.PutManifest("vm", "1", []byte(`{}`))
	ctx := context.Background()
	r := client(t, front.URL, Options{})
	if _, _, err := r.GetManifest(ctx, "vm", "1"); err != nil {
		t.Fatal(err)
	}
	rc, err := r.GetBlob(ctx, "vm", digest)
	reads(t, "blob", rc, err, []byte("hello"))
	if n := len(front.Requests()); n != 2 {
		t.Errorf("%d requests for a manifest and a blob", n)
	}
	// A write is refused, and reads work as before.
	err = r.PutManifest(ctx, "vm", "2", []byte(`{}`), manifestType)
	wantError(t, err, ErrDenied, false)
	if _, _, err := r.GetManifest(ctx, "vm", "1"); err != nil {
		t.Fatal(err)
	}
	r = client(t, front.URL, Options{EpochServer: front.URL, EpochToken: "wr0ng"})
	err = r.PutManifest(ctx, "vm", "2", []byte(`{}`), manifestType)
	wantError(t, err, ErrDenied, false, "wr0ng")
	if _, _, err := r.GetManifest(ctx, "vm", "1"); err != nil {
		t.Error("reading with a token that is not accepted:", err)
	}
}

func TestDockerConfig(t *testing.T) {
	reg := registrytest.Debian(t, registrytest.DebianOptions{Auth: true})
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	ctx := context.Background()
	put := func() error {
		r, err := newRegistry(Reference{Scheme: "http", Host: reg.Host}, Options{}, quickLimits(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, _, err = r.UploadBlob(ctx, "vm", strings.NewReader("x"))
		return err
	}
	keychain := func() error { // of programs that bring their own
		r := client(t, reg.URL, Options{Keychain: authn.DefaultKeychain})
		_, _, err := r.UploadBlob(ctx, "vm", strings.NewReader("x"))
		return err
	}
	wantError(t, put(), ErrDenied, false)
	writeDockerConfig(t, home, reg.Host, registrytest.User, "not-the-password")
	if e := wantError(t, put(), ErrDenied, false, "not-the-password"); !strings.Contains(e.Hint, home+"/config.json were refused") {
		t.Error("wrong credentials:", e)
	}
	writeDockerConfig(t, home, reg.Host, registrytest.User, registrytest.Password)
	if err := errors.Join(put(), keychain()); err != nil {
		t.Error(err)
	}
	writeHelper(t, home, reg.Host, registrytest.User, registrytest.Password)
	if err := put(); err != nil {
		t.Error("with a credential helper:", err)
	}
	config := `{"credHelpers":{"` + reg.Host + `":"epochfs-no-such"}}`
	if err := os.WriteFile(home+"/config.json", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if e := wantError(t, put(), ErrDenied, false); e.Helper != "docker-credential-epochfs-no-such" || !strings.Contains(e.Hint, home+"/config.json names") {
		t.Error("a credential helper that is not there:", e)
	}
	if _, err := New(Reference{Scheme: "https", Host: "h.io"}, Options{CACert: home + "/none"}); err == nil || errors.Is(err, ErrReference) {
		t.Error("a root certificate that is not there:", err)
	}
}
