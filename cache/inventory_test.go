package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// keep reads n bytes of a file into the cache in dir and notes it as an
// artifact. It was last used as long ago as age says.
func keep(t *testing.T, dir, reference string, a artifact, src *fakeSource, n int, age time.Duration) {
	t.Helper()
	c := openCache(t, dir, Options{})
	blob := []byte("manifest of " + reference)
	digest := src.put(blob)
	for _, err := range []error{
		c.PutBlob(digest, blob), c.PutRef(reference+":v1", digest),
		c.PutArtifact(reference+"@"+digest, digest, []*layout.File{a.file}, src, []string{digest}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, n)
	if n == len(a.flat) {
		eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	}
	_ = h.Close()
	_ = c.Close()
	old := time.Now().Add(-age)
	for _, pattern := range []string{disk.Files + "/" + a.file.Key() + ".*", filepath.Join(disk.Blobs, strings.TrimPrefix(digest, "sha256:")), refPath(reference + ":v1"), refPath(reference + "@" + digest)} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", pattern, names, err)
		}
		for _, name := range names {
			if err := os.Chtimes(name, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestInventory(t *testing.T) {
	rng, src, dir := newRand(t), &fakeSource{}, t.TempDir()
	a, b := makeFile(t, rng, src, kinds[0], 3<<20), makeFile(t, rng, src, kinds[1], 2<<20)
	keep(t, dir, "reg/one", a, src, len(a.flat), time.Hour)
	keep(t, dir, "reg/two", b, src, len(b.flat)/2, 2*time.Hour)
	c := openCache(t, dir, Options{Size: 1 << 30})
	user := openFile(t, openCache(t, dir, Options{}), a.file, src)
	inv, err := c.Inventory()
	if err != nil || len(inv.Files) != 2 || len(inv.Artifacts) != 2 {
		t.Fatalf("%+v, %v", inv, err)
	}
	two, one := inv.Files[0], inv.Files[1]
	if one.Key != a.file.Key() || !one.InUse || !one.Verified || one.Local != 3<<20 || one.Data != 3<<20 || one.Size != int64(len(a.flat)) || one.Damaged {
		t.Errorf("a complete file in use: %+v", one)
	}
	if two.Key != b.file.Key() || two.InUse || two.Verified || two.Local == 0 || two.Local >= two.Data || time.Since(two.Used) < time.Hour {
		t.Errorf("a half of a file: %+v", two)
	}
	if inv.Limit != 1<<30 || inv.Free <= 0 || inv.Disk != diskUse(t, dir) || inv.Small <= 0 || inv.Small+one.Disk+two.Disk != inv.Disk {
		t.Errorf("sums: %+v, on disk %d", inv, diskUse(t, dir))
	}
	art := inv.Artifacts[0]
	if !slices.Equal(art.Tags, []string{"reg/one:v1"}) || !slices.Equal(art.Files, []ArtifactFile{{Key: a.file.Key(), Name: a.file.Name}}) {
		t.Errorf("artifact: %+v", art)
	}
	_ = user.Close()
	if err := flip(filepath.Join(dir, disk.Files, b.file.Key()+".state"), 3); err != nil {
		t.Fatal(err)
	}
	if inv, err = c.Inventory(); err != nil || !slices.ContainsFunc(inv.Files, func(f StoredFile) bool { return f.Damaged && f.Key == b.file.Key() }) {
		t.Errorf("a damaged file: %+v, %v", inv, err)
	}
}

// TestInventoryOfOrigins has a file that is kept apart by where it comes
// from: it belongs to its artifact all the same, and while it is in use the
// artifact is not pruned.
func TestInventoryOfOrigins(t *testing.T) {
	for _, k := range unchecked {
		src := &named{fakeSource: &fakeSource{}, origin: "there", proven: true}
		a := makeFile(t, newRand(t), src.fakeSource, k, 2<<20)
		c := openCache(t, t.TempDir(), Options{})
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		blob := []byte("manifest")
		digest := src.put(blob)
		for _, err := range []error{
			c.PutBlob(digest, blob),
			c.PutArtifact("reg/one@"+digest, digest, []*layout.File{a.file}, src, []string{digest}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		inv, err := c.Inventory()
		if err != nil || len(inv.Files) != 1 || len(inv.Artifacts) != 1 {
			t.Fatalf("%s: %+v, %v", k.name, inv, err)
		}
		if got := inv.Artifacts[0].Files[0].Key; got != inv.Files[0].Key {
			t.Errorf("%s: the artifact has file %s, the cache %s", k.name, got, inv.Files[0].Key)
		}
		p, err := c.Prune(t.Context(), PruneOptions{To: -1, All: true})
		if err != nil || len(p.Files) != 0 || p.Small != 0 {
			t.Errorf("%s: pruned beside a user: %+v, %v", k.name, p, err)
		}
	}
}

func TestPrune(t *testing.T) {
	rng, src := newRand(t), &fakeSource{}
	var files []artifact
	for range 3 {
		files = append(files, makeFile(t, rng, src, kinds[0], 3<<20))
	}
	for name, test := range map[string]struct {
		opts  PruneOptions
		small int
		left  []int // of files; the first is the oldest, the last is in use
	}{
		"nothing asked": {PruneOptions{To: -1}, 0, []int{0, 1, 2}},
		"older":         {PruneOptions{To: -1, Older: 150 * time.Minute}, 3, []int{1, 2}},
		"to":            {PruneOptions{To: 8 << 20}, 0, []int{1, 2}},
		"to nothing":    {PruneOptions{To: 0}, 0, []int{2}},
		"all":           {PruneOptions{To: -1, All: true}, 6, []int{2}},
		"dry":           {PruneOptions{To: -1, All: true, DryRun: true}, 6, []int{0, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i, a := range files {
				keep(t, dir, "reg/"+string(rune('a'+i)), a, src, len(a.flat), time.Duration(3-i)*time.Hour)
			}
			used := files[2]
			user := openFile(t, openCache(t, dir, Options{}), used.file, src)
			c := openCache(t, dir, Options{})
			before := diskUse(t, dir)
			p, err := c.Prune(t.Context(), test.opts)
			if err != nil || p.Small != test.small {
				t.Fatalf("pruned %+v, %v", p, err)
			}
			var left []int
			for i, a := range files {
				if _, err := os.Stat(filepath.Join(dir, disk.Files, a.file.Key()+".data")); err == nil {
					left = append(left, i)
				}
			}
			if !slices.Equal(left, test.left) {
				t.Errorf("left are %v", left)
			}
			after := diskUse(t, dir)
			if !test.opts.DryRun && (before-after != p.Freed || after != p.Left) {
				t.Errorf("%d bytes became %d, said are %+v", before, after, p)
			}
			src.reset()
			checkRead(t, user, used.flat, 0, len(used.flat))
			if n, _ := src.reset(); n != 0 {
				t.Errorf("the file in use was fetched again: %d requests", n)
			}
			inv, err := c.Inventory()
			if err != nil || len(inv.Artifacts) != 3-test.small/3 && !test.opts.DryRun {
				t.Errorf("%+v, %v", inv.Artifacts, err)
			}
		})
	}
}

// TestVerify damages files in every way and has them looked at.
func TestVerify(t *testing.T) {
	for name, test := range map[string]struct {
		kind   kind
		damage func(t *testing.T, path string, a artifact)
		length int64 // of what is dropped; 0: the file is removed
	}{
		"a bit":             {kinds[0], flipData, 128 << 10},
		"a bit of a frame":  {kinds[3], flipData, 1 << 20},
		"a forged checksum": {kinds[0], forge, 3 << 20},
		"a lost tail":       {kinds[0], func(t *testing.T, p string, _ artifact) { must(t, os.Truncate(p+".data", 100)) }, 0},
		"a lost record":     {kinds[0], func(t *testing.T, p string, _ artifact) { must(t, os.Remove(p+".meta")) }, 0},
		"a changed record":  {kinds[0], changeRecord, 3 << 20},
		"a header":          {kinds[0], func(t *testing.T, p string, _ artifact) { must(t, flip(p+".state", 3)) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			src, dir := &fakeSource{}, t.TempDir()
			a := makeFile(t, newRand(t), src, test.kind, 3<<20)
			keep(t, dir, "reg/vm", a, src, len(a.flat), 0)
			c := openCache(t, dir, Options{})
			var read int64
			v, err := c.Verify(t.Context(), func(n int64) { read += n })
			if err != nil || len(v.Wrong) != 0 || v.Files != 1 || read != 3<<20 || v.Bytes < read {
				t.Fatalf("before: %+v, %v, %d bytes", v, err, read)
			}
			if raw := test.kind.name == kinds[0].name; raw != (v.Hashed > 3<<20) {
				t.Errorf("%d bytes hashed", v.Hashed)
			}
			test.damage(t, filepath.Join(dir, disk.Files, a.file.Key()), a)
			v, err = c.Verify(t.Context(), func(int64) {})
			if err != nil || len(v.Wrong) != 1 {
				t.Fatalf("after: %+v, %v", v, err)
			}
			if f := v.Wrong[0]; f.Length != test.length || f.Key != a.file.Key() {
				t.Errorf("found %+v", f)
			}
			if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 0 {
				t.Errorf("healed: %+v, %v", v, err)
			}
			src.reset()
			h := openFile(t, c, a.file, src)
			checkRead(t, h, a.flat, 0, len(a.flat))
			if n, fetched := src.reset(); n == 0 || test.length == 128<<10 && fetched > 256<<10 {
				t.Errorf("%d requests, %d bytes to mend it", n, fetched)
			}
		})
	}
}

// changeRecord changes the digest in the record.
func changeRecord(t *testing.T, path string, _ artifact) {
	raw, err := os.ReadFile(path + ".meta")
	must(t, err)
	must(t, flip(path+".meta", int64(bytes.Index(raw, []byte("sha256:"))+8)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flipData changes one byte of the file's data.
func flipData(t *testing.T, path string, a artifact) {
	segs := a.file.Map.Segments()
	must(t, flip(path+".data", segs[len(segs)/2].Offset))
}

// forge changes a byte and has the checksum agree, as bytes would be that
// came wrong from their source.
func forge(t *testing.T, path string, a artifact) {
	flipData(t, path, a)
	c := openCache(t, filepath.Dir(filepath.Dir(path)), Options{})
	h := openFile(t, c, a.file, &fakeSource{})
	defer h.Close()
	e := h.entry
	for i := range e.grid.Pieces() {
		_, n := e.grid.Extent(i)
		buf := make([]byte, n)
		must(t, e.disk.Load(i, buf))
		setWord(t, e, i, disk.WordPresent|disk.WordVerified|disk.Word(disk.Sum(buf))&disk.WordSum)
	}
}

// TestVerifyBesideAMount mends a file that another process has open, and
// is not mistaken about one that is being fetched.
func TestVerifyBesideAMount(t *testing.T) {
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 8<<20)
	user := openFile(t, openCache(t, dir, Options{}), a.file, src)
	c := openCache(t, dir, Options{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		checkRead(t, user, a.flat, 0, len(a.flat))
	}()
	for range 20 {
		if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) > 0 {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	<-done
	eventually(t, "it is sealed", func() bool { _, ok := user.Backing(); return ok })
	flipData(t, filepath.Join(dir, disk.Files, a.file.Key()), a)
	v, err := c.Verify(t.Context(), func(int64) {})
	if err != nil || len(v.Wrong) != 1 || !v.Wrong[0].InUse {
		t.Fatalf("%+v, %v", v, err)
	}
	checkRead(t, user, a.flat, 0, len(a.flat))
}

// TestVerifyAfterReboot finds what a crash of the machine has lost and
// does not call it wrong.
func TestVerifyAfterReboot(t *testing.T) {
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat)/2)
	flipData := a.file.Map.Segments()[0]
	editState(t, h.entry, disk.OffBoot, func(id uint64) uint64 { return id ^ 1 })
	_ = h.Close()
	must(t, flip(filepath.Join(dir, disk.Files, a.file.Key()+".data"), flipData.Offset))
	v, err := c.Verify(t.Context(), func(int64) {})
	if err != nil || len(v.Wrong) != 0 || v.Lost != 128<<10 || v.Bytes == 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestVerifySmall(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	src := &fakeSource{}
	digest := src.put([]byte("a manifest"))
	must(t, c.PutBlob(digest, []byte("a manifest")))
	must(t, c.PutRef("reg/vm:v1", digest))
	if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	must(t, flip(filepath.Join(dir, disk.Blobs, strings.TrimPrefix(digest, "sha256:")), 2))
	must(t, flip(filepath.Join(dir, refPath("reg/vm:v1")), 0))
	v, err := c.Verify(t.Context(), func(int64) {})
	if err != nil || len(v.Wrong) != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 0 {
		t.Fatalf("%+v, %v", v, err)
	}
}

// TestHalfMadeIsNothing: a process died before it had kept anything.
func TestHalfMadeIsNothing(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	name := filepath.Join(dir, disk.Files, strings.Repeat("ab", 32))
	must(t, os.WriteFile(name+".state", bytes.Repeat([]byte{0}, 8192), 0o600))
	must(t, os.WriteFile(name+".data", nil, 0o600))
	v, err := c.Verify(t.Context(), func(int64) {})
	if err != nil || len(v.Wrong) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := os.Stat(name + ".state"); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	// One that is being made is left alone.
	must(t, os.WriteFile(name+".state", nil, 0o600))
	f, err := os.OpenFile(name+".state", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, disk.Lock(f, unix.F_RDLCK, disk.LockInUse, 1))
	if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	must(t, func() error { _, err := os.Stat(name + ".state"); return err }())
}

// A prune that is told to end stops before the next file, and tells what
// has gone.
// TestPruneKeepsNotes keeps what is noted about an artifact as long as a file
// of the artifact is there, and no longer.
func TestPruneKeepsNotes(t *testing.T) {
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20)
	keep(t, dir, "reg/a", a, src, len(a.flat), time.Hour)
	c := openCache(t, dir, Options{})
	inv, err := c.Inventory()
	if err != nil || len(inv.Artifacts) != 1 {
		t.Fatalf("%+v, %v", inv, err)
	}
	note, about := []byte("about the artifact"), inv.Artifacts[0].Reference+" note"
	digest := digests.Of(note)
	if err := errors.Join(c.PutBlob(digest, note), c.PutRef(about, digest)); err != nil {
		t.Fatal(err)
	}
	user := openFile(t, openCache(t, dir, Options{}), a.file, src)
	for _, inUse := range []bool{true, false} {
		if !inUse {
			if err := user.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Prune(t.Context(), PruneOptions{To: -1, All: true}); err != nil {
			t.Fatal(err)
		}
		_, _, refErr := c.Ref(about)
		_, blobErr := c.Blob(digest)
		if (refErr == nil) != inUse || (blobErr == nil) != inUse {
			t.Errorf("in use %v: %v, %v", inUse, refErr, blobErr)
		}
	}
}

func TestPruneEnds(t *testing.T) {
	src := &fakeSource{}
	c := openCache(t, t.TempDir(), Options{})
	for range 3 {
		a := makeFile(t, newRand(t), src, kinds[0], 1<<20)
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	looked := 0
	p, err := c.Prune(ctx, PruneOptions{To: -1, All: true, OnFile: func() {
		if looked++; looked == 2 {
			cancel()
		}
	}})
	inv, invErr := c.Inventory()
	if !errors.Is(err, context.Canceled) || invErr != nil || len(p.Files) != 2 || len(inv.Files) != 1 || looked != 2 {
		t.Errorf("%d files gone, %d left, %d looked at: %v, %v", len(p.Files), len(inv.Files), looked, err, invErr)
	}
}

// refPath returns where a reference is noted.
func refPath(reference string) string {
	return fmt.Sprintf("%s/%x.json", disk.Refs, sha256.Sum256([]byte(reference)))
}
