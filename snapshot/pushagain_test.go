package snapshot_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// exporting is a cocoon that exports the tars it has, one after another,
// the last for ever.
type exporting struct {
	snapshot.CocoonRunner
	tars   [][]byte
	fail   error           // of an export that was read to its end
	pause  <-chan struct{} // nil, or what an export waits for after 4 MiB
	mu     sync.Mutex
	starts int
	open   int
}

func (c *exporting) Export(context.Context, string) (io.ReadCloser, func() error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tar := c.tars[min(c.starts, len(c.tars)-1)]
	c.starts++
	c.open++
	r := bytes.NewReader(tar)
	body := io.Reader(struct{ io.Reader }{r})
	if c.pause != nil {
		body = io.MultiReader(io.LimitReader(r, 4*mib), &waiting{r, c.pause})
	}
	return io.NopCloser(body), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
		if c.fail != nil {
			return c.fail
		}
		if r.Len() > 0 {
			return errors.New("signal: broken pipe")
		}
		return nil
	}, nil
}

// waiting is a reader whose bytes come when something is closed.
type waiting struct {
	io.Reader
	until <-chan struct{}
}

func (w *waiting) Read(p []byte) (int, error) {
	<-w.until
	return w.Reader.Read(p)
}

// dying is a registry whose upload sessions die after some bytes, a
// few times; it asks for the body again where that can seek.
type dying struct {
	*artifacttest.Store
	after []int64
}

var errSession = errors.New("the session died")

func (b *dying) UploadBlob(ctx context.Context, name string, body io.Reader) (string, int64, error) {
	for len(b.after) > 0 {
		n := b.after[0]
		b.after = b.after[1:]
		if _, err := io.CopyN(io.Discard, body, n); err != nil {
			return "", 0, err
		}
		s, ok := body.(io.Seeker)
		if !ok {
			return "", 0, &temporary{errSession}
		}
		if _, err := s.Seek(0, io.SeekStart); err != nil {
			return "", 0, err
		}
	}
	return b.Store.UploadBlob(ctx, name, body)
}

type temporary struct{ error }

func (*temporary) Temporary() bool { return true }
func (t *temporary) Unwrap() error { return t.error }

// againFiles are a file before, the one whose upload breaks, and one
// after it.
func againFiles() []artifacttest.File {
	return []artifacttest.File{
		{Name: "a.raw", Data: pattern(3*mib + 3)},
		{Name: "memory-ranges", Data: pattern(3*mib + 1)},
		{Name: "state.json", Data: []byte("{}")},
	}
}

// breaks are where sessions die: the first and the second time at once,
// far, less far, farther.
var breaks = [][]int64{{0}, {mib}, {2 * mib, mib / 2, 3 * mib}, {3*mib + 3}}

// A session that dies is begun anew from a second export.
func TestSecondExport(t *testing.T) {
	t.Parallel()
	files := againFiles()
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for form, opts := range map[string]snapshot.PushOptions{
		"v1":      {},
		"streams": {Zstd: 1, Chunk: 1024 * mib},
		"raw":     {Chunk: 1024 * mib},
	} {
		breaks := breaks
		if opts.Zstd > 0 {
			breaks = [][]int64{{50, 100}} // it compresses well
		}
		for _, after := range breaks {
			store := artifacttest.NewStore()
			cocoon := &exporting{tars: [][]byte{export}}
			opts.Name = "vm"
			var total int64
			opts.OnBytes = func(n int64) { total += n }
			res, err := (&snapshot.Pusher{Uploader: &dying{store, after}, Cocoon: cocoon}).Push(t.Context(), opts)
			if err != nil {
				t.Fatalf("%s, %v: %v", form, after, err)
			}
			checkStored(t, store, artifacttest.Envelope, files)
			if want := len(after) + 1; after[0] > 0 && cocoon.starts != want || cocoon.open != 0 {
				t.Errorf("%s, %v: %d exports, %d left open", form, after, cocoon.starts, cocoon.open)
			}
			if total != res.TotalSize || res.SentBytes != res.TotalSize {
				t.Errorf("%s, %v: told of %d bytes, sent %d of %d", form, after, total, res.SentBytes, res.TotalSize)
			}
		}
	}
}

// A second export that is not what the first was fails the push.
func TestSecondExportDiffers(t *testing.T) {
	t.Parallel()
	export := artifacttest.Tar(artifacttest.Envelope, againFiles())
	change := func(edit func(files []artifacttest.File) []artifacttest.File) []byte {
		return artifacttest.Tar(artifacttest.Envelope, edit(againFiles()))
	}
	for name, second := range map[string][]byte{
		"other bytes in a file before": change(func(f []artifacttest.File) []artifacttest.File { f[0].Data[7]++; return f }),
		"other bytes so far":           change(func(f []artifacttest.File) []artifacttest.File { f[1].Data[mib]++; return f }),
		"another name":                 change(func(f []artifacttest.File) []artifacttest.File { f[0].Name = "b.raw"; return f }),
		"another size":                 change(func(f []artifacttest.File) []artifacttest.File { f[1].Data = f[1].Data[1:]; return f }),
		"another mode":                 change(func(f []artifacttest.File) []artifacttest.File { f[0].Mode = 0o600; return f }),
		"fewer files":                  change(func(f []artifacttest.File) []artifacttest.File { return f[:1] }),
		"another envelope":             artifacttest.Tar(`{"config":{"name":"x"}}`, againFiles()),
		"cut":                          export[:4*mib],
		"nothing":                      nil,
	} {
		store := artifacttest.NewStore()
		up := &dying{Store: store}
		cocoon := &exporting{tars: [][]byte{export, second}}
		// The second file's session dies.
		first := true
		opts := snapshot.PushOptions{Name: "vm", Progress: func(string) {
			if first {
				up.after = []int64{2 * mib}
			}
			first = false
		}}
		_, err := (&snapshot.Pusher{Uploader: up, Cocoon: cocoon}).Push(t.Context(), opts)
		if err == nil || store.Calls("PutManifest") != 0 || cocoon.open != 0 || cocoon.starts != 2 {
			t.Errorf("%s: %v; %d exports, %d left open", name, err, cocoon.starts, cocoon.open)
		}
		if name != "cut" && name != "nothing" && !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A cocoon that fails half way is what the push fails with.
func TestPushSaysWhatCocoonSays(t *testing.T) {
	t.Parallel()
	export := artifacttest.Tar(artifacttest.Envelope, againFiles())
	words := errors.New("cocoon's own words")
	for _, opts := range []snapshot.PushOptions{{}, {Zstd: 1, Chunk: mib}, {Zstd: 1, Chunk: 1024 * mib}} {
		for _, cut := range []int{600, 3000, 4 * mib, 5 * mib, len(export)} {
			store := artifacttest.NewStore()
			opts.Name = "vm"
			cocoon := &exporting{tars: [][]byte{export[:cut]}, fail: words}
			_, err := (&snapshot.Pusher{Uploader: store, Cocoon: cocoon}).Push(t.Context(), opts)
			if !errors.Is(err, words) || store.Calls("PutManifest") != 0 {
				t.Errorf("cut at %d: %v", cut, err)
			}
		}
	}
}

// What can be read only once fails with its upload, unless a copy was
// asked for; a compressed file is read again.
func TestSpool(t *testing.T) {
	t.Parallel()
	files := againFiles()
	export := artifacttest.Tar(artifacttest.Envelope, files)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(export)
	z.Close()
	for i, after := range breaks {
		for name, input := range map[string]io.Reader{
			"pipe": io.MultiReader(bytes.NewReader(export)), "gzip in a pipe": io.MultiReader(bytes.NewReader(zipped.Bytes())),
			"gzip in a file": bytes.NewReader(zipped.Bytes()),
		} {
			if name != "pipe" && i != 2 {
				continue // what is read makes no difference to where it breaks
			}
			store := artifacttest.NewStore()
			dir := t.TempDir()
			opts := snapshot.PushOptions{Name: "vm", Input: input, Spool: true, SpoolDir: dir}
			if _, err := (&snapshot.Pusher{Uploader: &dying{store, after}}).Push(t.Context(), opts); err != nil {
				t.Fatalf("%s, %v: %v", name, after, err)
			}
			checkStored(t, store, artifacttest.Envelope, files)
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v, %v", left, err)
			}
		}
	}
	store := artifacttest.NewStore()
	opts := snapshot.PushOptions{Name: "vm", Input: io.MultiReader(bytes.NewReader(export))}
	_, err := (&snapshot.Pusher{Uploader: &dying{store, []int64{mib}}}).Push(t.Context(), opts)
	if !errors.Is(err, errSession) || !strings.Contains(err.Error(), "spool") || store.Calls("PutManifest") != 0 {
		t.Errorf("without a copy: %v", err)
	}
}

// A push that is interrupted leaves no manifest, and nothing that runs.
func TestPushInterrupted(t *testing.T) {
	export := artifacttest.Tar(artifacttest.Envelope, againFiles())
	for _, opts := range []snapshot.PushOptions{{}, {Zstd: 1}, {Chunk: mib}} {
		ctx, cancel := context.WithCancel(t.Context())
		store := artifacttest.NewStore()
		// The second file is not over when the first is sent.
		cocoon := &exporting{tars: [][]byte{export}, pause: ctx.Done()}
		opts.Name = "vm"
		opts.OnBytes = func(int64) { cancel() }
		_, err := (&snapshot.Pusher{Uploader: store, Cocoon: cocoon}).Push(ctx, opts)
		if err == nil || store.Calls("PutManifest") != 0 || cocoon.open != 0 {
			t.Errorf("%v; %d left open", err, cocoon.open)
		}
	}
}
