package hosts

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const full = `
server = "https://registry.example.com"
ca = "server.crt"

[host."https://second.example.com:8443/some/path"]
  capabilities = ["pull"]
  ca = ["a.crt", "/abs/b.crt"]

[host."http://127.0.0.1:5000"]
  skip_verify = true
  [host."http://127.0.0.1:5000".header]
    x-key = ["one", "two"]
    x-other = "three"
    [host."http://127.0.0.1:5000".nonsense]
      a = 1

[host."a.example.com/mine"]
  capabilities = ["pull", "resolve", "push"]
  override_path = true
`

func TestParse(t *testing.T) {
	got, err := Parse([]byte(full), "/etc/d")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Mirrors: []Host{
			{Scheme: "https", Host: "second.example.com:8443", Path: "/some/path/v2", Pull: true, CA: []string{"/etc/d/a.crt", "/abs/b.crt"}},
			{Scheme: "http", Host: "127.0.0.1:5000", Path: "/v2", Pull: true, Resolve: true, SkipVerify: true, Header: http.Header{"X-Key": {"one", "two"}, "X-Other": {"three"}}},
			{Scheme: "https", Host: "a.example.com", Path: "/mine", Pull: true, Resolve: true},
		},
		Server: &Host{Scheme: "https", Host: "registry.example.com", Path: "/v2", Pull: true, Resolve: true, CA: []string{"/etc/d/server.crt"}},
	}
	if len(got.Unknown) == 0 || !strings.Contains(got.Unknown[0], "nonsense") {
		t.Errorf("unknown keys: %q", got.Unknown)
	}
	got.Unknown = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no TOML":           "[host",
		"a wrong type":      "skip_verify = 3",
		"a user":            `server = "https://a:b@c.example.com"`,
		"a query":           `[host."https://c.example.com?x=s3cret"]`,
		"another scheme":    `[host."ftp://c.example.com"]`,
		"no host":           `[host."https:///x"]`,
		"not a URL":         `[host."https://%zz"]`,
		"capability":        "[host.\"c.example.com\"]\ncapabilities=[\"s3cret\"]",
		"a number for ca":   "[host.\"c.example.com\"]\nca=3",
		"an empty ca":       "[host.\"c.example.com\"]\nca=[\"\"]",
		"a header's name":   "[host.\"c.example.com\"]\nheader={\"a b\"=\"s3cret\"}",
		"a header's value":  "[host.\"c.example.com\"]\nheader={a=\"s3cret\\n\"}",
		"our own header":    "[host.\"c.example.com\"]\nheader={range=\"s3cret\"}",
		"a header's type":   "[host.\"c.example.com\"]\nheader={a=[3]}",
		"deep":              "x=" + strings.Repeat("[", 1000) + strings.Repeat("]", 1000),
		"long":              strings.Repeat("#", maxFile+1),
		"too many":          many(maxMirrors + 1),
		"a quoted password": "password = \"s3cret",
	} {
		c, err := Parse([]byte(text), "/d")
		if !errors.Is(err, ErrInvalid) || c != nil {
			t.Errorf("%s: %+v, %v", name, c, err)
			continue
		}
		if strings.ContainsAny(err.Error(), "\n\x1b") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q", name, err)
		}
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("[host.\"m" + strings.Repeat("x", i) + ".example.com\"]\n")
	}
	return b.String()
}

// write makes a file below the test's directory.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	write(t, filepath.Join(b, "_default", "hosts.toml"), `[host."default.example.com"]`)
	write(t, filepath.Join(b, "r.example.com", "hosts.toml"), `[host."plain.example.com"]`)
	write(t, filepath.Join(b, "r.example.com:444", "hosts.toml"), `[host."colon.example.com"]`)
	write(t, filepath.Join(b, "r.example.com_445_", "hosts.toml"), `[host."underscores.example.com"]`)
	write(t, filepath.Join(b, "r.example.com:445", "hosts.toml"), `[host."loses.example.com"]`)
	write(t, filepath.Join(b, "docker.example.com:5000", "ca.crt"), `x`)
	write(t, filepath.Join(b, "bad.example.com", "hosts.toml"), `[`)
	write(t, filepath.Join(b, "first.example.com", "hosts.toml"), `[host."second-place.example.com"]`)
	write(t, filepath.Join(a, "first.example.com", "hosts.toml"), `[host."first-place.example.com"]`)
	write(t, filepath.Join(a, "other.example.com", "readme"), ``)
	for host, want := range map[string]string{
		"first.example.com":  "first-place.example.com",
		"r.example.com":      "plain.example.com",
		"r.example.com:444":  "colon.example.com",
		"r.example.com:445":  "underscores.example.com",
		"r.example.com:446":  "default.example.com",
		"other.example.com":  "default.example.com",
		"[::1]:5000":         "default.example.com",
		"../../../etc/x.com": "default.example.com",
	} {
		c, err := Lookup([]string{a, b}, host)
		if err != nil || len(c.Mirrors) != 1 || c.Mirrors[0].Host != want {
			t.Errorf("%s: %+v, %v; want %s", host, c, err, want)
		}
	}
	c, err := Lookup([]string{a, b}, "docker.example.com:5000")
	if err != nil || len(c.Mirrors) != 0 || c.Server == nil || len(c.Server.CA) != 1 || c.Server.Host != "docker.example.com:5000" {
		t.Errorf("docker's form: %+v, %v", c, err)
	}
	if _, err := Lookup([]string{b}, "bad.example.com"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bad file: %v", err)
	}
	if c, err := Lookup([]string{filepath.Join(a, "none")}, "r.example.com"); err != nil || !reflect.DeepEqual(c, &Config{}) {
		t.Errorf("no place: %+v, %v", c, err)
	}
}

// FuzzParse: whatever the file holds, what comes out can be used as it is.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`server = "http://[::1]:5000/"`))
	f.Add([]byte("server = \"r.example.com\"\ncapabilities = []\nca = [[[\"x\"]]]"))
	f.Add([]byte("[host.\"a\"]\n[host.\"a\"]\n[[host]]"))
	f.Add([]byte("[host.\"http://a/../..//\"]\noverride_path = true\nca = \"../../x\""))
	f.Add([]byte("host = {\"a\" = {capabilities = [\"pull\"], client = [[\"x\", \"y\"]]}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Parse(raw, "/d")
		if err != nil {
			if !errors.Is(err, ErrInvalid) || strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("error %q", err)
			}
			return
		}
		all := c.Mirrors
		if c.Server != nil {
			all = append(all, *c.Server)
		}
		if len(all) > maxMirrors+1 || len(c.Unknown) > maxUnknown {
			t.Errorf("%d hosts, %d unknown keys", len(all), len(c.Unknown))
		}
		for _, h := range all {
			if h.Scheme != "http" && h.Scheme != "https" || h.Host == "" || strings.ContainsAny(h.Host, "@/?# \n") || strings.HasSuffix(h.Path, "/") {
				t.Errorf("host %+v", h)
			}
			for _, ca := range h.CA {
				if !filepath.IsAbs(ca) {
					t.Errorf("ca %q", ca)
				}
			}
		}
	})
}
