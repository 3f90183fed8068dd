package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

// asUsers returns users in status's form.
func asUsers(users []mounts.User) (all []control.User) {
	for _, u := range users {
		all = append(all, control.User{PID: u.PID, Command: u.Command, Use: u.What})
	}
	return all
}

// mostUsers bounds the users of a busy mount in one line.
const mostUsers = 5

func newUmountCmd() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Unmount a snapshot, even if its process died",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return runUmount(args[0], lazy) },
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "detach it now; it ends when it is no longer in use")
	return cmd
}

func runUmount(name string, lazy bool) error {
	abortAbandoned(name)
	if fs.Stale(name) {
		return fs.CleanStale(name)
	}
	dir, err := fs.Canonical(name)
	if err != nil {
		return notThere(name, err)
	}
	m, err := mounts.Find(dir)
	switch {
	case err != nil:
		return err
	case m == nil:
		if _, err := os.Lstat(dir); err != nil {
			return notThere(name, err)
		}
		return fmt.Errorf("nothing is mounted on %s: %w", dir, errNotFound)
	case !m.Ours():
		return fmt.Errorf("the mount on %s is %s, not epochfs: %w", dir, m.Type, errNotFound)
	}
	return explainBusy(dir, fs.Unmount(dir, lazy))
}

// abortAbandoned ends the mount on a directory if all of its processes were
// killed and one of them hangs in the kernel: to unmount it would hang as well.
// Root ends every such mount, also one that is no longer on a directory.
func abortAbandoned(name string) {
	if os.Geteuid() == 0 {
		keeper.AbortAbandoned("")
		return
	}
	dir, err := fs.Canonical(name)
	if err != nil {
		return
	}
	if m, err := mounts.Find(dir); err == nil && m != nil && m.Ours() {
		keeper.AbortAbandoned(strconv.Itoa(m.Minor))
	}
}

// explainBusy adds the users of a busy mount to an unmount error.
func explainBusy(dir string, err error) error {
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	m, findErr := mounts.Find(dir)
	if findErr != nil || m == nil {
		return err
	}
	users := m.Users()
	if len(users) == 0 {
		return fmt.Errorf("%s is busy, used by a process that cannot be seen from here; --lazy detaches it", dir)
	}
	return fmt.Errorf("%s is busy: %s; --lazy detaches it", dir, usersText(asUsers(users)))
}
