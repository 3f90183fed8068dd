package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

// save runs the guest on a copy of its image and saves it again and again.
func (g *Guest) save(ctx context.Context) error {
	work, err := os.MkdirTemp(g.dir, "saving-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	disk, memory := filepath.Join(work, "disk"), filepath.Join(work, "memory")
	if err := copySparse(ctx, filepath.Join(g.dir, "disk.raw"), disk); err != nil {
		return err
	}
	m, err := g.start(ctx, memory, true, "format=raw,file="+disk)
	if err != nil {
		return err
	}
	done := 0
	for _, s := range Snapshots {
		for ; done < s.Turns; done++ {
			if _, err := m.turn(ctx); err != nil {
				return m.failed(err)
			}
		}
		if err := m.saveTo(ctx, disk, memory, filepath.Join(work, s.Name)); err != nil {
			return m.failed(err)
		}
		if err := os.RemoveAll(g.Dir(s.Name)); err != nil {
			return m.failed(err)
		}
		if err := os.Rename(filepath.Join(work, s.Name), g.Dir(s.Name)); err != nil {
			return m.failed(err)
		}
	}
	return m.end()
}

// saveTo stops the guest, writes its state to a new directory, and continues
// it.
func (m *machine) saveTo(ctx context.Context, disk, memory, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := m.qmp.call("stop", nil, nil); err != nil {
		return err
	}
	to := map[string]any{"uri": "exec:cat >'" + filepath.Join(dir, StateFile) + "'"}
	if err := m.qmp.call("migrate", to, nil); err != nil {
		return err
	}
	if err := m.qmp.status(ctx, "query-migrate", func(s string) bool { return s == "completed" }); err != nil {
		return err
	}
	err := errors.Join(copySparse(ctx, memory, filepath.Join(dir, MemoryFile)), copySparse(ctx, disk, filepath.Join(dir, DiskFile)))
	if err != nil {
		return err
	}
	return m.qmp.call("cont", nil, nil)
}

// copySparse copies a file and makes holes of zeros.
func copySparse(ctx context.Context, from, to string) error {
	return output(exec.CommandContext(ctx, "cp", "--sparse=always", from, to))
}
