package keeper

import (
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOneProcessor(t *testing.T) {
	for _, env := range [][]string{{}, {"A=1", "B=2"}} {
		lean := slices.Concat(env, oneProcessor(env))
		if !slices.Equal(lean, slices.Concat(env, []string{"GOMAXPROCS=1", "EPOCHFS_ONE_PROCESSOR=1"})) {
			t.Errorf("%q became %q", env, lean)
		}
		if got := allProcessors(lean); !slices.Equal(got, env) {
			t.Errorf("%q became %q", env, got)
		}
	}
	users := []string{"A=1", "GOMAXPROCS=4"}
	if got := oneProcessor(users); got != nil {
		t.Errorf("a user's GOMAXPROCS: %q", got)
	}
	if got := allProcessors(slices.Clone(users)); !slices.Equal(got, users) {
		t.Errorf("a user's GOMAXPROCS: %q", got)
	}
}

// A worker that was started on one processor serves on all of them, and one with
// a user's GOMAXPROCS on as many as that says.
func TestServesOnAllProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	runtime.SetDefaultGOMAXPROCS()
	all := runtime.GOMAXPROCS(0)
	for _, one := range []bool{true, false} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		l := &Link{one: one, serve: make(chan struct{}), lost: make(chan struct{})}
		runtime.GOMAXPROCS(all + 1)
		go l.listen(pair[1], l.lost)
		if err := send(pair[0], newMessage(varServe, "1"), nil); err != nil {
			t.Fatal(err)
		}
		<-l.serve
		want := all + 1
		if one {
			want = all
		}
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("GOMAXPROCS %d, not %d", got, want)
		}
		unix.Close(pair[0])
		<-l.Lost()
		unix.Close(pair[1])
	}
}
