package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// smallFiles has bodies that end on a block's border, one byte before
// and after it, an empty one, and a sparse one.
func smallFiles(t testing.TB) []artifacttest.File {
	t.Helper()
	m, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 4}, {Offset: 12, Length: 4}}, 20)
	if err != nil {
		t.Fatal(err)
	}
	return []artifacttest.File{
		{Name: "block", Data: pattern(512)},
		{Name: "less", Data: pattern(511)},
		{Name: "more", Data: pattern(513)},
		{Name: "one", Data: []byte("x")},
		{Name: "empty"},
		{Name: "sparse.raw", Data: []byte("abcd\x00\x00\x00\x00\x00\x00\x00\x00efgh\x00\x00\x00\x00"), Map: m},
	}
}

// errBroken is what the payload of a test breaks with.
var errBroken = errors.New("broken off")

// breaking gives the payload of one file only up to a byte, and then
// fails; after all bytes it fails in place of io.EOF, as what is not
// verified does.
type breaking struct {
	snapshot.Payloads
	name string
	at   int64
}

func (b *breaking) OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error) {
	r, err := b.Payloads.OpenPayload(ctx, f)
	if err != nil || f.Name != b.name {
		return r, err
	}
	if b.at < 0 {
		r.Close()
		return nil, errBroken
	}
	return &brokenReader{ReadCloser: r, left: b.at}, nil
}

type brokenReader struct {
	io.ReadCloser
	left int64
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errBroken
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Wherever the source breaks, and with whatever is last in a body or in
// its padding, the importer must not take what it got for a whole tar.
func TestBrokenTarIsRefusedByTheImporter(t *testing.T) {
	files := smallFiles(t)
	art, store := mustLoad(t, artifacttest.Snapshot(files, artifacttest.Options{Envelope: artifacttest.Envelope}))
	for _, f := range art.Files {
		for at := int64(-1); at <= f.PayloadSize(); at++ {
			if at > 2 && at < f.PayloadSize()-2 {
				continue
			}
			src := &breaking{Payloads: snapshot.DownloaderPayloads(store, "vm"), name: f.Name, at: at}
			var out bytes.Buffer
			if err := art.WriteTar(t.Context(), &out, src, snapshot.TarOptions{}); !errors.Is(err, errBroken) {
				t.Fatalf("%s at %d: %v", f.Name, at, err)
			}
			if got, _, err := artifacttest.Extract(&out); err == nil {
				t.Errorf("%s at %d: taken for a whole tar of %d files", f.Name, at, len(got))
			}
		}
	}
}

func TestCancelledTarIsRefusedByTheImporter(t *testing.T) {
	art, store := mustLoad(t, artifacttest.Snapshot(smallFiles(t), artifacttest.Options{}))
	for stop := range len(art.Files) {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		var out bytes.Buffer
		err := art.WriteTar(ctx, &out, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{Progress: func(string) {
			if n++; n > stop {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%v", err)
		}
		if _, _, err := artifacttest.Extract(&out); err == nil {
			t.Errorf("stopped at file %d: taken for whole", stop)
		}
	}
}

// limited takes n bytes and then fails, as a pipe whose reader went.
type limited struct {
	bytes.Buffer
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.n {
		return 0, io.ErrClosedPipe
	}
	return l.Buffer.Write(p)
}

func TestWriteErrorsAreReported(t *testing.T) {
	art, store := mustLoad(t, artifacttest.Snapshot(smallFiles(t), artifacttest.Options{}))
	for _, n := range []int{0, 100, 5000} {
		err := art.WriteTar(t.Context(), &limited{n: n}, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{})
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// More and less than the file has are wrong too, whoever the source is.
type constant string

func (c constant) OpenPayload(context.Context, *layout.File) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(c))), nil
}

func TestSourceOfWrongLength(t *testing.T) {
	art, _ := mustLoad(t, artifacttest.Snapshot(cow(), artifacttest.Options{}))
	for _, c := range []constant{"", "0123456789abcde", "0123456789abcdefg"} {
		var out bytes.Buffer
		if err := art.WriteTar(t.Context(), &out, c, snapshot.TarOptions{}); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%q: %v", c, err)
		}
		if _, _, err := artifacttest.Extract(&out); err == nil {
			t.Errorf("%q: taken for whole", c)
		}
	}
}

// fragmented is a file of n segments of one byte each, 40 bytes apart.
func fragmented(t testing.TB, n int) artifacttest.File {
	t.Helper()
	segs := make([]sparse.Segment, n)
	data := make([]byte, n*40)
	for i := range segs {
		segs[i] = sparse.Segment{Offset: int64(i*40 + 7), Length: 1}
		data[i*40+7] = byte(1 + i%255)
	}
	m, err := sparse.New(segs, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return artifacttest.File{Name: "cow.raw", Data: data, Map: m}
}

// A map of up to 800 KiB goes into the header, a longer one makes a full
// entry with zeros in its holes.
func TestLongMapIsWrittenInFull(t *testing.T) {
	for n, full := range map[int]bool{30000: false, 60000: true} {
		f := fragmented(t, n)
		if (len(f.Map.Text()) > 800<<10) != full {
			t.Fatalf("%d segments are %d bytes of text", n, len(f.Map.Text()))
		}
		art, store := mustLoad(t, artifacttest.Snapshot([]artifacttest.File{f}, artifacttest.Options{Zstd: true}))
		var total int64
		opts := snapshot.TarOptions{OnBytes: func(n int64) { total += n }}
		var out bytes.Buffer
		if err := art.WriteTar(t.Context(), &out, snapshot.DownloaderPayloads(store, "vm"), opts); err != nil {
			t.Fatal(err)
		}
		got, _ := extract(t, out.Bytes())
		if g := got["cow.raw"]; !bytes.Equal(g.Data, f.Data) || (g.PAX == nil) != full {
			t.Errorf("%d segments: %d bytes, header %v", n, len(g.Data), g.PAX != nil)
		}
		if total != int64(n) {
			t.Errorf("%d bytes told of, want %d of data", total, n)
		}
		if !full {
			continue
		}
		src := &breaking{Payloads: snapshot.DownloaderPayloads(store, "vm"), name: "cow.raw", at: f.Map.DataSize()}
		out.Reset()
		if err := art.WriteTar(t.Context(), &out, src, snapshot.TarOptions{}); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
		if _, _, err := artifacttest.Extract(&out); err == nil {
			t.Error("a full entry that was not verified is taken for whole")
		}
	}
}

func TestTarIsTheSameEachTime(t *testing.T) {
	art, store := mustLoad(t, artifacttest.Snapshot(smallFiles(t), artifacttest.Options{}))
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := art.WriteTar(t.Context(), w, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two tars of one snapshot differ")
	}
}

// A map in another form is written in the usual one; null, which cocoon
// writes for a file that is all hole, stays.
func TestMapIsWrittenInTheUsualForm(t *testing.T) {
	for text, want := range map[string]string{
		`[{"o":0,"l":16}]`:                     `[{"o":0,"l":16}]`,
		` [ {"L":16, "o":5, "O":2, "x":""} ] `: `[{"o":2,"l":16}]`,
	} {
		art, store := mustLoad(t, artifacttest.Snapshot(cow(), artifacttest.Options{Edit: meta(func(f *manifest.SnapshotFile) { f.SparseMap, f.SparseSize = text, 32 })}))
		files, _ := untarred(t, store, "vm", "latest")
		if got := files["cow.raw"].PAX["COCOON.sparse.map"]; got != want || art.Files[0].MapText != text {
			t.Errorf("%s was written as %s", text, got)
		}
	}
	holes := artifacttest.Snapshot([]artifacttest.File{{Name: "cow.raw"}}, artifacttest.Options{Edit: meta(func(f *manifest.SnapshotFile) { f.SparseMap, f.SparseSize = "null", 32 })})
	_, store := mustLoad(t, holes)
	files, _ := untarred(t, store, "vm", "latest")
	if f := files["cow.raw"]; len(f.Data) != 32 || f.PAX["COCOON.sparse.map"] != "null" || store.Calls("GetBlob") != 2 {
		t.Errorf("all hole: %d bytes, %v, %d blobs read", len(f.Data), f.PAX, store.Calls("GetBlob"))
	}
}
