package mounting

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cocoonstack/epochfs/cache"
)

// Config is what opening a reference needs to know besides the reference.
type Config struct {
	CacheDir    string        // created where it is missing
	Offline     bool          // ask no registry; what is not in the cache is an error
	PlainHTTP   bool          // plain HTTP to hosts that are not loopback
	Platform    string        // which child of an image index, "os/arch"; "" for the usual one
	Concurrency int           // requests at a time; 0 for the usual number
	CacheSize   int64         // bytes the cache may take; 0: all but a tenth of its file system
	LimitRate   int64         // bytes fetched per second; 0 for no limit
	ReadTimeout time.Duration // how long a fetch is tried; 0 for ever
	NoCache     bool          // neither read a cache nor keep anything; files can only be read once, in order
	OnlyRead    bool          // read what the cache has, and keep nothing in it; as with NoCache otherwise
	Memory      int64         // bytes that the process may take, at least LeastMemory; 0 for the usual number
	HostsDirs   []string      // where hosts.toml files are looked for, before the usual places
	UserAgent   string        // what the registry is told; "" for the usual
	Log         *slog.Logger  // nil for nobody
	Known       []byte        // of Note, for who opens again what is mounted; nil for nothing

	EpochServer string // EPOCH_SERVER: the registry of names without a host
	EpochToken  string // EPOCH_REGISTRY_TOKEN: credentials for that registry
	CACert      string // EPOCH_CA_CERT: a PEM file with one more root certificate
}

// FromEnvironment sets what epoch's own client takes from the environment
// as well. getenv is os.Getenv, or stands for it.
func (c *Config) FromEnvironment(getenv func(string) string) {
	c.EpochServer = getenv("EPOCH_SERVER")
	c.EpochToken = getenv("EPOCH_REGISTRY_TOKEN")
	c.CACert = getenv("EPOCH_CA_CERT")
	if dir := getenv(HostsDirEnv); dir != "" {
		c.HostsDirs = append(c.HostsDirs, dir)
	}
}

// HostsDirEnv names the environment variable for a directory of hosts.toml
// files.
const HostsDirEnv = "EPOCHFS_HOSTS_DIR"

// CacheDirEnv names the environment variable for the cache directory.
const CacheDirEnv = "EPOCHFS_CACHE_DIR"

// DefaultCacheDir returns the cache directory where no flag names one:
// the environment's, else the system's for root, else the user's.
func DefaultCacheDir() (string, error) {
	if dir := os.Getenv(CacheDirEnv); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/epochfs", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: %w (use --cache-dir)", err)
	}
	return filepath.Join(dir, "epochfs"), nil
}

// ErrOffline is in the chain of errors about what --offline forbids to
// fetch.
var ErrOffline = errors.New("not in the cache, and --offline forbids to ask the registry")

// ErrTimeout is in the chain of errors about bytes that did not come
// within Config.ReadTimeout.
var ErrTimeout = cache.ErrTimeout

// ErrCache is in the chain of an error that says: the cache directory
// cannot be used.
var ErrCache = errors.New("no cache")

// cacheError is an ErrCache with the cache's own words.
type cacheError struct{ error }

func (e *cacheError) Is(target error) bool { return target == ErrCache }
func (e *cacheError) Unwrap() error        { return e.error }
