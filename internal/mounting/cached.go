package mounting

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cocoonstack/epochfs/cache"
)

// OpenCache opens the cache to inspect it. It returns nil if there is none,
// and does not create it.
func (c *Config) OpenCache() (*cache.Cache, error) {
	if _, err := os.Stat(c.CacheDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, &cacheError{fmt.Errorf("cache: %w", err)}
	}
	return c.MakeCache()
}

// MakeCache opens the cache, and creates it if there is none.
func (c *Config) MakeCache() (*cache.Cache, error) {
	open, err := cache.Open(c.CacheDir, cache.Options{Size: c.CacheSize, Log: c.Log})
	if err != nil {
		return nil, &cacheError{err}
	}
	return open, nil
}

// TryCache performs, on the empty file f in a cache's directory, the
// operations that the cache needs. It reports whether the file system lacks
// fallocate, so that the cache writes zeros instead.
func TryCache(f *os.File) (zeros bool, err error) { return cache.Try(f) }
