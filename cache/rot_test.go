package cache

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/faultdisk"
)

// rotten is a cache of one file, complete and sealed or half there, as a
// machine may find it after a crash: its files are changed by spoil.
type rotten struct {
	dir  string
	src  *fakeSource
	a    artifact
	name string // of the cached file, without suffix
}

func makeRotten(t testing.TB, rng *rand.Rand, dir string, k kind, sealed bool) *rotten {
	t.Helper()
	r := &rotten{dir: dir, src: &fakeSource{}}
	r.a = makeFile(t, rng, r.src, k, 1<<20+70_000)
	r.name = filepath.Join(dir, disk.Files, r.a.file.Key())
	c := openCache(t, dir, Options{})
	h := openFile(t, c, r.a.file, r.src)
	n := len(r.a.flat)
	if !sealed {
		n /= 2
	}
	checkRead(t, h, r.a.flat, 0, n)
	if sealed {
		eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	}
	_ = h.Close()
	_ = c.Close()
	return r
}

// change alters bytes of one of the files; the machine has booted since.
func (r *rotten) change(t testing.TB, suffix string, do func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(r.name + suffix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.name+suffix, do(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *rotten) reboot(t testing.TB) {
	r.change(t, ".state", func(b []byte) []byte { b[disk.OffBoot] ^= 0x55; return b })
}

// check reads the file.
func (r *rotten) check(t testing.TB) {
	t.Helper()
	r.checkFile(t, r.a)
}

// checkCopy reads another file that has the same part.
func (r *rotten) checkCopy(t testing.TB, rng *rand.Rand) {
	t.Helper()
	m, flat := spread(t, rng, r.a.data)
	r.checkFile(t, artifact{&layout.File{Name: "second", Parts: r.a.file.Parts, Map: m}, flat, r.a.data})
}

func (r *rotten) checkFile(t testing.TB, a artifact) {
	t.Helper()
	c := openCache(t, r.dir, Options{})
	defer c.Close()
	h := openFile(t, c, a.file, r.src)
	defer h.Close()
	checkRead(t, h, a.flat, 0, len(a.flat))
}

// TestRotAfterCrash has bits of state and data changed when the machine
// comes up again: what is read is right, and of what did not rot nothing is
// fetched again.
func TestRotAfterCrash(t *testing.T) {
	word := func(i int, change func(w uint64) uint64) func(b []byte) []byte {
		return func(b []byte) []byte {
			at := b[disk.StateHeader+8*i:]
			binary.LittleEndian.PutUint64(at, change(binary.LittleEndian.Uint64(at)))
			return b
		}
	}
	xor := func(bits uint64) func(uint64) uint64 { return func(w uint64) uint64 { return w ^ bits } }
	flag := func(bits byte) func([]byte) []byte {
		return func(b []byte) []byte { b[disk.OffFlags] ^= bits; return b }
	}
	for name, c := range map[string]struct {
		sealed bool
		suffix string
		do     func(b []byte) []byte
		pieces int // that must be fetched again at most
	}{
		"nothing, sealed":               {true, ".state", func(b []byte) []byte { return b }, 0},
		"nothing":                       {false, ".state", func(b []byte) []byte { return b }, 0},
		"checksum of a sealed piece":    {true, ".state", word(2, xor(1)), 1},
		"checksum of a piece":           {false, ".state", word(2, xor(1<<40)), 1},
		"a sealed piece is not present": {true, ".state", word(3, xor(uint64(disk.WordPresent))), 1},
		"a piece is not present":        {false, ".state", word(3, xor(uint64(disk.WordPresent))), 1},
		"a missing piece is present":    {false, ".state", word(8, func(uint64) uint64 { return uint64(disk.WordPresent | disk.WordVerified | 77) }), 1},
		"a piece is suspect":            {true, ".state", word(1, xor(uint64(disk.WordSuspect))), 0},
		"not sealed any more":           {true, ".state", flag(disk.FlagSealed), 0},
		"sealed by mistake":             {false, ".state", flag(disk.FlagSealed), 0},
		"unsafe by mistake":             {false, ".state", flag(disk.FlagUnsafe), 0},
		"all flags":                     {false, ".state", flag(0xff), 0},
		"the seal's checksum":           {true, ".state", func(b []byte) []byte { b[disk.OffSeal] ^= 1; return b }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			rng := newRand(t)
			r := makeRotten(t, rng, t.TempDir(), kinds[0], c.sealed)
			r.change(t, c.suffix, c.do)
			r.reboot(t)
			missing := int64(0)
			if !c.sealed {
				missing = int64(len(r.a.data)) - r.present(t)
			}
			r.src.reset()
			r.check(t)
			if _, n := r.src.reset(); n > missing+int64(c.pieces)*128<<10 {
				t.Errorf("fetched %d bytes, %d were missing", n, missing)
			}
			r.checkCopy(t, rng)
		})
	}
	t.Run("sealed by mistake, and the data lost", func(t *testing.T) {
		rng := newRand(t)
		r := makeRotten(t, rng, t.TempDir(), kinds[0], false)
		r.change(t, ".state", flag(disk.FlagSealed))
		r.change(t, ".data", func(b []byte) []byte { clear(b); return b })
		r.reboot(t)
		r.check(t)
	})
}

// present is how many bytes the half of the file that was read has on disk,
// as far as whole pieces were marked.
func (r *rotten) present(t testing.TB) (n int64) {
	t.Helper()
	b, err := os.ReadFile(r.name + ".state")
	if err != nil {
		t.Fatal(err)
	}
	g := disk.NewGrid(r.a.file)
	for i := range g.Pieces() {
		if disk.Word(binary.LittleEndian.Uint64(b[disk.StateHeader+8*i:])).Present() {
			_, size := g.Extent(i)
			n += size
		}
	}
	return n
}

// TestDiskThatDidNotTakeIt: once a sync has failed, the kernel does not try
// the same pages again, and the next sync says that all is well. The file is
// not sealed by it, and made anew for its next reader.
func TestDiskThatDidNotTakeIt(t *testing.T) {
	if withoutRace(t) {
		return
	}
	src, files := diskFiles(t)
	w := startWatched(t)
	dir := diskDir(t)
	defer os.RemoveAll(dir)
	w.disk.Watch(dir, func(c faultdisk.Call) faultdisk.Action {
		if c.Name == "fdatasync" {
			return faultdisk.Action{Err: unix.EIO}
		}
		return faultdisk.Action{}
	})
	if o := w.run(t, dir); o.end != "<nil>" {
		t.Fatalf("a reader saw: %s", o.end)
	}
	c := openCache(t, dir, Options{Size: 1 << 30})
	h := openFile(t, c, files[0].file, src) // the last that the scenario has read
	if h.entry.state.Unsafe() || h.Cached() != 0 {
		t.Errorf("the file is as it was: %d bytes present", h.Cached())
	}
	checkRead(t, h, files[0].flat, 0, len(files[0].flat))
	eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	// Who has it open beside a first reader reads on, and neither seals it.
	h.entry.state.Unseal()
	h.entry.state.SetUnsafe()
	other := openFile(t, openCache(t, dir, Options{Size: 1 << 30}), files[0].file, src)
	src.reset()
	checkRead(t, other, files[0].flat, 0, len(files[0].flat))
	if _, n := src.reset(); n != 0 {
		t.Errorf("%d bytes were fetched beside a reader who has them", n)
	}
	other.entry.check()
	if _, ok := other.Backing(); ok {
		t.Error("sealed although the disk did not take it")
	}
}

// FuzzRot changes any bytes of state, data and record, and has the machine
// come up again. A sealed file's data are not looked at and stay.
func FuzzRot(f *testing.F) {
	f.Add(true, []byte{0, 80, 0, 1})
	f.Add(false, []byte{0, 80, 0, 1, 1, 0, 0, 9})
	f.Add(false, []byte{0, 0, 16, 0x80, 2, 5, 0, 1})
	f.Add(true, []byte{3, 0, 1, 0, 2, 40, 0, 3})
	f.Fuzz(func(t *testing.T, sealed bool, changes []byte) {
		rng := rand.New(rand.NewPCG(1, 2))
		dir, err := os.MkdirTemp("/dev/shm", "epochfs-fuzz-")
		if err != nil {
			dir = t.TempDir()
		}
		defer os.RemoveAll(dir)
		r := makeRotten(t, rng, dir, kinds[0], sealed)
		for ; len(changes) >= 4 && len(changes) < 400; changes = changes[4:] {
			at := int(changes[1]) | int(changes[2])<<8
			which := changes[0] % 4
			suffix := []string{".state", ".data", ".meta", ".state"}[which]
			if which == 1 && sealed {
				continue
			}
			r.change(t, suffix, func(b []byte) []byte {
				switch {
				case which == 3: // cut
					return b[:min(len(b), at)]
				case len(b) == 0, which == 0 && at%len(b) >= disk.OffBoot && at%len(b) < disk.OffBoot+16:
					return b
				case which == 1:
					at *= 64 // all over it
				}
				b[at%len(b)] ^= changes[3]
				return b
			})
		}
		if info, err := os.Stat(r.name + ".state"); err == nil && info.Size() > disk.OffBoot {
			r.reboot(t)
		}
		r.checkCopy(t, rng) // before anything was mended
		r.check(t)
	})
}
