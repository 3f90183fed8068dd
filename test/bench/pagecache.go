package main

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pageCache returns how many bytes of the files in a directory are in the page
// cache, pages without content included, which mincore leaves out.
func pageCache(dir string) (int64, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return 0, err
	}
	var pages int64
	for _, name := range names {
		n, err := cachedPages(name)
		if err != nil {
			return 0, err
		}
		pages += n
	}
	return pages * int64(os.Getpagesize()), nil
}

func cachedPages(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var all unix.CachestatRange // of length 0: to the end
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &all, &stat, 0); err != nil {
		return 0, &os.PathError{Op: "cachestat", Path: name, Err: err}
	}
	return int64(stat.Cache), nil
}

// dropPages drops the pages of the files in a directory, and below it.
func dropPages(dir string) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}
