package volumes

import (
	"io"
	"os"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// read lists a disk, and reads the beginning of each volume.
func read(img vfs.Image) error {
	all, err := List(img)
	if err != nil {
		return err
	}
	p := make([]byte, 10000)
	for _, v := range all {
		_, err2 := v.Image.ReadAt(p[:min(int64(len(p)), v.Size)], 0)
		if err == nil && err2 != nil && err2 != io.EOF {
			err = err2
		}
	}
	return err
}

// TestDamage lists disks with damaged tables, and with damaged LVM.
func TestDamage(t *testing.T) {
	t.Parallel()
	mbr, _ := partitioned(t, "label: dos\nsize=5M\nsize=30M, type=5\n5: size=3M\n6: size=3M\n7: size=3M\n")
	gpt, _ := partitioned(t, "label: gpt\nsize=5M\nsize=3M\n")
	lvm, run, pvs := lvmDisk(t)
	run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-y", "-n", "root", "-l", "6", "vg-0", pvs[0])
	run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-y", "-n", "striped", "-i", "2", "-l", "6", "vg-0")
	for name, disk := range map[string]string{"MBR": mbr, "GPT": gpt, "LVM": lvm} {
		t.Run(name, func(t *testing.T) {
			guesttest.Damage(t, guesttest.File(t, disk), read)
		})
	}
}

// FuzzList lists a small disk: bytes are laid over it from an offset on.
func FuzzList(f *testing.F) {
	disk := guesttest.Sparse(f, 8<<20)
	guesttest.Run(f, "sgdisk", "-n", "1:1M:+2M", "-n", "2:0:+1M", disk)
	base, err := os.ReadFile(disk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(446), []byte{1, 2, 3, 4})
	f.Add(uint32(512), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		_ = read(guesttest.Over(guesttest.Bytes(base), int64(at%(1<<20)), change))
	})
}

// FuzzText parses a group's text, and maps its volumes.
func FuzzText(f *testing.F) {
	f.Add([]byte(`vg { id = "a-b" extent_size = 8 physical_volumes { pv0 { id = "p" pe_start = 8 } }
		logical_volumes { root { status = ["READ", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } } } }`))
	pvs := []physical{{id: "p", image: guesttest.Bytes(make([]byte, 1<<20))}}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseText(text)
		if err != nil {
			return
		}
		p := make([]byte, 1000)
		for _, g := range s {
			group, ok := g.(section)
			if !ok {
				continue
			}
			all, _ := volumesOf(group, pvs, []vfs.Volume{{}})
			for _, v := range all {
				_, _ = v.Image.ReadAt(p, v.Size/2)
			}
		}
	})
}
