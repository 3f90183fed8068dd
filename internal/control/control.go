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
)

// Status is what `epochfs status --json` prints. Keys are only ever added.
type Status struct {
	Version int     `json:"version"`
	Mounts  []Mount `json:"mounts"`
}

// Version is that of Status.
const Version = 1

// Mount is one mount. Sizes are in bytes.
type Mount struct {
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Dir       string    `json:"dir"`
	PID       int       `json:"pid"` // 0 where the process does not answer
	KeeperPID int       `json:"keeper_pid"`
	Since     time.Time `json:"since"`
	Files     []File    `json:"files"`
	Network   Network   `json:"network"`
	Waiting   []Wait    `json:"waiting"`
	Trouble   string    `json:"trouble,omitempty"` // what is wrong with the mount as a whole, in words
}

// File is one file of a mount.
type File struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`  // holes included
	Data     int64  `json:"data"`  // what is not a hole
	Local    int64  `json:"local"` // of data, what is in the cache
	Mode     string `json:"mode"`  // how it is open: "cached", "passthrough", "direct", or "" where it is not
	Verified bool   `json:"verified"`
}

// Network is what was asked of the registry since the mount began.
type Network struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
	Retries  int64 `json:"retries"`
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
	return filepath.Join(os.TempDir(), "epochfs-"+strconv.Itoa(os.Geteuid()))
}

// suffix ends the names of sockets; what is before it is the process's id.
const suffix = ".sock"

// errForeign says that a directory is not this user's alone.
var errForeign = errors.New("it belongs to somebody else, or others can write to it")

// checkDir refuses a directory in which others could put a socket.
func checkDir(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: %w", dir, errForeign)
	}
	return nil
}
