package credentials

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// programs is where the helpers of the tests are.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("", "helpers"); err != nil {
		panic(err)
	}
	os.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	code := m.Run()
	os.RemoveAll(programs)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// account is a user with files of his own.
type account struct {
	t    *testing.T
	home string
	env  map[string]string
}

func newUser(t *testing.T) *account {
	dir := t.TempDir()
	return &account{t, dir, map[string]string{"HOME": dir, "XDG_RUNTIME_DIR": filepath.Join(dir, "run")}}
}

func (u *account) write(name, text string) string {
	u.t.Helper()
	path := filepath.Join(u.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		u.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		u.t.Fatal(err)
	}
	return path
}

// helper puts a shell script into the PATH, under a name that no other test
// has, and returns the suffix of the name.
func (u *account) helper(script string) string {
	u.t.Helper()
	// What is forked while the file is open for writing would keep it from
	// being run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.CreateTemp(programs, helperPrefix+"*")
	if err != nil {
		u.t.Fatal(err)
	}
	fmt.Fprintf(f, "#!/bin/sh\n%s\n", script)
	if err := errors.Join(f.Chmod(0o700), f.Close()); err != nil {
		u.t.Fatal(err)
	}
	return strings.TrimPrefix(filepath.Base(f.Name()), helperPrefix)
}

func (u *account) store() *Store {
	return &Store{Pause: time.Millisecond, Env: func(name string) string { return u.env[name] }}
}

func (u *account) lookup(host, repository string) (Credentials, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return u.store().Lookup(ctx, host, repository)
}

// auths is a file with entries, each of them name:password under a key.
func auths(pairs ...string) string {
	var all []string
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, fmt.Sprintf("%q:{\"auth\":%q}", pairs[i], base64.StdEncoding.EncodeToString([]byte(pairs[i+1]))))
	}
	return `{"auths":{` + strings.Join(all, ",") + "}}"
}

// The places are asked in order, and one that has nothing for the host is
// passed over.
func TestOrderOfPlaces(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	want := func(name string) {
		t.Helper()
		c, err := u.lookup("r.example", "vm")
		if err != nil || c.Username != name || name != "" && c.Password != "pw" {
			t.Errorf("%+v, %v; not %q", c, err, name)
		}
	}
	want("")
	u.write(".config/containers/auth.json", auths("r.example", "config:pw"))
	want("config")
	u.write("run/containers/auth.json", auths("r.example", "runtime:pw"))
	want("runtime")
	u.write("xdg/containers/auth.json", auths("r.example", "xdg:pw"))
	u.env["XDG_CONFIG_HOME"] = filepath.Join(u.home, "xdg")
	want("runtime")
	os.Remove(filepath.Join(u.home, "run/containers/auth.json"))
	want("xdg")
	u.env["REGISTRY_AUTH_FILE"] = u.write("named.json", auths("r.example", "named:pw"))
	want("named")
	u.write(".docker/config.json", auths("other.example", "other:pw"))
	want("named")
	u.write(".docker/config.json", auths("r.example", "docker:pw"))
	want("docker")
	u.env["DOCKER_CONFIG"] = filepath.Join(u.home, "conf")
	want("named")
	u.write("conf/config.json", auths("r.example", "conf:pw"))
	want("conf")
	u.env["DOCKER_AUTH_CONFIG"] = auths("r.example", "variable:pw")
	want("variable")
}

func TestLongestPrefix(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.write("run/containers/auth.json", auths(
		"r.example", "all:1", "r.example/orgA", "a:2", "r.example/orgA/team/", "team:3", "r.example/orgAB", "ab:4",
		"only.example/orgA", "only:5", "old.example:5000/v1/", "v1:6", "https://url.example/v2/x", "url:7",
		"https://index.docker.io/v1/", "hub:8", "docker.io/orgA", "huborg:9", "Upper.Example", "upper:10", "Upper.Example/x", "x:11"))
	for _, c := range []struct{ host, repository, name string }{
		{"r.example", "vm", "all"},
		{"r.example", "orga/vm", "all"}, // paths have a case
		{"r.example", "orgA", "a"},
		{"r.example", "orgA/vm", "a"},
		{"r.example", "orgA/teams/vm", "a"},
		{"r.example", "orgA/team/vm", "team"},
		{"r.example", "orgAB/vm", "ab"},
		{"r.example", "", "all"},
		{"only.example", "orgA/vm", "only"},
		{"only.example", "orgB/vm", ""},
		{"only.example", "", ""},
		{"old.example:5000", "vm", "v1"},
		{"old.example", "vm", ""},
		{"url.example", "vm", "url"},
		{"index.docker.io", "vm", "hub"},
		{"docker.io", "vm", "hub"},
		{"index.docker.io", "orgA/vm", "huborg"},
		{"upper.example", "vm", "upper"},
		{"upper.example", "x/vm", "x"},
	} {
		got, err := u.lookup(c.host, c.repository)
		if err != nil || got.Username != c.name {
			t.Errorf("%s/%s: %q, %v; not %q", c.host, c.repository, got.Username, err, c.name)
		}
	}
}

func TestEntries(t *testing.T) {
	t.Parallel()
	for entry, want := range map[string]Credentials{
		`{"username":"joe","password":"pw"}`:           {Username: "joe", Password: "pw"},
		`{"auth":"am9lOnB3"}`:                          {Username: "joe", Password: "pw"},
		`{"auth":"am9lOnB3Onh5"}`:                      {Username: "joe", Password: "pw:xy"},
		`{"auth":"am9lOnB3YQ"}`:                        {Username: "joe", Password: "pwa"},
		`{"auth":" am9lOnB3YQ==\n"}`:                   {Username: "joe", Password: "pwa"},
		`{"identitytoken":"id"}`:                       {IdentityToken: "id"},
		`{"registrytoken":"reg"}`:                      {RegistryToken: "reg"},
		`{"auth":"PHRva2VuPjppZA==","email":5}`:        {IdentityToken: "id"},
		`{"auth":"PHRva2VuPjo=","identitytoken":"id"}`: {IdentityToken: "id"},
		`{}`:   {},
		`{ }`:  {},
		`null`: {},
		`{"auth":"am9lOnB3","password":"other","username":"no"}`: {Username: "joe", Password: "pw"},
	} {
		u := newUser(t)
		path := u.write(".docker/config.json", `{"auths":{"r.example":`+entry+`},"psFormat":7,"HttpHeaders":{"a":"b"}}`)
		got, err := u.lookup("r.example", "vm")
		if !want.Empty() {
			want.Source = path
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", entry, got, err)
		}
	}
}

// A file that cannot be used is named, with what is wrong and where, and
// without what is in it. The places after it are looked at.
func TestFilesThatAreWrong(t *testing.T) {
	t.Parallel()
	good := auths("r.example", "joe:s3cret")
	for name, c := range map[string]struct{ text, says string }{
		"BOM":                {"\xef\xbb\xbf" + good, "BOM"},
		"UTF-16":             {"\xff\xfe{\x00}\x00", "UTF-16"},
		"trailing comma":     {"{\"auths\":{\n\"r.example\":{\"auth\":\"s3cret\",\n }\n}}", "line 2 has a trailing comma"},
		"comma in an array":  {"{\"plugins\":[1,\n]}", "trailing comma"},
		"text":               {"{\"auths\":\n\"s3cret\"}", "line 2 has a value of the wrong type"},
		"no JSON":            {"{\n\n s3cret", "line 3 is not JSON"},
		"cut":                {good[:20], "too early"},
		"not base64":         {`{"auths":{"r.example":{"auth":"s3cret!"}}}`, "r.example that cannot be used: auth is not base64"},
		"no colon":           {`{"auths":{"r.example":{"auth":"czNjcmV0"}}}`, "name:password"},
		"a number":           {`{"auths":{"r.example":{"password":1234567}}}`, "r.example that cannot be used"},
		"helpers of numbers": {`{"credHelpers":{"r.example":1234567}}`, "wrong type"},
		"too long":           {strings.Repeat(" ", maxFile+1), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t)
			path := u.write(".docker/config.json", c.text)
			for _, err := range []error{second(u.lookup("r.example", "vm")), u.store().Check()} {
				var e *FileError
				if !errors.As(err, &e) || e.File != path {
					t.Fatalf("not about the file: %v", err)
				}
				clean(t, err, c.says, path)
			}
			u.write("run/containers/auth.json", good)
			if got, err := u.lookup("r.example", "vm"); got.Password != "s3cret" || err == nil {
				t.Errorf("the next place: %+v, %v", got, err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// clean checks that an error is one line with all of the texts, and without
// secrets.
func clean(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	s := err.Error()
	for _, text := range texts {
		if !strings.Contains(s, text) {
			t.Errorf("%q does not hold %q", s, text)
		}
	}
	for _, secret := range []string{"s3cret", "czNjcmV0", "1234567", "\n", "\x1b"} {
		if strings.Contains(s, secret) {
			t.Errorf("%q holds %q", s, secret)
		}
	}
	if len(s) > 1000 {
		t.Errorf("%d bytes", len(s))
	}
}

// A file that somebody named must be there; a pipe holds nobody up.
func TestFilesThatAreNone(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.env["REGISTRY_AUTH_FILE"] = filepath.Join(u.home, "none.json")
	clean(t, second(u.lookup("r.example", "vm")), "none.json cannot be read: no such file")
	u.env["REGISTRY_AUTH_FILE"] = u.home
	clean(t, second(u.lookup("r.example", "vm")), "not a regular file")
	u.env["REGISTRY_AUTH_FILE"] = filepath.Join(u.home, "pipe")
	if err := mkfifo(u.env["REGISTRY_AUTH_FILE"]); err != nil {
		t.Fatal(err)
	}
	clean(t, second(u.lookup("r.example", "vm")), "not a regular file")
	u.env["REGISTRY_AUTH_FILE"] = u.write("empty.json", " \n")
	if c, err := u.lookup("r.example", "vm"); err != nil || !c.Empty() {
		t.Error(c, err)
	}
	u.env["DOCKER_CONFIG"] = u.env["REGISTRY_AUTH_FILE"] // a file, and no directory
	if c, err := u.lookup("r.example", "vm"); err != nil || !c.Empty() {
		t.Error(c, err)
	}
}
