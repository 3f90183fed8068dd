package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

func TestMain(m *testing.M) {
	if IsTry() {
		os.Exit(TryMain())
	}
	if os.Getenv(helperEnv) != "" {
		os.Exit(runTestHelper(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// fileContent is a file on disk that may become ready for passthrough.
type fileContent struct {
	file  *os.File
	ready atomic.Bool
	reads atomic.Int64
}

func (c *fileContent) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	c.reads.Add(1)
	return c.file.ReadAt(p, off)
}
func (c *fileContent) Backing() (*os.File, bool) { return c.file, c.ready.Load() }
func (c *fileContent) Cached() int64             { return 0 }

// blocked is a content whose reads wait until it is opened, or until
// their reader leaves.
type blocked struct {
	bytesContent
	open    chan struct{}
	entered atomic.Int64
	left    atomic.Int64
}

func newBlocked(b []byte) *blocked { return &blocked{bytesContent: b, open: make(chan struct{})} }

func (c *blocked) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.entered.Add(1)
	defer c.left.Add(1)
	select {
	case <-c.open:
		return c.bytesContent.ReadAt(ctx, p, off)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func fileOf(name string, size int64, c Content) File {
	return File{Name: name, Mode: 0o644, Map: sparse.Dense(size), Content: c}
}

func bytesFile(name string, b []byte) File {
	return fileOf(name, int64(len(b)), BytesContent(b))
}

func textFile(name, text string) File { return bytesFile(name, []byte(text)) }

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func shaLine(b []byte) string { return fmt.Sprintf("%x\n", sha256.Sum256(b)) }

// diskFile writes b to disk and returns its content.
func diskFile(t *testing.T, b []byte) *fileContent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	check(t, os.WriteFile(path, b, 0o600))
	f, err := os.Open(path)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return &fileContent{file: f}
}

func needFUSE(t *testing.T) {
	t.Helper()
	tier.Long(t, "mounts")
	if _, err := os.Stat(fuseDevice); err != nil {
		t.Skip("no FUSE here: ", err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	tier.Long(t, "needs root")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// emptyDir is a directory that every user can reach.
func emptyDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "epochfs-fs-")
	check(t, err)
	check(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { check(t, os.Remove(dir)) })
	return dir
}

// mounted mounts files for the length of a test, and fails it if
// somebody still uses them at its end.
func mounted(t *testing.T, files []File, opts Options) *Mounted {
	t.Helper()
	needFUSE(t)
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(&testLog{t: t}, nil))
	}
	m, err := Mount(emptyDir(t), files, opts)
	check(t, err)
	t.Cleanup(func() {
		err := m.Unmount()
		for until := time.Now().Add(time.Minute); errors.Is(err, unix.EBUSY) && time.Now().Before(until); {
			time.Sleep(5 * time.Millisecond)
			err = m.Unmount()
		}
		if err != nil {
			t.Error(err)
			check(t, Unmount(m.Dir(), true))
		}
		m.Wait()
	})
	return m
}

// testLog counts lines.
type testLog struct {
	t     *testing.T
	mu    sync.Mutex
	lines []string
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *testLog) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func TestTree(t *testing.T) {
	when := time.Unix(1700000000, 123456789)
	segs := []sparse.Segment{{Offset: 0, Length: 4}, {Offset: 12, Length: 4}, {Offset: 8192, Length: 4096}}
	m4, err := sparse.New(segs, 1<<20+3)
	check(t, err)
	flat := make([]byte, m4.Size())
	for _, s := range segs {
		copy(flat[s.Offset:], randomBytes(int(s.Length), 1))
	}
	m := mounted(t, []File{
		textFile("snapshot.json", `{"version":1}`),
		{Name: "memory-ranges", Mode: 0o7777, Map: m4, Content: BytesContent(flat)},
		{Name: "empty", Mode: 0o400, Map: sparse.Dense(0), Content: BytesContent(nil)},
	}, Options{UID: 12, GID: 34, Time: when, FSName: "host/repo@sha256:0"})
	for path, want := range map[string]string{
		"":              "ino=1 mode=40500 size=4096 blocks=0 uid=12 gid=34 mtime=1700000000.123456789 nlink=2\n",
		"snapshot.json": "ino=2 mode=100444 size=13 blocks=1 uid=12 gid=34 mtime=1700000000.123456789 nlink=1\n",
		"memory-ranges": "ino=3 mode=100555 size=1048579 blocks=9 uid=12 gid=34 mtime=1700000000.123456789 nlink=1\n",
		"empty":         "ino=4 mode=100400 size=0 blocks=0 uid=12 gid=34 mtime=1700000000.123456789 nlink=1\n",
	} {
		if got := help(t, "stat", filepath.Join(m.Dir(), path)); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
	if got := run(t, "cat", filepath.Join(m.Dir(), "snapshot.json")); got != `{"version":1}` {
		t.Errorf("cat: %q", got)
	}
	if got := run(t, "ls", m.Dir()); got != "empty\nmemory-ranges\nsnapshot.json\n" {
		t.Errorf("ls: %q", got)
	}
	if got := run(t, "ls", "-lan", m.Dir()); !strings.Contains(got, " 12 34 1048579 ") {
		t.Errorf("ls -la: %s", got)
	}
	want := shaLine(flat)
	path := filepath.Join(m.Dir(), "memory-ranges")
	for _, how := range []string{"sha", "mmap", "odirect"} {
		if got := help(t, how, path); got != want {
			t.Errorf("%s: %s, want %s", how, got, want)
		}
	}
	if got := help(t, "seek", path); got != "0 4\n12 4\n8192 4096\n" {
		t.Errorf("seek: %q", got)
	}
	if got := run(t, "cat", filepath.Join(m.Dir(), "empty")); got != "" {
		t.Errorf("empty: %q", got)
	}
	copyTo := filepath.Join(t.TempDir(), "copy")
	run(t, "cp", "--sparse=always", path, copyTo)
	run(t, "cmp", path, copyTo)
	b, err := os.ReadFile(copyTo)
	check(t, err)
	if !bytes.Equal(b, flat) {
		t.Error("cp made another file")
	}
	df := run(t, "stat", "-f", "-c", "%l %s %b %f %c", m.Dir())
	if df != "255 4096 3 0 4\n" {
		t.Errorf("statfs: %q", df)
	}
	mounts := run(t, "grep", " "+m.Dir()+" ", "/proc/self/mounts")
	fields := strings.Fields(mounts)
	if fields[0] != "host/repo@sha256:0" || fields[2] != "fuse.epochfs" {
		t.Errorf("mounts: %q", mounts)
	}
	for _, o := range []string{"ro", "nosuid", "nodev", "default_permissions"} {
		if !strings.Contains(","+fields[3]+",", ","+o+",") {
			t.Errorf("mount option %s is missing: %q", o, fields[3])
		}
	}
}

func TestDirectoryOffsets(t *testing.T) {
	files := make([]File, 200)
	for i := range files {
		files[i] = textFile(fmt.Sprintf("file-%03d", i), "x")
	}
	m := mounted(t, files, Options{})
	var want strings.Builder
	for pass := range 2 {
		fmt.Fprintf(&want, "%d 1 1 4 .\n", pass)
		for i := range files {
			fmt.Fprintf(&want, "%d %d %d 8 file-%03d\n", pass, i+2, i+3, i)
		}
	}
	// The kernel makes up ".."'s inode number.
	var got strings.Builder
	for line := range strings.Lines(help(t, "dir", m.Dir())) {
		if !strings.HasSuffix(line, " ..\n") {
			got.WriteString(line)
		}
	}
	if got.String() != want.String() {
		t.Errorf("got %s\nwant %s", got.String(), want.String())
	}
}

func TestSeek(t *testing.T) {
	segs := []sparse.Segment{{Offset: 10, Length: 10}, {Offset: 40, Length: 10}}
	sm, err := sparse.New(segs, 100)
	check(t, err)
	touched := newBlocked(nil) // a read would hang
	m := mounted(t, []File{{Name: "f", Mode: 0o444, Map: sm, Content: touched}}, Options{})
	got := help(t, "seekat", filepath.Join(m.Dir(), "f"),
		"data@0", "data@15", "data@20", "data@50", "data@100", "data@-1", "data@9223372036854775807",
		"hole@0", "hole@10", "hole@45", "hole@60", "hole@100", "hole@-1", "end@0")
	want := "10\n15\n40\nENXIO\nENXIO\nENXIO\nENXIO\n" + "0\n20\n50\n60\nENXIO\nENXIO\n100\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := touched.entered.Load(); n != 0 {
		t.Errorf("%d reads", n)
	}
}

func TestRandomMaps(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var files []File
	flats := map[string][]byte{}
	maps := map[string]string{}
	for i := range 8 {
		size := 1 + r.Int64N(3<<20)
		flat := make([]byte, size)
		var segs []sparse.Segment
		var text strings.Builder
		for off := r.Int64N(9000); off < size; {
			s := sparse.Segment{Offset: off, Length: min(1+r.Int64N(200000), size-off)}
			copy(flat[off:], randomBytes(int(s.Length), seed+uint64(off)))
			segs = append(segs, s)
			fmt.Fprintln(&text, s.Offset, s.Length)
			off += s.Length + 1 + r.Int64N(100000)
		}
		sm, err := sparse.New(segs, size)
		check(t, err)
		name := fmt.Sprint("f", i)
		files = append(files, File{Name: name, Mode: 0o444, Map: sm, Content: BytesContent(flat)})
		flats[name], maps[name] = flat, text.String()
	}
	m := mounted(t, files, Options{})
	for name, flat := range flats {
		path := filepath.Join(m.Dir(), name)
		if got := help(t, "seek", path); got != maps[name] {
			t.Errorf("%s: segments differ", name)
		}
		off := r.IntN(len(flat))
		n := r.IntN(300000)
		want := fmt.Sprintf("%x\n", flat[off:min(off+n, len(flat))])
		if got := help(t, "readat", path, fmt.Sprint(off), fmt.Sprint(n)); got != want {
			t.Errorf("%s: [%d,+%d) differs", name, off, n)
		}
		if got := help(t, "sha", path); got != shaLine(flat) {
			t.Errorf("%s: content differs", name)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("x", 256)} {
		if _, err := Mount("/nonexistent", []File{textFile(name, "x")}, Options{}); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, err := Mount("/nonexistent", []File{textFile("a", "x"), textFile("a", "x")}, Options{}); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("repeated name: %v", err)
	}
	if _, err := Mount("/dev/null", []File{textFile("a", "x")}, Options{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("mount on a file: %v", err)
	}
	if _, err := Mount("/nonexistent", nil, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mount on nothing: %v", err)
	}
}

func TestBytesContent(t *testing.T) {
	r := contentReader{BytesContent([]byte("hello"))}
	b, err := io.ReadAll(io.NewSectionReader(r, 1, 100))
	if string(b) != "ello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 9); err != io.EOF {
		t.Error(err)
	}
}

type contentReader struct{ Content }

func (r contentReader) ReadAt(p []byte, off int64) (int, error) {
	return r.Content.ReadAt(context.Background(), p, off)
}
