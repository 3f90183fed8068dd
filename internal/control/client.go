package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxAnswer bounds a mount's answer, in bytes.
const maxAnswer = 64 << 20

// List returns the status of all mounts with sockets in dir, which must
// belong to this user. It removes the sockets of dead processes. The entry
// of a process that does not answer has only PID and Trouble set. A missing
// directory has no mounts.
func List(dir string) ([]Mount, error) { return listOf(dir, os.Geteuid()) }

// ListOf returns the status of another user's mounts, from the default
// directories for that user's sockets. The answers are under the other
// user's control. ListOf removes no sockets.
func ListOf(uid int) []Mount {
	var all []Mount
	for _, dir := range usualDirs(uid) {
		m, _ := listOf(dir, uid) // an invalid directory counts as empty
		all = append(all, m...)
	}
	return all
}

func listOf(dir string, uid int) ([]Mount, error) {
	if err := checkDir(dir, uid); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var all []Mount
	var asked sync.WaitGroup
	for _, e := range entries {
		name, isSocket := strings.CutSuffix(e.Name(), suffix)
		pid, err := strconv.Atoi(name)
		if !isSocket || err != nil || e.Type() != fs.ModeSocket {
			continue
		}
		asked.Go(func() {
			socket := filepath.Join(dir, e.Name())
			m, err := ask(socket)
			switch {
			case errors.Is(err, syscall.ECONNREFUSED):
				if uid == os.Geteuid() {
					_ = os.Remove(socket)
				}
				return
			case errors.Is(err, fs.ErrNotExist):
				return
			case err != nil:
				m = Mount{PID: pid, Trouble: fmt.Sprintf("process %d does not answer: %v", pid, err)}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, m)
		})
	}
	asked.Wait()
	slices.SortFunc(all, func(a, b Mount) int { return strings.Compare(a.Dir, b.Dir) })
	return all, nil
}

func ask(socket string) (Mount, error) {
	conn, err := net.DialTimeout("unix", socket, answerIn)
	if err != nil {
		return Mount{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerIn)); err != nil {
		return Mount{}, err
	}
	var m Mount
	if err := json.NewDecoder(io.LimitReader(conn, maxAnswer)).Decode(&m); err != nil {
		return Mount{}, err
	}
	if m.DirBytes != nil {
		m.Dir = string(m.DirBytes)
	}
	return m, nil
}
