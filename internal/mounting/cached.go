package mounting

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cocoonstack/epochfs/cache"
)

// OpenCache opens the cache by itself, to look at it. Nothing is made where
// there is none: then the result is nil.
func (c *Config) OpenCache() (*cache.Cache, error) {
	if _, err := os.Stat(c.CacheDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, &cacheError{fmt.Errorf("cache: %w", err)}
	}
	return c.MakeCache()
}

// MakeCache opens the cache by itself, and makes it where there is none.
func (c *Config) MakeCache() (*cache.Cache, error) {
	open, err := cache.Open(c.CacheDir, cache.Options{Size: c.CacheSize, Log: c.Log})
	if err != nil {
		return nil, &cacheError{err}
	}
	return open, nil
}

// TryCache does with f, an empty file in a cache's directory, what the cache
// does with its files. It reports whether zeros are written where others have
// fallocate.
func TryCache(f *os.File) (zeros bool, err error) { return cache.Try(f) }
