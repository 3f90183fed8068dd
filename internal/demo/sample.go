package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	memorySize = 1 * gib
	memoryData = 64 * mib
	diskSize   = 2 * gib
	page       = 4 << 10
)

// sampleTime replaces the current time wherever the demo can choose one, so
// that two demos show the same digests. If mkfs.ext4 is too old for
// SOURCE_DATE_EPOCH, the disk's inodes still contain the time of their
// creation.
var sampleTime = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// segment is a range of data in a sparse file, in cocoon's JSON form.
type segment struct {
	Offset int64 `json:"o"`
	Length int64 `json:"l"`
}

const envelope = `{"version":1,"config":{"id":"5d3c1b7a90e24f86","name":"vm","description":"a VM that was never booted",` +
	`"image":"ghcr.io/example/ubuntu:24.04","hypervisor":"cloud-hypervisor","cpu":2,"memory":1073741824,` +
	`"storage":2147483648,"nics":1,"network":"default","queue_size":256}}` + "\n"

const vmConfig = `{"cpus":{"boot_vcpus":2,"max_vcpus":2},"memory":{"size":1073741824,"shared":false},` +
	`"disks":[{"path":"cow.raw"}],"net":[{"mac":"12:34:56:78:90:ab"}]}` + "\n"

// writeSample writes a snapshot's export tar to path: a made-up VM with 64
// MiB of memory in use, and a disk with a small ext4. If the disk has other
// contents, note describes them.
func writeSample(ctx context.Context, dir, path string) (note string, err error) {
	disk := filepath.Join(dir, "cow.raw")
	if note, err = makeDisk(ctx, dir, disk); err != nil {
		return "", err
	}
	defer os.Remove(disk)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, text := range []struct{ name, text string }{
		{"snapshot.json", envelope},
		{"config.json", vmConfig},
		{"state.json", `{"state":"paused","vcpus":[{"id":0},{"id":1}]}` + "\n"},
	} {
		size := int64(len(text.text))
		if err := writeEntry(w, text.name, size, nil, strings.NewReader(text.text)); err != nil {
			return "", err
		}
	}
	segs := memoryMap()
	if err := writeEntry(w, "memory-ranges", memorySize, segs, newMemory(dataOf(segs))); err != nil {
		return "", err
	}
	if err := writeDisk(w, disk); err != nil {
		return "", err
	}
	return note, errors.Join(w.Close(), f.Close())
}

// writeEntry writes one file. It writes only the data of a sparse file,
// which is one with segments.
func writeEntry(w *tar.Writer, name string, size int64, segs []segment, data io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: sampleTime}
	if segs != nil {
		text, err := json.Marshal(segs)
		if err != nil {
			return err
		}
		h.Size = dataOf(segs)
		h.PAXRecords = map[string]string{
			"COCOON.sparse.map":  string(text),
			"COCOON.sparse.size": strconv.FormatInt(size, 10),
		}
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.CopyN(w, data, h.Size)
	return err
}

func dataOf(segs []segment) (n int64) {
	for _, s := range segs {
		n += s.Length
	}
	return n
}

// memoryMap spreads 64 MiB over the memory as a guest does: much of it in a
// few long runs, the rest in many short ones.
func memoryMap() []segment {
	r := rand.New(rand.NewPCG(1, 2))
	var segs []segment
	var at int64
	for left := int64(memoryData); left > 0; {
		pages := 1 + r.Int64N(16)
		if r.IntN(8) == 0 {
			pages = 64 + r.Int64N(512)
		}
		n := min(pages*page, left)
		segs = append(segs, segment{at, n})
		left -= n
		// The holes are on average 15 times as long as the data.
		at += n + page*(1+r.Int64N(2*15*max(n/page, 1)))
	}
	// Scale the offsets to the memory's size.
	scale := float64(memorySize-memoryData) / float64(at-memoryData)
	var before, shift int64
	for i := range segs {
		hole := segs[i].Offset - before
		before = segs[i].Offset + segs[i].Length
		hole = max(int64(float64(hole)*scale)/page*page, min(hole, page))
		segs[i].Offset = shift + hole
		shift = segs[i].Offset + segs[i].Length
	}
	return segs
}

// memory is a stream that resembles the pages of a guest: some like text,
// most not.
type memory struct {
	src  *rand.ChaCha8
	left int64
	buf  bytes.Reader
	page [page]byte
	n    uint64
}

func newMemory(size int64) io.Reader {
	return &memory{src: rand.NewChaCha8([32]byte{7}), left: size}
}

func (m *memory) Read(p []byte) (int, error) {
	if m.buf.Len() == 0 {
		if m.left <= 0 {
			return 0, io.EOF
		}
		m.left -= page
		m.fill()
		m.buf.Reset(m.page[:])
	}
	return m.buf.Read(p)
}

func (m *memory) fill() {
	m.n++
	if m.n%4 == 0 { // a page of counters
		for i := 0; i < page; i += 8 {
			binary.LittleEndian.PutUint64(m.page[i:], m.n<<20+uint64(i))
		}
		return
	}
	_, _ = m.src.Read(m.page[:])
}

// makeDisk creates a sparse disk image with an ext4 of a few files. Without
// mkfs.ext4 the image holds the files' bytes, as note then explains.
func makeDisk(ctx context.Context, dir, disk string) (note string, err error) {
	root := filepath.Join(dir, "root")
	if err := makeTree(root); err != nil {
		return "", err
	}
	defer os.RemoveAll(root)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		mkfs, err = exec.LookPath("/usr/sbin/mkfs.ext4") // not in every user's PATH
	}
	if err != nil {
		return "mkfs.ext4 (package e2fsprogs) is missing: cow.raw holds plain bytes, no file system", makePlainDisk(root, disk)
	}
	const id = "c0c00000-0000-4000-8000-000000000001"
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-U", id, "-L", "demo",
		"-E", "hash_seed="+id+",root_owner=0:0", "-O", "^has_journal", "-d", root, disk, strconv.Itoa(diskSize/mib)+"M")
	epoch := strconv.FormatInt(sampleTime.Unix(), 10)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME="+epoch, "SOURCE_DATE_EPOCH="+epoch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return "", nil
}

// makeTree writes the files of the guest's disk.
func makeTree(root string) error {
	program := make([]byte, 8*mib)
	_, _ = rand.NewChaCha8([32]byte{8}).Read(program)
	var log bytes.Buffer
	for i := range 20_000 {
		fmt.Fprintf(&log, "%s vm kernel: [%5d.%06d] demo: tick %d\n", sampleTime.Format(time.Stamp), i/50, i, i)
	}
	for name, data := range map[string][]byte{
		"etc/hostname":   []byte("vm\n"),
		"etc/os-release": []byte("NAME=\"Demo Linux\"\nVERSION_ID=\"1\"\n"),
		"usr/bin/demo":   program,
		"var/log/syslog": log.Bytes(),
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, sampleTime, sampleTime); err != nil {
			return err
		}
	}
	return nil
}

func makePlainDisk(root, disk string) error {
	data, err := os.ReadFile(filepath.Join(root, "usr/bin/demo"))
	if err != nil {
		return err
	}
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(data, gib)
	return errors.Join(err, f.Truncate(diskSize), f.Close())
}

// writeDisk adds the disk to the tar without its holes.
func writeDisk(w *tar.Writer, disk string) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	var segs []segment
	var data []io.Reader
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return fmt.Errorf("look for data in %s: %w", disk, err)
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("look for holes in %s: %w", disk, err)
		}
		segs = append(segs, segment{from, at - from})
		data = append(data, io.NewSectionReader(f, from, at-from))
	}
	return writeEntry(w, "cow.raw", diskSize, segs, io.MultiReader(data...))
}
