package fs

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Whatever ends a negotiation, no descriptor is left.
func TestNegotiationsThatFail(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would close them
	files := []File{textFile("f", "x")}
	request := initRequest()
	failed := errors.New("not this one")
	before := openFDs(t)
	for range 5 {
		tr, err := newTree(files, Options{})
		check(t, err)
		tr.present = func(*fuse.Server) error { return failed }
		if _, _, _, err := tr.negotiate(request, optional); !errors.Is(err, failed) {
			t.Fatalf("without buffers: %v", err)
		}
		for _, c := range []struct {
			change byte
			want   error
		}{{1, errOther}, {0, failed}} {
			kept := keptMemory(t, files, request, c.change)
			if _, err := Resume(kept, "/", files, Options{}, func() error { return failed }); !errors.Is(err, c.want) {
				t.Fatalf("taken over: %v", err)
			}
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// keptMemory is a mount that was negotiated as present, or otherwise.
func keptMemory(t *testing.T, files []File, request []byte, change byte) Kept {
	t.Helper()
	m, err := newMemory(len(files), nil)
	check(t, err)
	_, err = openHandles(m.table, len(files))
	check(t, err)
	tr, err := newTree(files, Options{})
	check(t, err)
	server, fd, reply, err := tr.negotiate(request, optional)
	check(t, err)
	discard(server, fd)
	reply[len(reply)-1] ^= change
	check(t, m.setInit(request, reply))
	device, err := os.Open(os.DevNull)
	check(t, err)
	return Kept{Device: device, Memory: m.file}
}

// A mount that was negotiated without an optional capability is taken over
// without it.
func TestNegotiatedBefore(t *testing.T) {
	tr, err := newTree(nil, Options{})
	check(t, err)
	for _, extra := range []uint64{0, optional} {
		server, fd, reply, err := tr.negotiate(initRequest(), extra)
		check(t, err)
		discard(server, fd)
		if got := optional & negotiated(reply); got != extra {
			t.Errorf("asked for %x, agreed on %x", extra, got)
		}
	}
	if got := negotiated(make([]byte, 10)); got != 0 {
		t.Errorf("of no reply: %x", got)
	}
}

// A process that takes over declines nothing.
func TestSuccessorDeclinesNothing(t *testing.T) {
	forceDeclining(t)
	all := func(string, int64, int64) bool { return true }
	for want, newOne := range map[bool]func([]File, Options) (*tree, error){true: newTree, false: newSuccessor} {
		tr, err := newOne([]File{bytesFile("f", randomBytes(1<<20, 1))}, Options{Decline: all})
		check(t, err)
		tr.handles, err = openHandles(make([]byte, handlesSize(1, 16)), 1)
		check(t, err)
		h, _ := tr.handles.open(1, firstIno, cached, 0)
		if got := tr.declines(tr.nodes[0], &fuse.ReadIn{Fh: h.fh, Size: 1 << 20}); got != want {
			t.Errorf("declined: %v, want %v", got, want)
		}
	}
}
