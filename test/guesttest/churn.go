package guesttest

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Churn makes, writes, renames, links, cuts and removes files, in an order
// that follows from seed, and syncs some of them to the journal.
func Churn(t testing.TB, dir string, seed int64, steps int) {
	t.Helper()
	c := &churning{populating: populating{t: t, dir: dir, random: rand.New(rand.NewSource(seed))}}
	c.dirs = []string{""}
	for range steps {
		c.step()
	}
}

type churning struct {
	populating
	files, dirs []string
	made        int
}

// name returns a new name in one of the directories.
func (c *churning) name() string {
	c.made++
	return filepath.Join(c.dirs[c.random.Intn(len(c.dirs))], fmt.Sprintf("f%d", c.made))
}

// take removes one of the files from the list and returns it.
func (c *churning) take() string {
	k := c.random.Intn(len(c.files))
	name := c.files[k]
	c.files[k] = c.files[len(c.files)-1]
	c.files = c.files[:len(c.files)-1]
	return name
}

func (c *churning) step() {
	kind := c.random.Intn(20)
	switch {
	case kind < 6 || len(c.files) < 5:
		c.write(c.name())
	case kind < 9:
		old, name := c.take(), c.name()
		c.must(os.Rename(c.path(old), c.path(name)))
		c.files = append(c.files, name)
	case kind < 12:
		c.must(os.Remove(c.path(c.take())))
	case kind < 13:
		name := c.name()
		c.must(os.Mkdir(c.path(name), 0o755))
		c.dirs = append(c.dirs, name)
		for range 30 { // so that there is more than a block of names
			c.write(c.name())
		}
	case kind < 14 && len(c.dirs) > 3:
		c.removeDir()
	case kind < 15:
		c.must(os.Truncate(c.path(c.files[c.random.Intn(len(c.files))]), int64(c.random.Intn(30000))))
	case kind < 16:
		name := c.name()
		c.must(os.Symlink(string(make16(c.random.Intn(100)+1)), c.path(name)))
		c.must(os.Remove(c.path(name)))
		c.must(os.Symlink(string(make16(c.random.Intn(100)+1)), c.path(name+"l")))
	case kind < 17:
		name := c.name()
		c.must(os.Link(c.path(c.files[c.random.Intn(len(c.files))]), c.path(name)))
		c.files = append(c.files, name)
	case kind < 18:
		c.must(os.Chmod(c.path(c.files[c.random.Intn(len(c.files))]), os.FileMode(c.random.Intn(0o1000))))
	default:
		c.sync(c.files[c.random.Intn(len(c.files))])
	}
}

func make16(n int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = "0123456789abcdef"[k%16]
	}
	return b
}

// removeDir removes the directory that was made last, whose blocks are
// revoked and used again as data.
func (c *churning) removeDir() {
	dir := c.dirs[len(c.dirs)-1]
	c.dirs = c.dirs[:len(c.dirs)-1]
	c.must(os.RemoveAll(c.path(dir)))
	kept := c.files[:0]
	for _, f := range c.files {
		if filepath.Dir(f) != dir {
			kept = append(kept, f)
		}
	}
	c.files = kept
	c.write(c.name())
}

// write makes a file whose blocks begin as the journal's own do, now and then.
func (c *churning) write(name string) {
	b := c.bytes(c.random.Intn(20000))
	if c.random.Intn(2) == 0 {
		for at := 0; at+4 <= len(b); at += 1024 {
			copy(b[at:], "\xc0\x3b\x39\x98")
		}
	}
	c.must(os.WriteFile(c.path(name), b, 0o644))
	c.files = append(c.files, name)
	if c.random.Intn(4) == 0 {
		c.sync(name)
	}
}

func (c *churning) sync(name string) {
	f, err := os.Open(c.path(name))
	c.must(err)
	defer f.Close()
	c.must(unix.Fsync(int(f.Fd())))
}
