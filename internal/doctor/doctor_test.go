package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/registry"
)

func TestAdvice(t *testing.T) {
	refused := errors.New("connection refused")
	for _, c := range []struct{ got, want string }{
		{reach(refused), "network"},
		{reach(fmt.Errorf("reg/vm: %w", &registry.Error{Hint: "do that"})), "do that"},
		{reach(fmt.Errorf("%w: %w", registry.ErrRoots, unix.ENOENT)), "EPOCH_CA_CERT"},
		{admit(&registry.Error{}, "reg.example"), "docker login reg.example"},
		{admit(fmt.Errorf("reg/vm: %w", &registry.Error{Helper: "docker-credential-x"}), "reg.example"), "install docker-credential-x"},
		{passthrough(fs.ErrNotOffered).Do, "Linux 6.9"},
		{passthrough(unix.EPERM).Do, "root"},
		{passthrough(unix.EINVAL).Do, "--cache-dir"},
		{takeover(false).Do, "Linux 6.9"},
		{checkKind("nfs")[0].Do, "--cache-dir"},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("%q does not tell of %q", c.got, c.want)
		}
	}
	for _, c := range []Check{passthrough(nil), takeover(true)} {
		if c.Level != OK || c.Do != "" {
			t.Errorf("%s: %s, %q", c.Name, c.Level, c.Do)
		}
	}
	if all := checkKind("ext4"); len(all) > 0 {
		t.Errorf("ext4: %v", all)
	}
}

func TestPrivileges(t *testing.T) {
	for _, c := range []struct {
		root  bool
		oom   error
		names string
	}{
		{true, nil, ""},
		{true, unix.EACCES, "memory "},
		{false, unix.EACCES, "readahead memory "},
	} {
		var names string
		for _, check := range privileges(c.root, c.oom) {
			names += check.Name + " "
			if check.Level != Note || check.Do == "" {
				t.Errorf("%s: %s, %q", check.Name, check.Level, check.Do)
			}
		}
		if names != c.names {
			t.Errorf("root %v, %v: %q", c.root, c.oom, names)
		}
	}
}

func TestErrHasFirstKind(t *testing.T) {
	all := []Check{ok("a", "fine"), note("b", "", "less"), problem("c", "", registry.ErrDenied), problem("d", "", registry.ErrNotFound)}
	if err := Err(all); !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "2 problems") {
		t.Errorf("it is %v", err)
	}
	demote(all, "only the cache")
	if err := Err(all); err != nil || !strings.HasPrefix(all[2].Found, "only the cache: ") {
		t.Errorf("demoted: %v, %q", err, all[2].Found)
	}
}
