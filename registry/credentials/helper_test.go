package credentials

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

// answer is a script of a helper that knows the one server.
func answer(server, name, secret string) string {
	return fmt.Sprintf(`read server
[ "$1 $server" = "get %s" ] || { echo "credentials not found in native keychain"; exit 1; }
echo '{"ServerURL":"%s","Username":"%s","Secret":"%s"}'`, server, server, name, secret)
}

func TestHelpers(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	r, org, hub := u.helper(answer("r.example", "joe", "pw")), u.helper(answer("r.example/org", "org", "pw")), u.helper(answer(hubServer, "hub", "pw"))
	all := u.helper(answer("all.example", "<token>", "identity"))
	path := u.write(".docker/config.json", fmt.Sprintf(`{"credsStore":%q,
		"credHelpers":{"r.example":%q,"r.example/org":%q,"https://index.docker.io/v1/":%q,"plain.example":""},
		"auths":{"plain.example":{"auth":"cGxhaW46cHc="},"file.example":{"auth":"ZmlsZTpwdw=="},"all.example":{}}}`, all, r, org, hub))
	for _, c := range []struct{ host, repository, name, token, helper string }{
		{"r.example", "vm", "joe", "", r},
		{"r.example", "org/vm", "org", "", org},
		{"index.docker.io", "vm", "hub", "", hub},
		{"all.example", "vm", "", "identity", all},
		{"plain.example", "vm", "plain", "", ""},
		{"file.example", "vm", "file", "", ""}, // kept from before there was a store
		{"none.example", "vm", "", "", ""},
	} {
		got, err := u.lookup(c.host, c.repository)
		if err != nil || got.Username != c.name || got.IdentityToken != c.token {
			t.Errorf("%s/%s: %+v, %v", c.host, c.repository, got, err)
		}
		if !got.Empty() && (!strings.Contains(got.Source, path) || !strings.Contains(got.Source, c.helper)) {
			t.Errorf("%s: found in %q", c.host, got.Source)
		}
	}
}

const hubServer = "https://" + hub + "/v1/"

// What a helper failed with is in the error: which, of which file, with
// which exit code, and what it printed for people; never what may be a
// secret.
func TestHelpersThatFail(t *testing.T) {
	t.Parallel()
	const jwt = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.s3cretpart0123456789abcdef.c2ln"
	for name, c := range map[string]struct {
		script string
		exit   int
		says   []string
		not    []string
	}{
		"stdout":        {"echo 'the vault is \033[31mlocked'; exit 3", 3, []string{"code 3", "the vault is"}, nil},
		"stderr":        {"echo 'gpg: No secret key' >&2; exit 2", 2, []string{"code 2", "gpg: No secret key"}, nil},
		"silent":        {"exit 7", 7, []string{"code 7"}, nil},
		"killed":        {"kill -9 $$", -1, []string{"signal: killed"}, nil},
		"an answer":     {`echo '{"Username":"joe","Secret":"s3cret"}'; echo "s3cret is not accepted" >&2; exit 1`, 1, []string{"is not accepted"}, nil},
		"half":          {`printf '{"Username":"joe","Secret":"s3cret'; exit 1`, 1, []string{"code 1"}, nil},
		"password":      {"echo 'login with password=s3cret failed' >&2; exit 1", 1, []string{"login with password=***"}, nil},
		"a header":      {"echo 'Authorization: Bearer s3cret-abc: 401' >&2; exit 1", 1, []string{"code 1"}, []string{"abc"}},
		"a signed URL":  {"echo 'GET https://joe:s3cret@sts.example/x?X-Sig=s3cret: 403' >&2; exit 1", 1, []string{"sts.example/x?***"}, nil},
		"a token":       {"echo 'refused: " + jwt + "' >&2; exit 1", 1, []string{"refused: "}, []string{"c2ln", "0123456789"}},
		"much":          {"yes 'no good' | head -c 1000000; exit 1", 1, []string{"no good"}, nil},
		"well, no JSON": {"echo s3cret", 0, []string{"no JSON object"}, nil},
		"well, nothing": {"true", 0, []string{"no JSON object"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t)
			runs := filepath.Join(u.home, "runs")
			helper := u.helper("echo run >>" + runs + "\n" + c.script)
			path := u.write(".docker/config.json", fmt.Sprintf(`{"credHelpers":{"r.example":%q}}`, helper))
			got, err := u.lookup("r.example", "vm")
			var e *HelperError
			if !got.Empty() || !errors.As(err, &e) || e.Exit != c.exit || e.File != path || e.Helper != helperPrefix+helper {
				t.Fatalf("%+v, %+v", got, e)
			}
			clean(t, err, append(c.says, path, helper, "r.example")...)
			for _, text := range c.not {
				if strings.Contains(err.Error(), text) {
					t.Errorf("%q holds %q", err, text)
				}
			}
			if raw, _ := os.ReadFile(runs); strings.Count(string(raw), "run") != helperTries {
				t.Errorf("it ran %q", raw)
			}
			// Podman's file helps out.
			u.write("run/containers/auth.json", auths("r.example", "joe:pw"))
			if got, err := u.lookup("r.example", "vm"); got.Username != "joe" || err == nil {
				t.Errorf("the next place: %+v, %v", got, err)
			}
		})
	}
}

func TestHelperThatIsMissing(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	path := u.write(".docker/config.json", `{"credsStore":"epochfs-none","auths":{"bad.example":{"auth":"?"}}}`)
	_, err := u.lookup("r.example", "vm")
	clean(t, err, path+" names the credential helper docker-credential-epochfs-none, which is not in the PATH")
	if name := MissingHelper(err); name != "docker-credential-epochfs-none" {
		t.Errorf("missing is %q", name)
	}
	_, err = u.lookup("bad.example", "vm")
	clean(t, err, "not in the PATH", "not base64")
	if MissingHelper(err) == "" || MissingHelper(errors.New("x")) != "" {
		t.Error("missing helpers are mixed up")
	}
	u.write(".docker/config.json", `{"credsStore":"../../bin/sh"}`)
	clean(t, second(u.lookup("r.example", "vm")), "cannot be in the PATH")
}

func TestHelperFailsForAMoment(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	helper := u.helper(fmt.Sprintf("echo x >>%[1]s\n[ $(wc -l <%[1]s) -ge %[2]d ] || exit 1\n%[3]s", filepath.Join(u.home, "runs"), helperTries, answer("r.example", "joe", "pw")))
	u.write(".docker/config.json", fmt.Sprintf(`{"credsStore":%q}`, helper))
	if got, err := u.lookup("r.example", "vm"); err != nil || got.Username != "joe" {
		t.Error(got, err)
	}
}

// A helper that leaves a child on its output has answered all the same.
func TestHelperThatLeavesAChild(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pid := filepath.Join(u.home, "pid")
	// The child has an end of its own, should the test not reach its.
	helper := u.helper("sleep 300 &\necho $! >" + pid + "\n" + answer("r.example", "joe", "pw"))
	u.write(".docker/config.json", fmt.Sprintf(`{"credsStore":%q}`, helper))
	t.Cleanup(func() { endChild(pid) })
	began := time.Now()
	got, err := u.lookup("r.example", "vm")
	if took := time.Since(began); err != nil || got.Username != "joe" || took > 20*time.Second {
		t.Errorf("%+v, %v, in %v", got, err, took)
	}

}

// A helper that does not end, and leaves a child, is ended with the caller.
func TestHelperThatHangs(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pid := filepath.Join(u.home, "pid")
	helper := u.helper("sleep 300 &\necho $! >" + pid + ".new\nmv " + pid + ".new " + pid + "\nwait")
	u.write(".docker/config.json", fmt.Sprintf(`{"credsStore":%q}`, helper))
	t.Cleanup(func() { endChild(pid) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := u.store().Lookup(ctx, "r.example", "vm")
		done <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := os.Stat(pid); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the helper does not run")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case err := <-done:
		clean(t, err, "did not answer in time")
	case <-time.After(20 * time.Second):
		t.Fatal("the helper's child holds the caller up")
	}
}

// endChild ends the process whose number is in a file.
func endChild(file string) {
	raw, _ := os.ReadFile(file)
	var pid int
	if n, _ := fmt.Sscan(string(raw), &pid); n == 1 && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
