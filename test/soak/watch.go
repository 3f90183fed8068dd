package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// watch looks at a cache directory from outside.
type watch struct {
	dir   string
	limit int64 // bytes that it may take on disk

	evicted int64 // data files that went
	over    int64 // looks at which it was larger than limit
	seen    map[string]uint64
}

// run checks until ctx ends. Only eviction removes files meanwhile.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look()
		}
	}
}

func (w *watch) look() {
	now := map[string]uint64{} // inode of each data file
	var used int64
	_ = filepath.WalkDir(w.dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		info, err := os.Lstat(name)
		if err != nil || info.IsDir() {
			return nil
		}
		st := info.Sys().(*syscall.Stat_t)
		used += st.Blocks * 512
		if strings.HasSuffix(name, ".data") {
			now[name] = st.Ino
		}
		return nil
	})
	for name, ino := range w.seen {
		if now[name] != ino {
			w.evicted++
		}
	}
	if used > w.limit {
		w.over++
	}
	w.seen = now
}
