package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/sandbox"
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
		{caller{}.passthrough(fs.ErrNotOffered).Do, "Linux 6.9"},
		{caller{}.passthrough(unix.EPERM).Do, "mount as root"},
		{caller{root: true}.passthrough(unix.EPERM).Do, "--cap-add SYS_ADMIN"},
		{caller{}.passthrough(unix.EINVAL).Do, "--cache-dir"},
		{takeover(false).Do, "Linux 6.9"},
		{confinement(sandbox.Limits).Do, "seccomp"},
		{named(unix.NFS_SUPER_MAGIC, "nfs").check()[0].Do, "--cache-dir"},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("%q does not tell of %q", c.got, c.want)
		}
	}
	for _, c := range []Check{caller{}.passthrough(nil), takeover(true), confinement(sandbox.Seccomp)} {
		if c.Level != OK || c.Do != "" {
			t.Errorf("%s: %s, %q", c.Name, c.Level, c.Do)
		}
	}
}

// Advice is for who asks: root is not told to be root.
func TestPrivileges(t *testing.T) {
	all := ^uint64(0)
	for _, c := range []struct {
		who               caller
		readahead, spared error
		want              []string // in what there is to do
	}{
		{caller{root: true, caps: all}, nil, nil, nil},
		{caller{root: true, caps: all &^ (1 << 24)}, nil, unix.EACCES, []string{"--cap-add SYS_RESOURCE"}},
		{caller{root: true, caps: all &^ (1 << 24), namespace: true}, nil, unix.EACCES, []string{"user namespace"}},
		{caller{root: true, caps: all, namespace: true}, nil, unix.EACCES, []string{"user namespace"}},
		{caller{root: true, caps: all}, nil, unix.EACCES, []string{"seccomp"}},
		{caller{root: true, caps: all}, unix.EROFS, unix.EROFS, []string{"/sys", "/proc"}},
		{caller{}, unix.EACCES, unix.EACCES, []string{"mount as root", "mount as root"}},
	} {
		checks := c.who.privileges(c.readahead, c.spared)
		if len(checks) != len(c.want) {
			t.Errorf("%+v: %v", c.who, checks)
			continue
		}
		for i, check := range checks {
			if check.Level != Note || !strings.Contains(check.Do, c.want[i]) || c.who.root && strings.HasSuffix(check.Do, "mount as root") {
				t.Errorf("%+v: %s, %s, %q", c.who, check.Name, check.Level, check.Do)
			}
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

// A mirror is lazy unless a whole blob came, or was waited for.
func TestFetchesWhole(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		l     laziness
		err   error
		whole bool
	}{
		{laziness{first: 10 * ms, second: 10 * ms}, nil, false},
		{laziness{first: 900 * ms, second: ms}, nil, false}, // a slice that came from far away
		{laziness{first: 3000 * ms, second: 2900 * ms}, nil, false},
		{laziness{first: 3000 * ms, second: 300 * ms}, nil, true},
		{laziness{first: ms, whole: true}, nil, true},
		{laziness{first: 20000 * ms}, context.DeadlineExceeded, true},
	} {
		if got := c.l.fetchesWhole(c.err) != ""; got != c.whole {
			t.Errorf("%+v, %v: %v", c.l, c.err, got)
		}
	}
}
