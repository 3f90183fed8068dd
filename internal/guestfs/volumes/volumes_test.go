package volumes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// partitioned makes a disk by sfdisk's language, and returns what sfdisk says
// of it: the offset and the size of each partition by its number.
func partitioned(t *testing.T, script string) (disk string, want []partition) {
	t.Helper()
	disk = guesttest.Sparse(t, 40<<20)
	cmd := exec.Command("/usr/sbin/sfdisk", "-q", disk)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	var dump struct {
		Partitiontable struct {
			Sectorsize int64
			Partitions []struct {
				Node, Type  string
				Start, Size int64
			}
		}
	}
	if err := json.Unmarshal([]byte(guesttest.Run(t, "sfdisk", "-J", disk)), &dump); err != nil {
		t.Fatal(err)
	}
	for _, p := range dump.Partitiontable.Partitions {
		if p.Type == "5" || p.Type == "f" || p.Type == "85" {
			continue
		}
		number, err := strconv.Atoi(strings.TrimPrefix(p.Node, disk))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, partition{number, p.Start * sector, p.Size * sector})
	}
	return disk, want
}

func list(t *testing.T, disk vfs.Image) []vfs.Volume {
	t.Helper()
	all, err := List(disk)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range all {
		if v.Number != k+1 || v.Image.Size() != v.Size {
			t.Errorf("volume %d: %+v", k, v)
		}
	}
	return all
}

func compare(t *testing.T, all []vfs.Volume, want []partition) {
	t.Helper()
	var got []partition
	for _, v := range all {
		n, err := strconv.Atoi(strings.TrimPrefix(v.Name, "p"))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, partition{n, v.Offset, v.Size})
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	logical := "label: dos\nsize=5M, type=83\nsize=30M, type=5\n"
	for n := 5; n < 9; n++ {
		logical += fmt.Sprintf("%d: size=3M\n", n)
	}
	for name, script := range map[string]string{
		"MBR":         "label: dos\nsize=10M, type=c\nsize=5M, type=82\n4: size=3M\n",
		"MBR logical": logical,
		"MBR extended first": "label: dos\nstart=2048, size=20M, type=f\nstart=50000, size=5M\n" +
			"5: start=4096, size=2M\n6: start=12288, size=2M\n",
		"GPT":         "label: gpt\nsize=10M\n14: size=1M\n15: size=5M, type=U\n3: size=2M\n",
		"GPT no gaps": "label: gpt\nfirst-lba: 34\nstart=34, size=100\nsize=7M\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk, want := partitioned(t, script)
			counted := guesttest.Count(guesttest.File(t, disk))
			compare(t, list(t, counted), want)
			if counted.Trips > 8 {
				t.Errorf("%d round trips:\n%s", counted.Trips, strings.Join(counted.Log, "\n"))
			}
		})
	}
}

// TestSecondTable damages the GPT's header: its copy is used.
func TestSecondTable(t *testing.T) {
	t.Parallel()
	name, want := partitioned(t, "label: gpt\nsize=10M\nsize=20M\n")
	disk, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	disk[512+60]++
	compare(t, list(t, guesttest.Bytes(disk)), want)
	disk[len(disk)-512+60]++
	if all, err := List(guesttest.Bytes(disk)); err == nil {
		t.Errorf("no table is whole: %v", all)
	}
}

// TestLargeSectors reads a GPT that counts in sectors of 4 KiB.
func TestLargeSectors(t *testing.T) {
	t.Parallel()
	disk := guesttest.Sparse(t, 40<<20)
	loop := strings.TrimSpace(guesttest.Run(t, "losetup", "-f", "--show", "-b", "4096", disk))
	defer guesttest.Run(t, "losetup", "-d", loop)
	guesttest.Run(t, "sgdisk", "-n", "1:1M:+8M", "-n", "2:0:+4M", loop)
	compare(t, list(t, guesttest.File(t, disk)), []partition{{1, 1 << 20, 8 << 20}, {2, 9 << 20, 4 << 20}})
}

// TestLoopOfTables has an extended partition whose second table names the
// first.
func TestLoopOfTables(t *testing.T) {
	t.Parallel()
	name, _ := partitioned(t, "label: dos\nsize=30M, type=5\n5: size=3M\n6: size=3M\n7: size=3M\n")
	disk, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	first := int64(le.Uint32(disk[446+8:])) * sector
	second := first + int64(le.Uint32(disk[first+446+16+8:]))*sector
	le.PutUint32(disk[second+446+16+8:], 0)
	if all := list(t, guesttest.Bytes(disk)); len(all) != 2 {
		t.Errorf("%d partitions", len(all))
	}
}

// TestProbe names what lies on a disk without a table.
func TestProbe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tool  string
		args  []string
		kind  string
		label string
	}{
		"ext2":  {"mke2fs", []string{"-q", "-t", "ext2", "-L", "two"}, "ext2", "two"},
		"ext3":  {"mke2fs", []string{"-q", "-t", "ext3"}, "ext3", ""},
		"ext4":  {"mke2fs", []string{"-q", "-t", "ext4", "-L", "sixteen letters."}, "ext4", "sixteen letters."},
		"log":   {"mke2fs", []string{"-q", "-O", "journal_dev"}, "ext journal", ""},
		"fat12": {"mkfs.fat", []string{"-F", "12", "-n", "CIDATA"}, "vfat", "CIDATA"},
		"fat16": {"mkfs.fat", []string{"-F", "16"}, "vfat", ""},
		"fat32": {"mkfs.fat", []string{"-F", "32", "-n", "EFI"}, "vfat", "EFI"},
		"ntfs":  {"mkntfs", []string{"-q", "-f", "-F", "-s", "512", "-p", "0", "-H", "0", "-S", "0"}, "ntfs", ""},
		"swap":  {"mkswap", []string{"-L", "swapped"}, "swap", "swapped"},
		"xfs":   {"mkfs.xfs", []string{"-q", "-L", "ex"}, "xfs", "ex"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			size := int64(320 << 20) // mkfs.xfs makes nothing smaller
			if name == "fat12" {
				size = 1 << 20
			}
			disk := guesttest.Sparse(t, size)
			guesttest.Run(t, c.tool, append(c.args, disk)...)
			counted := guesttest.Count(guesttest.File(t, disk))
			all := list(t, counted)
			if len(all) != 1 || all[0].Type != c.kind || all[0].Label != c.label || all[0].Name != "" {
				t.Errorf("%+v", all)
			}
			if counted.Trips > 2 || counted.Bytes > 128<<10 {
				t.Errorf("%d round trips, %d bytes", counted.Trips, counted.Bytes)
			}
		})
	}
	if all := list(t, guesttest.Bytes(make([]byte, 1<<20))); len(all) != 1 || all[0].Type != Unknown {
		t.Errorf("an empty disk: %+v", all)
	}
	if all := list(t, guesttest.Bytes(nil)); len(all) != 1 || all[0].Type != Unknown {
		t.Errorf("no disk: %+v", all)
	}
}

// lvmDisk makes two partitions, each a physical volume of one group, by LVM's
// own tools, which do not need the kernel's device mapper for that.
func lvmDisk(t *testing.T) (disk string, run func(tool string, args ...string) string, pvs [2]string) {
	t.Helper()
	disk, parts := partitioned(t, "label: gpt\nsize=16M\nsize=16M\n")
	var filter []string
	for k, p := range parts {
		pvs[k] = strings.TrimSpace(guesttest.Run(t, "losetup", "-f", "--show", "-o", fmt.Sprint(p.offset), "--sizelimit", fmt.Sprint(p.size), disk))
		t.Cleanup(func() { guesttest.Run(t, "losetup", "-d", pvs[k]) })
		filter = append(filter, fmt.Sprintf("%q", "a|^"+pvs[k]+"$|"))
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`devices{use_devicesfile=0 filter=[%s,"r|.*|"]} global{use_lvmpolld=0 locking_dir=%q} `+
		`activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0 archive=0}`, strings.Join(filter, ","), dir)
	run = func(tool string, args ...string) string {
		t.Helper()
		return guesttest.Run(t, "env", append([]string{"LVM_SYSTEM_DIR=" + dir, "/usr/sbin/" + tool, "--driverloaded", "n", "--config", config}, args...)...)
	}
	run("pvcreate", "-q", pvs[0], pvs[1])
	run("vgcreate", "-q", "-s", "512k", "vg-0", pvs[0], pvs[1])
	return disk, run, pvs
}

// TestLVM writes to the extents that lvs names, and reads them as volumes.
func TestLVM(t *testing.T) {
	t.Parallel()
	disk, run, pvs := lvmDisk(t)
	create := []string{"-q", "-an", "-Zn", "-Wn", "-y", "-n"}
	run("lvcreate", append(create, "root", "-l", "6", "vg-0", pvs[0])...)
	run("lvcreate", append(create, "home", "-l", "3", "vg-0", pvs[0])...)
	run("lvextend", "-q", "-l", "+4", "vg-0/root", pvs[0])
	run("lvextend", "-q", "-l", "+5", "vg-0/root", pvs[1])
	run("lvcreate", append(create, "striped", "-i", "2", "-I", "16k", "-l", "6", "vg-0")...)
	for k := range 40 { // until the ring of texts has been gone round
		run("vgchange", "-q", "--addtag", fmt.Sprintf("tag%d-%s", k, strings.Repeat("x", 900)), "vg-0")
	}
	all := list(t, guesttest.File(t, disk))
	byName := map[string]vfs.Volume{}
	for _, v := range all {
		byName[v.Name] = v
	}
	if byName["p1"].Type != "lvm" || byName["p2"].Type != "lvm" || len(all) != 5 {
		t.Fatalf("%+v", all)
	}
	if byName["vg-0/root"].Offset != -1 || byName["vg-0/home"].Offset != byName["p1"].Offset+1<<20+6*512<<10 {
		t.Errorf("offsets %d, %d", byName["vg-0/root"].Offset, byName["vg-0/home"].Offset)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	offsets := map[string]int64{pvs[0]: byName["p1"].Offset, pvs[1]: byName["p2"].Offset}
	for name, chunk := range map[string]int64{"root": 0, "home": 0, "striped": 16 << 10} {
		want := fill(t, f, run("lvs", "--noheadings", "-o", "seg_pe_ranges", "vg-0/"+name), offsets, chunk)
		v := byName["vg-0/"+name]
		got := make([]byte, v.Size)
		if _, err := v.Image.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from %d, %v", name, len(got), len(want), err)
		}
		if _, err := v.Image.ReadAt(got[:100000], 123456); err != nil || !bytes.Equal(got[:100000], want[123456:223456]) {
			t.Errorf("%s from the middle: %v", name, err)
		}
	}
	whatIsMissing(t, disk, byName["p1"])
}

// fill writes random bytes to ranges of extents, and returns them as the
// logical volume that they make up.
func fill(t *testing.T, f *os.File, segments string, offsets map[string]int64, chunk int64) (want []byte) {
	t.Helper()
	const extent, first = 512 << 10, 1 << 20
	random := rand.New(rand.NewSource(1))
	for segment := range strings.Lines(segments) {
		var parts [][]byte
		for _, m := range regexp.MustCompile(`(\S+):(\d+)-(\d+)`).FindAllStringSubmatch(segment, -1) {
			from, _ := strconv.ParseInt(m[2], 10, 64)
			to, _ := strconv.ParseInt(m[3], 10, 64)
			b := make([]byte, (to-from+1)*extent)
			random.Read(b)
			if _, err := f.WriteAt(b, offsets[m[1]]+first+from*extent); err != nil {
				t.Fatal(err)
			}
			parts = append(parts, b)
		}
		if len(parts) == 1 {
			want = append(want, parts[0]...)
			continue
		}
		for at := int64(0); at < int64(len(parts[0])); at += chunk {
			for _, p := range parts {
				want = append(want, p[at:at+chunk]...)
			}
		}
	}
	return want
}

// whatIsMissing takes one physical volume away: what does not need it can be
// read.
func whatIsMissing(t *testing.T, disk string, p1 vfs.Volume) {
	t.Helper()
	alone := filepath.Join(t.TempDir(), "alone")
	guesttest.Run(t, "dd", "if="+disk, "of="+alone, "bs=1M", "status=none",
		"iflag=skip_bytes,count_bytes", fmt.Sprintf("skip=%d", p1.Offset), fmt.Sprintf("count=%d", p1.Size))
	for _, v := range list(t, guesttest.File(t, alone)) {
		_, err := v.Image.ReadAt(make([]byte, v.Size), 0)
		if (err == nil) != (v.Name == "" || v.Name == "vg-0/home") {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}

// TestOtherSegments names what is not linear or striped.
func TestOtherSegments(t *testing.T) {
	t.Parallel()
	text, err := parseText([]byte(`
		# a comment
		vg { id = "a-b" extent_size = 8 physical_volumes { pv0 { id = "p" pe_start = 8 } }
		logical_volumes { thin { status = ["READ", "VISIBLE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 2 type = "thin" part = 0.5 } } } }`))
	if err != nil {
		t.Fatal(err)
	}
	g := text.below("vg")
	g["\x00name"] = "vg"
	all, err := volumesOf(g, nil, nil)
	if err != nil || len(all) != 1 || all[0].Type != "lvm thin" || all[0].Size != 8192 || all[0].Name != "vg/thin" {
		t.Fatalf("%+v, %v", all, err)
	}
	if _, err := all[0].Image.ReadAt(make([]byte, 10), 0); !errors.Is(err, vfs.ErrUnsupported) {
		t.Errorf("ReadAt: %v", err)
	}
}
