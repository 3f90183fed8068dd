// Package control is the status socket of a mount: what a mount tells of
// itself, and asking it. Each mount's process serves one Unix socket in a
// directory that belongs to its user alone.
package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"
)

// Status is what `epochfs status --json` prints. Keys are only ever added.
type Status struct {
	Version int     `json:"version"`
	Mounts  []Mount `json:"mounts"`
}

// Version is that of Status.
const Version = 1

// Mount is one mount. Sizes are in bytes, rates in bytes per second.
type Mount struct {
	Summary   string    `json:"summary"` // how it is doing, in one sentence
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Dir       string    `json:"dir"`
	DirBytes  []byte    `json:"dir_bytes,omitempty"` // see Bytes
	Device    string    `json:"device,omitempty"`    // its number, as "major:minor"
	PID       int       `json:"pid"`                 // 0 where the process does not answer
	Program   string    `json:"program_version"`     // of the program that serves it
	KeeperPID int       `json:"keeper_pid"`          // 0 where it ends with its process
	NotKept   string    `json:"not_kept,omitempty"`  // why, in words
	Since     time.Time `json:"since"`
	Files     []File    `json:"files"`
	Reads     Reads     `json:"reads"`
	Wrong     Wrong     `json:"wrong"`
	Network   Network   `json:"network"`
	Link      Link      `json:"link"`
	Mirrors   []Mirror  `json:"mirrors"` // in the order in which they are asked, the registry itself last
	Cache     Cache     `json:"cache"`
	Waiting   []Wait    `json:"waiting"`
	Metrics   string    `json:"metrics,omitempty"` // address they are served on
	Trouble   string    `json:"trouble,omitempty"` // what is wrong with the mount as a whole, in words
}

// Bytes returns the bytes of a path that is not UTF-8, and nil for others. JSON
// has text only, in which what is not UTF-8 is replaced, so the bytes stand
// beside the text, in base64.
func Bytes(path string) []byte {
	if utf8.ValidString(path) {
		return nil
	}
	return []byte(path)
}

// Silent is a mount of which nothing is known but that it is there.
func Silent(dir, device, reference, trouble string) Mount {
	return Mount{
		Reference: reference, Dir: dir, DirBytes: Bytes(dir), Device: device, Trouble: trouble, Files: []File{}, Mirrors: []Mirror{}, Waiting: []Wait{},
		Network: Network{Causes: map[string]int64{}}, Wrong: Wrong{FoundBy: map[string]int64{}},
		Link: Link{Ranges: "unknown", Latency: Histogram{Bounds: []float64{}, Counts: []int64{}}},
	}
}

// File is one file of a mount.
type File struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`  // holes included
	Data     int64  `json:"data"`  // what is not a hole
	Local    int64  `json:"local"` // of data, what is in the cache
	Mode     string `json:"mode"`  // how it is open: "cached", "passthrough", "direct", or "" where it is not
	Open     int    `json:"open"`  // handles, in all modes
	Verified bool   `json:"verified"`
	Fetching bool   `json:"fetching"` // bytes of it are on their way
	Map      *Map   `json:"map,omitempty"`
}

// Reads counts what readers got by way of the process, since it began.
type Reads struct {
	Count  int64 `json:"count"`
	Bytes  int64 `json:"bytes"`
	Misses int64 `json:"misses"` // had to wait for bytes from elsewhere
	Failed int64 `json:"failed"` // ended with an I/O error

	Waiting int64 `json:"waiting"` // for bytes, now
}

// Wrong counts pieces of cached files that were found to be wrong after they
// were kept, since the process began. They were dropped, there and in the
// kernel, and are fetched again.
type Wrong struct {
	Pieces  int64            `json:"pieces"`
	FoundBy map[string]int64 `json:"found_by"`
}

// Network is what was asked of the registry and its mirrors since the
// process began.
type Network struct {
	Requests int64            `json:"requests"`
	Bytes    int64            `json:"bytes"`
	Retries  int64            `json:"retries"`
	Causes   map[string]int64 `json:"retries_by_cause"`
	Rate     int64            `json:"rate"`       // just now; measured only while something is fetched
	Limit    int64            `json:"limit_rate"` // 0 for none
}

// Link is what was learned about the way to the bytes.
type Link struct {
	Ranges     string    `json:"ranges"`             // "served", "ignored", or "unknown"
	RoundTrip  float64   `json:"round_trip_seconds"` // from a request to the first byte of its answer; 0 while unknown
	Connection int64     `json:"connection_rate"`    // what one connection carries; 0 while unknown
	Failures   int       `json:"failures"`           // in a row
	Error      string    `json:"error"`              // the last of them; "" since a byte arrived
	Latency    Histogram `json:"first_byte_seconds"` // of all requests for bytes of files
}

// Histogram counts durations in seconds.
type Histogram struct {
	Bounds []float64 `json:"bounds"` // upper bounds of the buckets
	Counts []int64   `json:"counts"` // of each bucket alone, and of what is beyond the last bound
	Sum    float64   `json:"sum"`
}

// Mirror is one place that bytes come from.
type Mirror struct {
	Host     string    `json:"host"`
	Registry bool      `json:"registry"` // it is the registry itself
	Trusted  bool      `json:"trusted"`  // it may send what no digest vouches for in time
	Requests int64     `json:"requests"`
	Bytes    int64     `json:"bytes"`
	Rate     int64     `json:"rate"`
	Failures int       `json:"failures"`         // in a row
	Resting  time.Time `json:"resting,omitzero"` // not asked before this
	Error    string    `json:"error"`            // why it failed last; "" since it served
	Missing  int       `json:"missing"`          // blobs that it did not have lately
	Wrong    int       `json:"wrong"`            // blobs of which it sent wrong bytes
}

// Cache is the cache directory, with what other mounts have there.
type Cache struct {
	Dir   string `json:"dir"`
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"`
	Full  bool   `json:"full"` // of files in use: what is fetched is not kept
	// Copied are bytes that were taken from other cached files and not
	// fetched, of packed artifacts, since the process began.
	Copied int64 `json:"copied"`
}

// Wait is bytes that readers wait for.
type Wait struct {
	File    string    `json:"file"`
	Offset  int64     `json:"offset"`
	Length  int64     `json:"length"`
	Digest  string    `json:"digest"`
	Since   time.Time `json:"since"`
	Readers int       `json:"readers"`
	Error   string    `json:"error"` // of the last try; "" during the first
	Cause   string    `json:"cause"` // of that error, in a few words
}

// DirEnv names the environment variable for the directory of the sockets.
const DirEnv = "EPOCHFS_RUNTIME_DIR"

// Dir is where this user's sockets are: in the system's place for root,
// else in the session's, else in a directory for temporary files.
func Dir() string {
	switch dir := os.Getenv(DirEnv); {
	case dir != "":
		return dir
	case os.Geteuid() == 0:
		return "/run/epochfs"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "epochfs")
	}
	return tempDir(os.Geteuid())
}

func tempDir(uid int) string { return filepath.Join(os.TempDir(), "epochfs-"+strconv.Itoa(uid)) }

// usualDirs is where a user's sockets are who has not chosen another place.
func usualDirs(uid int) []string {
	if uid == 0 {
		return []string{"/run/epochfs"}
	}
	return []string{filepath.Join("/run/user", strconv.Itoa(uid), "epochfs"), tempDir(uid)}
}

// MakeDir makes Dir, where it is missing, and returns it. It fails where
// others could put a socket there.
func MakeDir() (string, error) {
	dir := Dir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, checkDir(dir, os.Geteuid())
}

// suffix ends the names of sockets; what is before it is the process's id.
const suffix = ".sock"

// newSuffix ends the name of a socket that is not yet listened on.
const newSuffix = ".new"

// errForeign says that a directory is not its user's alone.
var errForeign = errors.New("it belongs to somebody else, or others can write to it")

// checkDir refuses a directory in which others than the user could put a
// socket.
func checkDir(dir string, uid int) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(sys.Uid) != uid || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: %w", dir, errForeign)
	}
	return nil
}
