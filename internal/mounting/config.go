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

// Config is the configuration for opening a reference.
type Config struct {
	CacheDir    string        // created if it does not exist
	Offline     bool          // send no requests; what is not in the cache is an error
	PlainHTTP   bool          // plain HTTP to hosts that are not loopback
	Platform    string        // child of an image index, "os/arch"; "" for the default
	Concurrency int           // concurrent requests; 0 for the default
	CacheSize   int64         // bytes the cache may take; 0 for all but a tenth of its file system
	LimitRate   int64         // bytes fetched per second; 0 for no limit
	ReadTimeout time.Duration // how long a fetch is tried; 0 for ever
	NoCache     bool          // do not use a cache; files can only be read once, in order
	OnlyRead    bool          // read from the cache but store nothing in it; otherwise as with NoCache
	Memory      int64         // bytes that the process may take, at least LeastMemory; 0 for the default
	HostsDirs   []string      // directories with hosts.toml files, before the default ones
	UserAgent   string        // for the registry; "" for the default
	Tardy       time.Duration // transport.Options.Tardy
	Log         *slog.Logger  // nil for no log
	Known       []byte        // Note.Known of a live mount that is taken over; or nil

	OCIRegistry string // OCI_REGISTRY: host, or host and path, of names without a host
	EpochServer string // EPOCH_SERVER: the registry of names without a host, if OCIRegistry is ""
	EpochToken  string // EPOCH_REGISTRY_TOKEN: credentials for that registry
	CACert      string // EPOCH_CA_CERT: a PEM file with an additional root certificate
}

// FromEnvironment sets the fields that cocoonstack's tools, and epoch's own
// client, take from the environment as well. getenv is os.Getenv or its stand-in.
func (c *Config) FromEnvironment(getenv func(string) string) {
	c.OCIRegistry = getenv("OCI_REGISTRY")
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

// DefaultCacheDir returns the cache directory if no flag names one: the
// environment's, else the system's for root, else the user's.
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

// ErrOffline is wrapped by errors about content that --offline forbids to
// fetch.
var ErrOffline = errors.New("not in the cache, and --offline forbids requests")

// ErrTimeout is wrapped by errors about bytes that did not arrive within
// Config.ReadTimeout.
var ErrTimeout = cache.ErrTimeout

// ErrCache is wrapped by errors about an unusable cache directory.
var ErrCache = errors.New("no cache")

// cacheError is an ErrCache with the text of the cache's error.
type cacheError struct{ error }

func (e *cacheError) Is(target error) bool { return target == ErrCache }
func (e *cacheError) Unwrap() error        { return e.error }
