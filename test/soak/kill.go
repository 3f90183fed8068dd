package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// errNothingToKill means that a mount had no process for too long.
var errNothingToKill = errors.New("no process serves the mount")

// process is a live child of a keeper.
type process struct {
	pid   int
	began uint64 // clock ticks since boot
}

// kill ends a process behind the mount as a crash would: mostly the one
// that serves, else its spare. It returns when that process has ended.
func (m *mount) kill(rng *rand.Rand) error {
	keeper := m.cmd.Process.Pid
	spare := rng.IntN(4) == 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		all, err := children(keeper)
		if err != nil {
			return err
		}
		if len(all) == 0 || spare && len(all) == 1 {
			continue
		}
		victim := all[0] // the oldest process serves
		if spare {
			victim = all[len(all)-1]
		}
		if err := unix.Kill(victim.pid, unix.SIGKILL); err != nil {
			continue // it has ended by itself
		}
		if err := victim.awaitEnd(); err != nil {
			return err
		}
		if spare {
			m.spares.Add(1)
		} else {
			m.kills.Add(1)
		}
		return nil
	}
	return fmt.Errorf("%s: %w", m.dir, errNothingToKill)
}

// restart has a build take the mount over.
func (m *mount) restart(bin string) error {
	if out, err := exec.Command(bin, "restart", m.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%s restart %s: %w: %s", bin, m.dir, err, out)
	}
	m.restarts++
	return nil
}

// children are those of all threads of a process, the oldest first,
// without those that are dead already.
func children(of int) ([]process, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", of))
	if err != nil || len(lists) == 0 {
		return nil, fmt.Errorf("process %d has no threads: %w", of, errors.Join(err, errNothingToKill))
	}
	var all []process
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range bytes.Fields(text) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			if began, live := stat(pid); live {
				all = append(all, process{pid, began})
			}
		}
	}
	slices.SortFunc(all, func(a, b process) int { return int(int64(a.began - b.began)) })
	return all, nil
}

// stat returns the start time of a process, and whether it is alive.
func stat(pid int) (began uint64, live bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// After the name, which may have blanks: the state is the third field,
	// the time of the start the twenty-second.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return 0, false
	}
	began, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return began, err == nil
}

func (p process) awaitEnd() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if began, live := stat(p.pid); !live || began != p.began {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not die", p.pid)
		}
	}
}
