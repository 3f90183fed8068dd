package snapshot_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// zstdOf is data in one frame with the given window, in bytes.
func zstdOf(t *testing.T, window int, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithWindowSize(window), zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPushOfZstd pushes an export that is compressed with zstd, in the ways
// that its programs write: the same manifest as of the plain tar comes of it.
func TestPushOfZstd(t *testing.T) {
	t.Parallel()
	files := []artifacttest.File{artifacttest.RandomFile(rand.New(rand.NewPCG(1, 2)), "cow.raw", 3*mib), {Name: "config.json", Data: []byte("{}")}}
	export := artifacttest.Tar(artifacttest.Envelope, files)
	one := zstdOf(t, 1<<20, export)
	half := len(export) / 3
	skippable := "\x53\x2a\x4d\x18\x04\x00\x00\x00skip"
	for form, packed := range map[string][]byte{
		"one frame":         one,
		"two frames":        append(zstdOf(t, 1<<20, export[:half]), zstdOf(t, 8<<20, export[half:])...),
		"a skippable frame": append([]byte(skippable), one...),
	} {
		for how, input := range inputs(packed) {
			store := artifacttest.NewStore()
			if _, err := pushTo(t, store, input()); err != nil {
				t.Errorf("%s in a %s: %v", form, how, err)
				continue
			}
			checkStored(t, store, artifacttest.Envelope, files)
		}
	}
	for what, wrong := range map[string][]byte{"cut": one[:len(one)-9], "damaged": flipped(one, len(one)/2), "with another checksum": flipped(one, len(one)-2)} {
		for how, input := range inputs(wrong) {
			store := artifacttest.NewStore()
			if _, err := pushTo(t, store, input()); !errors.Is(err, layout.ErrContent) || store.Calls("PutManifest") > 0 {
				t.Errorf("%s in a %s: %v", what, how, err)
			}
		}
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x40
	return b
}

// TestWindowOfZstd refuses a frame whose window is larger than half of the
// push's memory, and reads it where it is not.
func TestWindowOfZstd(t *testing.T) {
	tier.Long(t, "decodes windows of 64 MB")
	export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "cow.raw", Data: make([]byte, 70*mib)}})
	packed := zstdOf(t, 64<<20, export)
	push := func(memory int64) (*snapshot.PushResult, error) {
		opts := snapshot.PushOptions{Name: "vm", Input: bytes.NewReader(packed), Memory: memory, Zstd: 1, Chunk: 4 * mib}
		return (&snapshot.Pusher{Uploader: artifacttest.NewStore()}).Push(t.Context(), opts)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := push(96 * mib)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, layout.ErrContent) || !strings.Contains(err.Error(), "--memory") {
		t.Errorf("a window of 64 MiB: %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 48*mib {
		t.Errorf("%d bytes were taken to refuse it", n)
	}
	if res, err := push(0); err != nil || res.LayerCount < 17 {
		t.Errorf("with the usual memory: %v, %+v", err, res)
	}
}

// TestPushOfOtherPackings names what is no tar, by its first bytes.
func TestPushOfOtherPackings(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"xz":    "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46",
		"bzip2": "BZh91AY&SY\x1a\x2b",
		"lz4":   "\x04\x22\x4d\x18\x64\x40",
		"lzip":  "LZIP\x01\x0c",
		"lzma":  "\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff",
		"zip":   "PK\x03\x04\x14\x00",
		"7z":    "7z\xbc\xaf\x27\x1c\x00\x04",
	} {
		for _, rest := range []string{"", strings.Repeat("\x5a\xa5", 4096)} {
			for how, input := range inputs([]byte(head + rest)) {
				_, err := pushTo(t, artifacttest.NewStore(), input())
				if !errors.Is(err, layout.ErrContent) || !strings.Contains(err.Error(), "compressed with "+name+":") {
					t.Errorf("%s in a %s: %v", name, how, err)
				}
			}
		}
	}
}

// gitTar is a tar as git archive writes it.
func gitTar(t *testing.T, files ...artifacttest.File) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header",
		PAXRecords: map[string]string{"comment": "2a0620c9f9a5b1a8d2c6d0e4b7f3a5968778695a"}})
	for _, f := range files {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: 0o644, Size: int64(len(f.Data))})
		}
		if err == nil {
			_, err = w.Write(f.Data)
		}
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPushOfGitArchive names a git archive, whatever its entries; one of a
// repository that holds a snapshot is pushed.
func TestPushOfGitArchive(t *testing.T) {
	t.Parallel()
	readme := artifacttest.File{Name: "README", Data: []byte("read me")}
	for what, files := range map[string][]artifacttest.File{
		"flat":                {readme},
		"in a directory":      {{Name: "repo/README", Data: readme.Data}},
		"empty":               nil,
		"a directory in flat": {readme, {Name: "cmd/main.go", Data: []byte("package main")}},
	} {
		for how, input := range inputs(gitTar(t, files...)) {
			store := artifacttest.NewStore()
			_, err := pushTo(t, store, input())
			if !errors.Is(err, layout.ErrContent) || !strings.Contains(err.Error(), "git archive, of commit 2a0620c9f9a5b1a8d2c6d0e4b7f3a5968778695a") {
				t.Errorf("%s in a %s: %v", what, how, err)
			}
			if store.Calls("PutManifest") > 0 {
				t.Errorf("%s in a %s: it was pushed", what, how)
			}
		}
	}
	envelope := artifacttest.File{Name: snapshot.EnvelopeName, Data: []byte(artifacttest.Envelope)}
	for how, input := range inputs(gitTar(t, envelope, cow()[0])) {
		store := artifacttest.NewStore()
		if _, err := pushTo(t, store, input()); err != nil {
			t.Errorf("with a snapshot in a %s: %v", how, err)
			continue
		}
		checkStored(t, store, artifacttest.Envelope, cow())
	}
	// Global records that say something about files are not passed over.
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}})
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := pushTo(t, artifacttest.NewStore(), io.MultiReader(&out)); !errors.Is(err, layout.ErrContent) {
		t.Errorf("other global records: %v", err)
	}
}
