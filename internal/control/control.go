// Package control implements the status socket of a mount and its client.
// Each mount's process serves one Unix socket in a directory that only its
// user can write to.
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

// Status is the output of `epochfs status --json`. Keys may be added, but
// not changed or removed.
type Status struct {
	Version int     `json:"version"`
	Mounts  []Mount `json:"mounts"`
}

// Version is the version of Status.
const Version = 1

// Mount is the status of one mount. Sizes are in bytes, rates in bytes per
// second.
type Mount struct {
	Summary   string    `json:"summary"` // one sentence
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Dir       string    `json:"dir"`
	DirBytes  []byte    `json:"dir_bytes,omitempty"` // see Bytes
	Device    string    `json:"device,omitempty"`    // device number, as "major:minor"
	PID       int       `json:"pid"`                 // 0 if the process does not answer
	Program   string    `json:"program_version"`     // version of the serving program
	KeeperPID int       `json:"keeper_pid"`          // 0 if the mount ends with its process
	NotKept   string    `json:"not_kept,omitempty"`  // why the mount has no keeper
	Since     time.Time `json:"since"`
	Files     []File    `json:"files"`
	Reads     Reads     `json:"reads"`
	Wrong     Wrong     `json:"wrong"`
	Network   Network   `json:"network"`
	Link      Link      `json:"link"`
	Mirrors   []Mirror  `json:"mirrors"` // in the order of use, the registry itself last
	Cache     Cache     `json:"cache"`
	Waiting   []Wait    `json:"waiting"`
	Users     []User    `json:"users,omitempty"`   // that the asking user can see; the mount itself does not know
	Metrics   string    `json:"metrics,omitempty"` // address of the metrics endpoint
	Trouble   string    `json:"trouble,omitempty"` // a problem with the mount as a whole

	// WorkingSet is nil if the mount neither replays nor records one.
	WorkingSet *WorkingSet `json:"working_set,omitempty"`
}

// User is a process, loop device or mount that uses a mount.
type User struct {
	PID     int    `json:"pid,omitempty"`
	Command string `json:"command"`
	Use     string `json:"use"` // such as "has mem mapped"
}

// Bytes returns path as bytes if it is not valid UTF-8, and otherwise nil.
// JSON strings cannot hold invalid UTF-8, so such a path is also given in
// base64.
func Bytes(path string) []byte {
	if utf8.ValidString(path) {
		return nil
	}
	return []byte(path)
}

// Silent returns the status of a mount that does not answer.
func Silent(dir, device, reference, trouble string) Mount {
	return Mount{
		Reference: reference, Dir: dir, DirBytes: Bytes(dir), Device: device, Trouble: trouble, Files: []File{}, Mirrors: []Mirror{}, Waiting: []Wait{},
		Network: Network{Causes: map[string]int64{}}, Wrong: Wrong{FoundBy: map[string]int64{}},
		Link: Link{Ranges: "unknown", Latency: Histogram{Bounds: []float64{}, Counts: []int64{}}},
	}
}

// File is the status of one file of a mount.
type File struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`  // holes included
	Data     int64  `json:"data"`  // without holes
	Local    int64  `json:"local"` // the part of the data in the cache
	Mode     string `json:"mode"`  // open mode: "cached", "passthrough", "direct", or "" if not open
	Open     int    `json:"open"`  // handles, in all modes
	Verified bool   `json:"verified"`
	Fetching bool   `json:"fetching"` // bytes of the file are being fetched
	Map      *Map   `json:"map,omitempty"`
}

// Reads counts the reads that the process has answered since it began.
type Reads struct {
	Count  int64 `json:"count"`
	Bytes  int64 `json:"bytes"`
	Misses int64 `json:"misses"` // reads that waited for bytes from elsewhere
	Failed int64 `json:"failed"` // reads that failed with an I/O error

	Waiting int64 `json:"waiting"` // reads waiting for bytes now
}

// Wrong counts pieces of cached files that were found to be wrong after they
// were stored, since the process began. Such pieces are dropped from the
// disk and from the kernel's cache, and fetched again.
type Wrong struct {
	Pieces  int64            `json:"pieces"`
	FoundBy map[string]int64 `json:"found_by"`
}

// Network counts requests to the registry and its mirrors since the process
// began.
type Network struct {
	Requests int64            `json:"requests"`
	Bytes    int64            `json:"bytes"`
	Retries  int64            `json:"retries"`
	Causes   map[string]int64 `json:"retries_by_cause"`
	Rate     int64            `json:"rate"`       // current; measured only while bytes are fetched
	Limit    int64            `json:"limit_rate"` // 0 for no limit
}

// Link describes the measured properties of the network path.
type Link struct {
	Ranges     string    `json:"ranges"`             // "served", "ignored", or "unknown"
	RoundTrip  float64   `json:"round_trip_seconds"` // time from a request to its first byte; 0 if unknown
	Connection int64     `json:"connection_rate"`    // rate of one connection; 0 if unknown
	Failures   int       `json:"failures"`           // consecutive
	Error      string    `json:"error"`              // the last failure; "" after a byte has arrived
	Latency    Histogram `json:"first_byte_seconds"` // over all requests for bytes of files
}

// Histogram counts durations in seconds.
type Histogram struct {
	Bounds []float64 `json:"bounds"` // upper bounds of the buckets
	Counts []int64   `json:"counts"` // count of each bucket alone; the last is beyond all bounds
	Sum    float64   `json:"sum"`
}

// Mirror is the status of a mirror or of the registry itself.
type Mirror struct {
	Host     string    `json:"host"`
	Registry bool      `json:"registry"` // it is the registry itself
	Trusted  bool      `json:"trusted"`  // may serve bytes that no digest can verify in time
	Requests int64     `json:"requests"`
	Bytes    int64     `json:"bytes"`
	Rate     int64     `json:"rate"`
	Failures int       `json:"failures"`         // consecutive
	Resting  time.Time `json:"resting,omitzero"` // not used before this time
	Error    string    `json:"error"`            // the last failure; "" after a success
	Missing  int       `json:"missing"`          // blobs recently found missing
	Wrong    int       `json:"wrong"`            // blobs with wrong bytes
}

// Cache is the status of the cache directory, which mounts share.
type Cache struct {
	Dir   string `json:"dir"`
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"`
	Full  bool   `json:"full"` // full of files in use: fetched bytes are not stored
	// Copied counts the bytes of packed artifacts that were copied from
	// other cached files instead of fetched, since the process began.
	Copied int64 `json:"copied"`
	// NotKept counts the bytes that were fetched and not stored, because the
	// cache's disk is slower than the link, since the process began.
	NotKept int64 `json:"not_kept"`
}

// WorkingSet is the status of a mount's working set. Sizes are in bytes.
type WorkingSet struct {
	State   string `json:"state"`              // one of the Set constants
	Ready   bool   `json:"ready"`              // a start of the VM need not wait for the network
	FoundBy string `json:"found_by,omitempty"` // "manifest", "content", "base", "name" or "file"
	Runs    int    `json:"runs"`               // recordings in the set
	Error   string `json:"error,omitempty"`    // why there is no set

	Recorded int64 `json:"recorded"` // the data that the set names
	Local    int64 `json:"local"`    // of that, what is in the cache
	Fetched  int64 `json:"fetched"`  // of that, what came from the registry
	Stored   int64 `json:"stored"`   // handed to the kernel, whose reads of it are not seen
	Used     int64 `json:"used"`     // read when it was local
	Late     int64 `json:"late"`     // read before it was local
	Unused   int64 `json:"unused"`   // local, and neither read nor handed to the kernel

	Recording *Recording `json:"recording,omitempty"` // nil if the mount does not record
}

// States of a working set.
const (
	SetLooking   = "looking"   // the registry is being asked for one
	SetNone      = "none"      // there is none
	SetReplaying = "replaying" // it is being fetched
	SetReady     = "ready"     // it is local, as far as it is to be
)

// Recording is the status of a mount's recording.
type Recording struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"` // of pages that were touched
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"`
}

// Wait describes bytes that readers wait for.
type Wait struct {
	File    string    `json:"file"`
	Offset  int64     `json:"offset"`
	Length  int64     `json:"length"`
	Digest  string    `json:"digest"`
	Since   time.Time `json:"since"`
	Readers int       `json:"readers"`
	Error   string    `json:"error"` // of the last attempt; "" during the first
	Cause   string    `json:"cause"` // of the error, in a few words
}

// DirEnv is the environment variable that sets the directory of the sockets.
const DirEnv = "EPOCHFS_RUNTIME_DIR"

// Dir returns the directory of this user's sockets: the system's runtime
// directory for root, otherwise the session's, otherwise a directory for
// temporary files.
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

// usualDirs returns the default directories of a user's sockets.
func usualDirs(uid int) []string {
	if uid == 0 {
		return []string{"/run/epochfs"}
	}
	return []string{filepath.Join("/run/user", strconv.Itoa(uid), "epochfs"), tempDir(uid)}
}

// MakeDir returns Dir, and creates the directory if it is missing. It fails
// if other users could put a socket there.
func MakeDir() (string, error) {
	dir := Dir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, checkDir(dir, os.Geteuid())
}

// suffix is the suffix of socket names; the prefix is the process id.
const suffix = ".sock"

// newSuffix is the suffix of a socket that does not listen yet.
const newSuffix = ".new"

// errForeign is the error for a directory that other users can write to.
var errForeign = errors.New("it belongs to another user, or others can write to it")

// checkDir returns an error if users other than uid could put a socket in
// dir.
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
