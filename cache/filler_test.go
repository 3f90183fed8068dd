package cache

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// readPayload reads a file's data segments as a reader of the file does,
// and ends when they were compared with their digests.
func readPayload(h *File) ([]byte, error) {
	ctx := context.Background()
	all := make([]byte, 0, h.entry.file.Map.DataSize())
	for _, s := range h.entry.file.Map.Segments() {
		p := make([]byte, 256<<10)
		for off, end := s.Offset, s.Offset+s.Length; off < end; {
			n, err := h.ReadAt(ctx, p[:min(int64(len(p)), end-off)], off)
			if n == 0 && err != nil {
				return all, err
			}
			all = append(all, p[:n]...)
			off += int64(n)
		}
	}
	return all, h.Settle(ctx)
}

// fill has a Filler keep a part from data, in stretches of some grains.
func fill(t *testing.T, k *Filler, p *layout.Part, part int, data []byte, verified bool) {
	t.Helper()
	n := 3 * k.Grain(part)
	for off := int64(0); off < p.Length; off += n {
		stretch := data[p.Offset+off : p.Offset+min(off+n, p.Length)]
		release, err := k.Claim(t.Context(), part, off, int64(len(stretch)))
		if err != nil {
			t.Fatal(err)
		}
		k.Keep(part, off, stretch, verified)
		release()
		if !k.Here(part, off, int64(len(stretch))) {
			t.Errorf("what was kept at %d is not here", off)
		}
	}
}

// TestFiller fills a blob without digests of pieces: what was kept can be
// loaded by one who goes on after a break, nothing of it is verified before
// all of it had its digest, and then readers need nothing else.
func TestFiller(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 3<<20+77)
	dir := t.TempDir()
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	k, p := h.Filler(), &a.file.Parts[0]
	fill(t, k, p, 0, a.data, false)
	if h.Verified() || k.Part(0) != nil {
		t.Error("verified before its digest was seen")
	}
	again := openFile(t, openCache(t, dir, Options{}), a.file, src).Filler()
	got := make([]byte, p.Length)
	if !again.Load(0, 0, got) || !bytes.Equal(got, a.data) {
		t.Fatal("what was kept cannot be loaded")
	}
	again.Vouch(0)
	if !h.Verified() {
		t.Error("not verified although all of it had its digest")
	}
	r := again.Part(0)
	if r == nil {
		t.Fatal("the part is not there")
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, a.data) {
		t.Error("the part has other bytes", err)
	}
	checkRead(t, h, a.flat, 0, len(a.flat))
	if n, _ := src.reset(); n != 0 {
		t.Errorf("%d requests", n)
	}
	h = openFile(t, openCache(t, dir, Options{}), a.file, src)
	eventually(t, "it is sealed when it is opened next", func() bool { _, ok := h.Backing(); return ok })
}

// TestFillerVouchesForWhatPassed has a piece be other bytes by the time
// that the digest of what passed is known.
func TestFillerVouchesForWhatPassed(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	k := h.Filler()
	fill(t, k, &a.file.Parts[0], 0, a.data, false)
	other := bytes.Repeat([]byte{7}, int(k.Grain(0)))
	if _, err := h.entry.store(&disk.Incoming{Piece: 2, Payload: other, Drops: h.entry.disk.Drops()}); err != nil {
		t.Fatal(err)
	}
	k.Vouch(0)
	if h.entry.state.Verified(2) {
		t.Error("bytes that did not pass were vouched for")
	}
	if !h.entry.state.Verified(1) {
		t.Error("bytes that passed were not")
	}
}

// TestFillerDrops forgets a part that was wrong as a whole, and keeps no
// piece that its own digest refuses.
func TestFillerDrops(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	k := h.Filler()
	wrong := append([]byte{a.data[0] ^ 1}, a.data[1:]...)
	fill(t, k, &a.file.Parts[0], 0, wrong, false)
	k.Drop(0)
	if n := h.Cached(); n != 0 {
		t.Errorf("%d bytes are still there", n)
	}
	b := makeFile(t, newRand(t), src, kinds[1], 2<<20)
	h = openFile(t, openCache(t, t.TempDir(), Options{}), b.file, src)
	if _, ok := h.entry.grid.Sum(0); !ok {
		t.Fatalf("%s has no digests of pieces", kinds[1].name)
	}
	k = h.Filler()
	k.Keep(0, 0, bytes.Repeat([]byte{7}, int(k.Grain(0))), false)
	if n := h.Cached(); n != 0 {
		t.Errorf("%d bytes that no digest agrees with were kept", n)
	}
}

// TestFillerFollows does not fetch what another process is fetching.
func TestFillerFollows(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	dir := t.TempDir()
	p := &a.file.Parts[0]
	mine := openFile(t, openCache(t, dir, Options{}), a.file, src).Filler()
	theirs := openFile(t, openCache(t, dir, Options{}), a.file, src).Filler()
	release, err := theirs.Claim(t.Context(), 0, 0, p.Length)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan bool)
	go func() {
		release, err := mine.Claim(context.Background(), 0, 0, p.Length)
		if err == nil {
			release()
		}
		got <- err == nil && mine.Load(0, 0, make([]byte, p.Length))
	}()
	theirs.Keep(0, 0, a.data, false)
	release()
	if !<-got {
		t.Error("the claim was granted before the bytes were there")
	}
}
