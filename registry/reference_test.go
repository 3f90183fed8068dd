package registry

import (
	"errors"
	"strings"
	"testing"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseReference(t *testing.T) {
	for _, c := range []struct {
		in, server string
		plain      bool
		want       Reference
		text       string
	}{
		{in: "vm", want: Reference{"http", "127.0.0.1:8080", "vm", "latest", ""}, text: "127.0.0.1:8080/vm:latest"},
		{in: "vm:3", want: Reference{"http", "127.0.0.1:8080", "vm", "3", ""}},
		{in: "my.vm:3", want: Reference{"http", "127.0.0.1:8080", "my.vm", "3", ""}},
		{in: "team/vm:3", server: "https://epoch.example.com/", want: Reference{"https", "epoch.example.com", "team/vm", "3", ""}},
		{in: "team/vm", server: "http://epoch.example.com", want: Reference{"http", "epoch.example.com", "team/vm", "latest", ""}},
		{in: "team/vm", server: "http://epoch", want: Reference{"http", "epoch:80", "team/vm", "latest", ""}},
		{in: "team/vm", server: "epoch", want: Reference{"https", "epoch:443", "team/vm", "latest", ""}},
		{in: "epoch.example.com/vm", server: "http://epoch.example.com:80", want: Reference{"http", "epoch.example.com", "vm", "latest", ""}},
		{in: "epoch.example.com:8443/vm", server: "http://epoch.example.com", want: Reference{"https", "epoch.example.com:8443", "vm", "latest", ""}},
		{in: "epoch.example.com/vm", server: "https://epoch.example.com", plain: true, want: Reference{"https", "epoch.example.com", "vm", "latest", ""}},
		{in: "localhost/vm", want: Reference{"http", "localhost", "vm", "latest", ""}},
		{in: "LOCALHOST:5000/vm", want: Reference{"http", "localhost:5000", "vm", "latest", ""}},
		{in: "127.9.9.9:5000/vm", want: Reference{"http", "127.9.9.9:5000", "vm", "latest", ""}},
		{in: "[::1]:5000/a/b:t", want: Reference{"http", "[::1]:5000", "a/b", "t", ""}},
		{in: "10.0.0.1:5000/vm", want: Reference{"https", "10.0.0.1:5000", "vm", "latest", ""}},
		{in: "x.localhost:5000/vm", want: Reference{"https", "x.localhost:5000", "vm", "latest", ""}},
		{in: "10.0.0.1:5000/vm", plain: true, want: Reference{"http", "10.0.0.1:5000", "vm", "latest", ""}},
		{in: "Ghcr.io/a/b_c--d:V1", want: Reference{"https", "ghcr.io", "a/b_c--d", "V1", ""}},
		{in: "ghcr.io/a@" + someDigest, want: Reference{"https", "ghcr.io", "a", "", someDigest}, text: "ghcr.io/a@" + someDigest},
		{in: "ghcr.io/a:t@" + someDigest, want: Reference{"https", "ghcr.io", "a", "t", someDigest}, text: "ghcr.io/a@" + someDigest},
	} {
		got, err := ParseReference(c.in, ReferenceOptions{Server: c.server, PlainHTTP: c.plain})
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.in, got, err)
			continue
		}
		if c.text != "" && got.String() != c.text {
			t.Errorf("%s prints as %s", c.in, got)
		}
		again, err := ParseReference(got.String(), ReferenceOptions{Server: c.server, PlainHTTP: c.plain})
		if err != nil || again.Host != got.Host || again.Scheme != got.Scheme || again.Identifier() != got.Identifier() {
			t.Errorf("%s, printed and read again: %+v, %v", c.in, again, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, s := range []string{
		"", ":", "/", "a/", "/a", "a//b", "../a", "a/../b", "A", "a:", "a:-x", "a:b c", "a@", "a@sha256:12",
		"a@sha512:" + strings.Repeat("a", 128), "a@SHA256:" + strings.Repeat("a", 64), "a@" + strings.ToUpper(someDigest),
		"http://h.io/a", "user:pw@h.io/a", "h.io:99999999/a", "h..io /a", "[::1/a", "-h.io/a", "h.io/a?b", "h.io/a%2fb",
		"h.io/a\n", "a:" + strings.Repeat("t", 129), "h.io/" + strings.Repeat("a", 256), ".io/a", "h.io:/a",
	} {
		if ref, err := ParseReference(s, ReferenceOptions{}); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %+v, %v", s, ref, err)
		}
	}
	for _, s := range []string{"user:hunter2@h.io/a", "hunter2@h.io:5000/a/b:t", "user:hunter2@localhost/a@" + someDigest, "https://user:hunter2@h.io/a", "user:a/hunter2@h.io/a", "user:hunter2@h.io:5000"} {
		if ref, err := ParseReference(s, ReferenceOptions{}); !errors.Is(err, ErrReference) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %+v, %v", s, ref, err)
		}
	}
	for _, s := range []string{"ftp://h", "http://", "http://u:hunter2@h", "http://h/path", "http://h?q", "::", "http://h b"} {
		_, err := ParseReference("vm", ReferenceOptions{Server: s})
		if !errors.Is(err, ErrReference) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("server %q: %v", s, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"vm", "h.io:1/a/b:t@" + someDigest, "[::1]:5/x", "localhost/a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s, ReferenceOptions{})
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String(), ReferenceOptions{})
		if err != nil || again.String() != ref.String() || again.Scheme != ref.Scheme {
			t.Errorf("%q: %+v, printed and read again: %+v, %v", s, ref, again, err)
		}
	})
}

func TestNewRefusesPlainHTTP(t *testing.T) {
	for _, c := range []struct {
		ref  Reference
		opts Options
		ok   bool
	}{
		{Reference{Scheme: "http", Host: "127.0.0.1:1"}, Options{}, true},
		{Reference{Scheme: "https", Host: "h.io"}, Options{}, true},
		{Reference{Scheme: "http", Host: "h.io"}, Options{}, false},
		{Reference{Scheme: "http", Host: "10.0.0.1"}, Options{}, false},
		{Reference{Scheme: "http", Host: "x.localhost:5000"}, Options{}, false},
		{Reference{Scheme: "http", Host: "h.io"}, Options{PlainHTTP: true}, true},
		{Reference{Scheme: "http", Host: "h.io"}, Options{EpochServer: "http://h.io"}, true},
		{Reference{Scheme: "http", Host: "h.io"}, Options{EpochServer: "https://h.io"}, false},
		{Reference{Scheme: "ftp", Host: "h.io"}, Options{}, false},
		{Reference{Scheme: "https"}, Options{}, false},
	} {
		r, err := New(c.ref, c.opts)
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.ref, err)
		}
		if r != nil {
			r.Close()
		}
	}
}

// OCI_REGISTRY completes names without a host, and goes before the server.
func TestRegistryOfTheEnvironment(t *testing.T) {
	for _, c := range []struct{ registry, server, ref, want string }{
		{"r.example", "", "vm", "https r.example/vm:latest"},
		{"R.example:5000/", "", "team/vm:v1", "https r.example:5000/team/vm:v1"},
		{"us-docker.pkg.dev/project/vms", "", "team/vm:v1", "https us-docker.pkg.dev/project/vms/team/vm:v1"},
		{"us-docker.pkg.dev/project/vms/", "http://e.example", "vm@" + someDigest, "https us-docker.pkg.dev/project/vms/vm@" + someDigest},
		{"us-docker.pkg.dev/project", "", "other.example/vm", "https other.example/vm:latest"},
		{"us-docker.pkg.dev/project", "", "localhost/vm", "http localhost/vm:latest"},
		{"127.0.0.1:5000/a", "", "vm", "http 127.0.0.1:5000/a/vm:latest"},
		{"e.example", "http://e.example", "vm", "http e.example/vm:latest"},
		{"registry", "", "vm", "https registry:443/vm:latest"},
		{"", "http://e.example", "vm", "http e.example/vm:latest"},
	} {
		ref, err := ParseReference(c.ref, ReferenceOptions{Registry: c.registry, Server: c.server})
		if got := ref.Scheme + " " + ref.String(); err != nil || got != c.want {
			t.Errorf("%s in %q, %q: %s, %v", c.ref, c.registry, c.server, got, err)
		}
	}
	for _, s := range []string{"https://r.example", "joe:hunter2@r.example", "r.example/UPPER", "r.example//a", "r.example/a/../b", "/a", "r example", "r.example/a:tag"} {
		if _, err := ParseReference("vm", ReferenceOptions{Registry: s}); !errors.Is(err, ErrReference) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", s, err)
		}
	}
}
