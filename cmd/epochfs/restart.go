package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
)

type restartOptions struct {
	*globals
	out io.Writer
	dir string // "" for all mounts
}

func newRestartCmd(g *globals) *cobra.Command {
	opts := restartOptions{globals: g}
	return &cobra.Command{
		Use:   "restart [DIR]",
		Short: "Let this binary take over live mounts",
		Long: `restart lets this binary take over one live mount, or all of the user's, for example
after an update. If it cannot serve a mount, the old process goes on. Readers wait
for a few milliseconds. A mount that has lost its keeper gets a new one.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			if len(args) > 0 {
				opts.dir = args[0]
			}
			return runRestart(opts)
		},
	}
}

// restarted is the JSON output.
type restarted struct {
	Version int              `json:"version"`
	Mounts  []restartedMount `json:"mounts"`
}

type restartedMount struct {
	Dir       string `json:"dir"`
	DirBytes  []byte `json:"dir_bytes,omitempty"`
	PID       int    `json:"pid"`
	KeeperPID int    `json:"keeper_pid"`
	Error     string `json:"error,omitempty"`

	Users []control.User `json:"users,omitempty"`
}

func runRestart(opts restartOptions) error {
	find := restartable
	if opts.dir != "" {
		find = func() ([]keeper.Mount, error) { return restartableOn(opts.dir) }
	}
	found, err := find()
	if err != nil {
		return err
	}
	result := restarted{Version: 1, Mounts: []restartedMount{}}
	var failed error
	users := usersByDir(found)
	for _, m := range found {
		dir := m.Dir
		m, err := opts.restart(m)
		r := restartedMount{Dir: dir, DirBytes: control.Bytes(dir), PID: m.Worker, KeeperPID: m.Keeper, Users: users[dir]}
		if err != nil {
			r.Error = err.Error()
			failed = errors.Join(failed, fmt.Errorf("%s is still served by its old process: %w", dir, err))
		} else if !opts.json && !opts.quiet {
			fmt.Fprintf(opts.out, "%s: served by process %d, kept by %d%s\n", printable(dir), m.Worker, m.Keeper, inUse(r.Users))
		}
		result.Mounts = append(result.Mounts, r)
	}
	if opts.json {
		failed = errors.Join(failed, printJSON(opts.out, result))
	}
	if failed == nil && len(found) == 0 {
		opts.note("no epochfs is mounted")
	}
	return failed
}

// usersByDir returns the users of the mounts, by directory.
func usersByDir(found []keeper.Mount) map[string][]control.User {
	all := make([]control.Mount, len(found))
	for i, m := range found {
		all[i].Dir = m.Dir
	}
	addUsers(all)
	users := map[string][]control.User{}
	for _, m := range all {
		users[m.Dir] = m.Users
	}
	return users
}

// inUse formats the users of a mount as the end of a line.
func inUse(users []control.User) string {
	if len(users) == 0 {
		return ""
	}
	return "; in use: " + printable(usersText(users))
}

// restartable returns the mounts that answer in the user's directory of
// sockets. Those that cannot change their process have neither worker nor
// keeper.
func restartable() ([]keeper.Mount, error) {
	sockets := control.Dir()
	answered, err := control.List(sockets)
	if err != nil {
		return nil, err
	}
	found, err := keeper.List(sockets)
	if err != nil {
		return nil, err
	}
	for _, s := range answered {
		at := slices.IndexFunc(found, func(m keeper.Mount) bool { return m.Dir == s.Dir || m.Worker == s.PID })
		switch {
		case s.Dir == "":
		case at >= 0:
			found[at].Dir, found[at].Device, found[at].Fixed = s.Dir, s.Device, s.NotKept
		default:
			found = append(found, keeper.Mount{Dir: s.Dir, Device: s.Device, Worker: s.PID, Systemd: s.KeeperPID, Fixed: fixed(s)})
		}
	}
	return slices.DeleteFunc(found, func(m keeper.Mount) bool { return m.Dir == "" }), nil
}

// fixed returns why a mount's process cannot be replaced by this user, or
// "".
func fixed(m control.Mount) string {
	switch {
	case m.KeeperPID != 0:
		return ""
	case m.NotKept != "":
		return m.NotKept
	}
	return "it is dead, another user's, or has no keeper"
}

// restartableOn returns the mount on a directory. One that only the kernel
// knows cannot change its process.
func restartableOn(name string) ([]keeper.Mount, error) {
	n, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	found, err := restartable()
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(m keeper.Mount) bool { return !n.is(m.Dir, m.Device) })
	if len(found) > 0 {
		return found, nil
	}
	if len(n.dirs) == 0 {
		return nil, fmt.Errorf("no epochfs is mounted on %s: %w", n.dir, errNotFound)
	}
	return []keeper.Mount{{Dir: n.dir, Fixed: fixed(control.Mount{})}}, nil
}

// restart lets this binary take over one mount.
func (opts *restartOptions) restart(m keeper.Mount) (keeper.Mount, error) {
	if m.Fixed != "" {
		return m, fmt.Errorf("its process cannot be replaced: %s", m.Fixed)
	}
	if m.Systemd != 0 {
		if err := m.Replace(fs.MemoryName); err != nil {
			return m, err
		}
		return startedOn(m)
	}
	if m.Keeper == 0 {
		var err error
		if m, err = opts.rekeep(m); err != nil {
			return m, err
		}
		if m, err = keptOn(m.Dir, m.Keeper); err != nil {
			return m, err
		}
	}
	return m.Restart()
}

// rekeep starts a new keeper, which logs where the worker does.
func (opts *restartOptions) rekeep(m keeper.Mount) (keeper.Mount, error) {
	log, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", m.Worker), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil { // such as a socket
		log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return m, err
	}
	defer log.Close()
	return m.Rekeep(keeper.Start{Sockets: control.Dir(), JSON: opts.logFormat == "json", Log: log})
}

// startedOn returns when systemd has started another process for a mount.
func startedOn(m keeper.Mount) (keeper.Mount, error) {
	for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all, err := control.List(control.Dir())
		if err != nil {
			return m, err
		}
		for _, s := range all {
			if s.Dir == m.Dir && s.PID != 0 && s.PID != m.Worker {
				m.Worker, m.Keeper = s.PID, s.KeeperPID
				return m, nil
			}
		}
	}
	return m, errors.New("systemd has not started another process for it")
}

// startTimeout bounds the start of a service.
const startTimeout = 20 * time.Second

// keptOn returns when a keeper has the mount that it was started for.
func keptOn(dir string, pid int) (keeper.Mount, error) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		all, err := keeper.List(control.Dir())
		if err != nil {
			return keeper.Mount{}, err
		}
		for _, m := range all {
			if m.Keeper == pid && m.Dir != "" {
				m.Dir = dir
				return m, nil
			}
		}
	}
	return keeper.Mount{Dir: dir, Keeper: pid}, errors.New("the new keeper does not answer")
}
