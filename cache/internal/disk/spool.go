package disk

import (
	"crypto/rand"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// spoolMark begins the names of spools: files for bytes that must be read again
// and are stored nowhere else. The lock of its writer keeps a spool from being
// removed, however old it is.
const spoolMark = "spool" + TmpMark

// MakeSpool makes an empty spool, which is swept when its last descriptor is
// closed. Its name is f's below the directory.
func (d *Dir) MakeSpool() (f *os.File, name string, err error) {
	for {
		name = path.Join(Files, spoolMark+rand.Text())
		f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return nil, "", err
		}
		ok, err := TryLock(f, unix.F_WRLCK, LockInUse, 1)
		var gone bool
		if err == nil && ok {
			gone, err = unlinked(f)
		}
		if err == nil && ok && !gone {
			return f, name, nil
		}
		_ = d.Unlink(name)
		_ = f.Close()
		if err != nil {
			return nil, "", err
		} // else it was swept before it was locked
	}
}

// SweepSpools removes the spools of dead processes.
func (d *Dir) SweepSpools() {
	d.eachSpool(func(name string) {
		f, err := d.OpenFile(name, os.O_RDWR)
		if err != nil {
			return
		}
		defer f.Close()
		if ok, err := TryLock(f, unix.F_WRLCK, LockInUse, 1); ok && err == nil {
			_ = d.Unlink(name) // the next one tries again
		}
	})
}

// Spooled returns the bytes that spools take on disk.
func (d *Dir) Spooled() (n int64) {
	d.eachSpool(func(name string) {
		if info, err := d.Stat(name); err == nil {
			n += Blocks(info)
		}
	})
	return n
}

func (d *Dir) eachSpool(do func(name string)) {
	names, _ := d.Names(Files)
	for _, name := range names {
		if strings.HasPrefix(name, spoolMark) {
			do(path.Join(Files, name))
		}
	}
}

// Sweep removes what dead processes were writing.
func (d *Dir) Sweep() {
	d.SweepSpools()
	for _, sub := range []string{Files, Blobs, Refs} {
		names, _ := d.Names(sub)
		for _, name := range names {
			if !strings.Contains(name, TmpMark) || strings.HasPrefix(name, spoolMark) {
				continue
			}
			name = path.Join(sub, name)
			if info, err := d.root.Lstat(name); err == nil && time.Since(info.ModTime()).Abs() > tmpAge { // clocks are set back, too
				_ = d.root.Remove(name) // the next one tries again
			}
		}
	}
}
