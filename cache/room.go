package cache

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

const (
	// freeShare is the part of the file system that is left free where no
	// size was given: one tenth.
	freeShare = 10
	// lookShare says how much may be written before the disk is looked at
	// again, as a part of the limit.
	lookShare   = 64
	lookLeast   = 1 << 20
	reserveMost = 64 << 20
	// lookAgain is how long a look is good for.
	lookAgain = time.Second
	// lookEarly is from what step on the next look begins when half of it
	// is left: bytes come faster than a large cache is measured.
	lookEarly = 64 << 20
)

// room is what this process knows of the space that the cache may take.
type room struct {
	mu      sync.Mutex    // never held over I/O
	left    int64         // bytes that may be written before the next look
	step    int64         // what the last look left
	taken   int64         // since the look under way has begun
	looking chan struct{} // closed when the look under way has ended; nil: there is none
	began   time.Time     // when it began
	short   bool          // somebody waits for it
	looked  time.Time     // when the last one ended; zero: never
	refused bool          // it found no room
	ended   bool          // the cache is closed
}

var (
	// errFull says that there is no room for something on disk.
	errFull = errors.New("no room in the cache")
	// errLooking says that it is not known yet whether there is.
	errLooking = errors.New("the cache is being measured")
)

// take reserves n bytes on disk for a piece that is about to be kept. What
// nobody uses is evicted for it, the least recently used first. It fails
// with errFull when there is no room, and with errLooking when the disk
// takes longer than the grace to tell: the channel is closed when it has.
func (c *Cache) take(n int64) (looked <-chan struct{}, err error) {
	for {
		looked, began, err := c.room.take(c, n)
		if looked == nil {
			return nil, err
		}
		if !await(c.ctx, looked, c.opts.grace-time.Since(began)) {
			return looked, errLooking
		}
	}
}

// await waits until done is closed, for at most so long, or until ctx ends.
// It reports whether it is.
func await(ctx context.Context, done <-chan struct{}, most time.Duration) bool {
	select {
	case <-done:
		return true
	default:
	}
	if most <= 0 {
		return false
	}
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// take takes n bytes of what is left, or returns the look at the disk that
// will tell, with the time when it began.
func (r *room) take(c *Cache, n int64) (looked <-chan struct{}, began time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.left >= n:
		r.left -= n
		r.taken += n
		if r.step >= lookEarly && r.left < r.step/2 {
			r.lookLocked(c, 0)
		}
		return nil, began, nil
	case r.looking == nil && (r.ended || r.refused && time.Since(r.looked) < lookAgain):
		return nil, began, errFull
	}
	r.lookLocked(c, n)
	r.short = r.looking != nil
	return r.looking, r.began, nil
}

// lookLocked has one look at the disk at a time.
func (r *room) lookLocked(c *Cache, n int64) {
	if r.looking != nil || r.ended {
		return
	}
	r.looking, r.began, r.taken = make(chan struct{}), time.Now(), 0
	go c.look(n)
}

// end waits for the look under way; there is no other after it.
func (r *room) end() {
	r.mu.Lock()
	r.ended = true
	looking := r.looking
	r.mu.Unlock()
	if looking != nil {
		<-looking
	}
}

// full says that the last look found no room.
func (c *Cache) full() bool {
	c.room.mu.Lock()
	defer c.room.mu.Unlock()
	return c.room.refused
}

// tight says that what is fetched may have to be held in memory: there is no
// room, or it takes long to tell whether there is.
func (c *Cache) tight() bool {
	r := &c.room
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused || r.measuringLocked(c)
}

// measuring says that it takes long to tell whether there is room.
func (c *Cache) measuring() bool {
	c.room.mu.Lock()
	defer c.room.mu.Unlock()
	return c.room.measuringLocked(c)
}

func (r *room) measuringLocked(c *Cache) bool {
	return r.short && time.Since(r.began) > c.opts.grace
}

// noRoom is told when the disk was full although the cache was not.
func (c *Cache) noRoom() {
	r := &c.room
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = 0
}

// look measures the cache, evicts what is over the limit with n bytes more,
// and says how much may be written until the next look.
func (c *Cache) look(n int64) {
	c.opts.before("measure")
	c.sweepSpools()
	files, used := c.usage()
	limit := c.limit(used)
	step := max(limit/lookShare, lookLeast, n)
	// Other processes may still write what their last look allowed them,
	// and nobody counts the small files.
	reserve := max(2*step, min(limit/8, reserveMost))
	if over := used + step + reserve - limit; over > 0 {
		freed := c.evict(files, over)
		if freed < over {
			freed += c.evict(c.returnedFrom(files), over-freed)
		}
		used -= freed
	}
	c.room.saw(min(step, limit-used-reserve), n)
	c.queue.dispatch() // what was held while this took long
}

// saw ends the look under way: step bytes may be written, where n are
// wanted.
func (r *room) saw(step, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step = step
	r.left = step - r.taken // which may not have been measured
	r.refused = step < n
	r.looked = time.Now()
	close(r.looking)
	r.looking, r.short = nil, false
}

// limit is how many bytes the cache may take, given how many it takes now.
func (c *Cache) limit(used int64) int64 {
	if c.opts.Size > 0 {
		return c.opts.Size
	}
	st, err := c.statfs()
	if err != nil {
		return math.MaxInt64 / 2
	}
	block := int64(st.Bsize)
	return used + int64(st.Bavail)*block - int64(st.Blocks)*block/freeShare
}

// statfs asks for the space of the cache's file system.
func (c *Cache) statfs() (st unix.Statfs_t, err error) {
	dir, err := c.root.Open(".")
	if err != nil {
		return st, err
	}
	defer dir.Close()
	err = os.NewSyscallError("fstatfs", unix.Fstatfs(int(dir.Fd()), &st))
	return st, err
}

// stored is a cached file as it lies on disk.
type stored struct {
	key  string
	disk int64     // bytes of blocks of its three files
	used time.Time // when it was last opened or written
}

// usage lists the cached files and adds up the blocks of everything.
func (c *Cache) usage() (files []stored, total int64) {
	byKey := map[string]*stored{}
	for _, d := range []string{dirFiles, dirBlobs, dirRefs} {
		dir, err := c.root.Open(d)
		if err != nil {
			continue
		}
		names, _ := dir.Readdirnames(-1) // as many as can be read
		_ = dir.Close()
		for _, name := range names {
			info, err := c.root.Lstat(path.Join(d, name))
			if err != nil {
				continue // gone meanwhile
			}
			disk := blocks(info)
			total += disk
			key, _, ok := strings.Cut(name, ".")
			if d != dirFiles || !ok || len(key) != 64 {
				continue
			}
			s := byKey[key]
			if s == nil {
				s = &stored{key: key}
				byKey[key] = s
			}
			s.disk += disk
			if used := info.ModTime(); used.After(s.used) {
				s.used = used
			}
		}
	}
	for _, s := range byKey {
		files = append(files, *s)
	}
	slices.SortFunc(files, func(a, b stored) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.key, b.key))
	})
	return files, total
}

// blocks is what a file takes on disk.
func blocks(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// evict removes files that nobody uses, in the order given, until over
// bytes are free. It returns how many are.
func (c *Cache) evict(files []stored, over int64) (freed int64) {
	var sections []string
	for _, s := range files {
		if freed >= over {
			break
		}
		own := c.sectionsOf(s.key)
		if c.remove(s.key) == nil {
			freed += s.disk
			sections = append(sections, own...)
		}
	}
	_, more := c.dropSections(sections)
	return freed + more
}

// errInUse says that a cached file is used by this or another process.
var errInUse = errors.New("in use")

// remove unlinks a cached file that nobody uses. Nothing is truncated, so
// who opened it meanwhile reads on.
func (c *Cache) remove(key string) error {
	name := path.Join(dirFiles, key)
	f, err := c.root.OpenFile(name+".state", os.O_RDWR|os.O_CREATE|openFlags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if ok, err := tryLock(f, unix.F_WRLCK, lockInUse, 1); err != nil || !ok {
		return errors.Join(errInUse, err)
	}
	if gone, err := unlinked(f); err != nil || gone {
		return errors.Join(errInUse, err) // somebody else removed it, and it may be there anew
	}
	// The state goes last: as long as it is there, who opens it waits for
	// our lock, and then finds it unlinked. A state without its data is
	// damage, and made anew.
	var errs []error
	for _, suffix := range []string{".data", ".meta", ".state"} {
		errs = append(errs, c.unlink(name+suffix))
		crashpoint.Reach("unlinked")
	}
	return errors.Join(errs...)
}

// unlinked says that an open file has no name any more.
func unlinked(f *os.File) (bool, error) {
	var st unix.Stat_t
	err := os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st))
	return err == nil && st.Nlink == 0, err
}

func (c *Cache) unlink(name string) error {
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// touch notes that the file is being used, for the order of eviction.
func (e *entry) touch() {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	_ = unix.Futimes(int(e.state.file.Fd()), []unix.Timeval{now, now}) // only the order of eviction hangs on it
}
