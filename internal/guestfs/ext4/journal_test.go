package ext4

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

var journals = []struct {
	name    string
	options string
	mount   string
	state   string // a regular expression, if the log is not replayed to its end
}{
	{name: "ext3", options: "-t ext3 -J size=4"},
	{name: "ext3 1k", options: "-t ext3 -b 1024 -J size=4"},
	{name: "ext3 data", options: "-t ext3 -b 1024 -J size=4", mount: "data=journal"},
	{name: "ext4", options: "-t ext4 -J size=8"},
	{name: "ext4 1k", options: "-t ext4 -b 1024 -J size=4"},
	{name: "ext4 data", options: "-t ext4 -J size=8", mount: "data=journal"},
	{name: "ext4 1k data", options: "-t ext4 -b 1024 -J size=4", mount: "data=journal"},
	{name: "no 64bit", options: "-t ext4 -O ^64bit -J size=4"},
	{name: "no checksums", options: "-t ext4 -O ^metadata_csum -J size=4", mount: "data=journal"},
	{name: "no checksums no 64bit", options: "-t ext4 -O ^metadata_csum,^64bit -J size=4"},
	{name: "old checksums", options: "-t ext4 -O ^metadata_csum -J size=4", mount: "data=writeback,journal_checksum,journal_async_commit"},
	{name: "async commit", options: "-t ext4 -J size=4", mount: "data=writeback,journal_checksum,journal_async_commit"},
	{name: "inline data", options: "-t ext4 -O inline_data -J size=4"},
	{name: "fast commit", options: "-t ext4 -O fast_commit -J size=8", state: "^(journal not replayed.*, fast commits follow: may be older than the snapshot|recovered in memory .*)$"},
}

// copyWhileMounted churns a file system and copies it while it is mounted.
func copyWhileMounted(t testing.TB, options, mount string, seed int64, steps int) string {
	t.Helper()
	disk := guesttest.Sparse(t, 48<<20)
	guesttest.Run(t, "mke2fs", append(append([]string{"-q", "-F"}, strings.Fields(options)...), disk)...)
	dir, unmount := guesttest.Mount(t, disk, "ext4", mount)
	guesttest.Churn(t, dir, seed, steps)
	dirty := guesttest.Copy(t, disk)
	unmount()
	return dirty
}

// TestDirtyJournal compares a file system that was copied while it was
// mounted with what the kernel shows of it after its own replay.
func TestDirtyJournal(t *testing.T) {
	t.Parallel()
	recovered := regexp.MustCompile(`^recovered in memory \([1-9][0-9]* transactions\)$`)
	for seed, v := range journals {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			dirty := copyWhileMounted(t, v.options, v.mount, int64(seed), 400)
			mine := guesttest.Copy(t, dirty)
			f, err := Open(guesttest.File(t, mine))
			if err != nil {
				t.Fatal(err)
			}
			state, want := f.Describe().State, recovered
			if v.state != "" {
				want = regexp.MustCompile(v.state)
			}
			if !want.MatchString(state) || len(f.journal.home) == 0 {
				t.Errorf("state %q, %d blocks replayed", state, len(f.journal.home))
			}
			if strings.HasPrefix(state, "journal not") {
				return
			}
			dir, _ := guesttest.Mount(t, dirty, "ext4", "noatime")
			n := guesttest.Compare(t, f, dir, guesttest.Skip{Blocks: true})
			t.Logf("%s, %d blocks replayed, %d files", state, len(f.journal.home), n)
		})
	}
}

// TestDamagedLog changes one byte in each of the log's first blocks: either
// the transactions before it are shown, or the state says that the journal
// was not replayed.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	dirty := copyWhileMounted(t, "-t ext4 -b 1024 -J size=4", "", 7, 60)
	disk, err := os.ReadFile(dirty)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Open(guesttest.Bytes(disk))
	if err != nil {
		t.Fatal(err)
	}
	i, err := whole.existing(uint64(whole.journalInode), vfs.Regular)
	if err != nil {
		t.Fatal(err)
	}
	refused, shorter := 0, 0
	for block := int64(1); block < 60; block++ {
		r, err := whole.mapped(i, block, block+1)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(r.physical)*whole.blockSize + 700
		disk[at] ^= 1
		f, err := Open(guesttest.Bytes(disk))
		disk[at] ^= 1
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.HasPrefix(f.state, "journal not replayed"):
			refused++
		case len(f.journal.home) < len(whole.journal.home) || f.state != whole.state:
			shorter++
		default:
			t.Errorf("block %d of the journal was changed, and the state is still %q", block, f.state)
		}
	}
	t.Logf("%d refused, %d shorter; whole: %s", refused, shorter, whole.state)
	if refused == 0 {
		t.Error("no damage was reported")
	}
}
