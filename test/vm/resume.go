package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Resumed is a guest that runs again from a snapshot.
type Resumed struct {
	m *machine

	Started time.Time // when QEMU was started
	Began   time.Time // when QEMU, with the memory mapped, was told to go on from the snapshot
}

// Resume starts the guest from a snapshot's directory, a mount for example,
// which is only read. A guest that is given wrong bytes crashes or hangs.
func (g *Guest) Resume(ctx context.Context, snapshot string) (r *Resumed, err error) {
	snapshot, err = filepath.Abs(snapshot)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "vm-overlay-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work) // QEMU has it open
	r = &Resumed{Started: time.Now()}
	memory, disk, overlay := filepath.Join(snapshot, MemoryFile), filepath.Join(snapshot, DiskFile), filepath.Join(work, "overlay")
	create := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, overlay)
	create.Env = g.env(disk)
	if err := output(create); err != nil {
		return nil, err
	}
	if r.m, err = g.start(ctx, memory, false, "format=qcow2,file="+overlay, "-incoming", "defer"); err != nil {
		return nil, err
	}
	r.Began = time.Now()
	if err := r.goOn(ctx, filepath.Join(snapshot, StateFile)); err != nil {
		return nil, r.m.failed(err)
	}
	return r, nil
}

// goOn loads the state of the processor and the devices, and lets it run.
func (r *Resumed) goOn(ctx context.Context, state string) error {
	if err := r.m.qmp.call("migrate-incoming", map[string]any{"uri": "exec:cat '" + state + "'"}, nil); err != nil {
		return err
	}
	if err := r.m.qmp.status(ctx, "query-status", func(s string) bool { return s != "inmigrate" }); err != nil {
		return err
	}
	return r.m.qmp.call("cont", nil, nil)
}

// Turn waits until the guest is done with a turn of its work, and returns when
// that was.
func (r *Resumed) Turn(ctx context.Context) (time.Time, error) { return r.m.turn(ctx) }

// Close ends the guest.
func (r *Resumed) Close() error { return r.m.end() }
