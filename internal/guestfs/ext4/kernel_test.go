package ext4

import (
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/test/guesttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// variants are options of mke2fs, each with what it does to the format.
var variants = []struct {
	name    string
	options string
}{
	{"ext2", "-t ext2"},
	{"ext2 1k", "-t ext2 -b 1024"},
	{"ext2 revision 0", "-t ext2 -r 0 -O none -b 1024"},
	{"ext3", "-t ext3"},
	{"ext3 1k", "-t ext3 -b 1024 -I 128"},
	{"ext4", "-t ext4"},
	{"ext4 1k", "-t ext4 -b 1024"},
	{"ext4 2k", "-t ext4 -b 2048"},
	{"inline data", "-t ext4 -O inline_data"},
	{"inline data 1k inodes", "-t ext4 -O inline_data -I 1024"},
	{"small inodes", "-t ext4 -I 128"},
	{"no extents", "-t ext4 -O ^extents,^64bit"},
	{"no 64bit", "-t ext4 -O ^64bit"},
	{"no checksums", "-t ext4 -O ^metadata_csum"},
	{"uninit_bg", "-t ext4 -O ^metadata_csum,uninit_bg"},
	{"checksum seed", "-t ext4 -O metadata_csum_seed"},
	{"no flex_bg", "-t ext4 -O ^flex_bg -g 8192"},
	{"bigalloc", "-t ext4 -O bigalloc -C 65536"},
	{"bigalloc 1k", "-t ext4 -O bigalloc -b 1024 -C 16384"},
	{"meta_bg", "-t ext4 -O meta_bg,^resize_inode -g 1024 -b 1024"},
	{"meta_bg without sparse", "-t ext4 -O meta_bg,^resize_inode,^sparse_super -g 1024 -b 1024 -N 8192"},
	{"sparse_super2", "-t ext4 -O sparse_super2,^resize_inode"},
	{"large_dir", "-t ext4 -O large_dir -b 1024"},
	{"ea_inode", "-t ext4 -O ea_inode"},
	{"no filetype", "-t ext4 -O ^filetype"},
	{"mmp", "-t ext4 -O mmp"},
	{"cocoon", "-t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -m 0"},
	{"tea", "-t ext4 -b 1024 -E hash_alg=tea"},
	{"legacy hash", "-t ext4 -b 1024 -E hash_alg=legacy"},
}

// TestAsTheKernel makes a file system in each variant, fills it, and compares
// every file with what the kernel shows.
func TestAsTheKernel(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			disk := guesttest.Sparse(t, 64<<20)
			args := strings.Fields(v.options)
			if hash, ok := strings.CutPrefix(args[len(args)-1], "hash_alg="); ok {
				args = args[:len(args)-2]
				guesttest.Run(t, "mke2fs", append(append([]string{"-q", "-F"}, args...), disk)...)
				guesttest.Run(t, "tune2fs", "-E", "hash_alg="+hash, disk)
			} else {
				guesttest.Run(t, "mke2fs", append(append([]string{"-q", "-F"}, args...), disk)...)
			}
			dir, unmount := guesttest.Mount(t, disk, "ext4", "")
			c := guesttest.Contents{Many: 1000, Large: 1 << 20}
			if tier.Shorter() > 1 {
				c.Many = 400 // an index of one level all the same
			}
			if strings.Contains(v.name, "bigalloc") {
				c.Many = 300 // each takes a cluster
			}
			guesttest.Populate(t, dir, c)
			unmount()
			f, err := Open(guesttest.File(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			if state := f.Describe().State; state != "clean" {
				t.Errorf("state %q", state)
			}
			dir, _ = guesttest.Mount(t, disk, "ext4", "ro,noatime")
			if n := guesttest.Compare(t, f, dir, guesttest.Skip{}); n < c.Many/2 {
				t.Errorf("compared %d files", n)
			}
		})
	}
}
