package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// machine is a running QEMU with the guest.
type machine struct {
	cmd   *exec.Cmd
	dir   string // for its files; removed with it
	qmp   *monitor
	turns chan time.Time // when the guest was done with each turn; closed at the end
	words strings.Builder
}

// start starts QEMU on a memory file and a drive, in a new directory. A memory
// that is not shared is only read.
func (g *Guest) start(ctx context.Context, memory string, shared bool, drive string, more ...string) (m *machine, err error) {
	m = &machine{turns: make(chan time.Time, 1000)}
	if m.dir, err = os.MkdirTemp("", "vm-"); err != nil {
		return nil, err
	}
	share := map[bool]string{true: "on", false: "off"}[shared]
	socket := filepath.Join(m.dir, "qmp")
	args := []string{
		"-machine", "q35,memory-backend=m", "-m", "1G", "-smp", "1", "-accel", "tcg",
		"-object", "memory-backend-file,id=m,size=1G,mem-path=" + memory + ",share=" + share,
		"-display", "none", "-no-reboot", "-net", "none", "-monitor", "none", "-serial", "stdio",
		"-kernel", filepath.Join(g.dir, "vmlinuz"), "-initrd", filepath.Join(g.dir, "initrd"),
		"-append", "console=ttyS0 root=/dev/vda rw quiet panic=1",
		"-drive", drive + ",if=virtio,cache=unsafe",
		"-device", "virtio-balloon,free-page-reporting=on", "-qmp", "unix:" + socket + ",server,nowait",
	}
	m.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", append(args, more...)...)
	if !shared {
		m.cmd.Env = g.env(memory)
	}
	m.cmd.Stderr = &m.words
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	serial, err := m.cmd.StdoutPipe()
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(m.dir))
	}
	go func() {
		defer close(m.turns)
		for lines := bufio.NewScanner(serial); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "LOOP ") {
				m.turns <- time.Now()
			}
		}
	}()
	dialing, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if m.qmp, err = dial(dialing, socket); err != nil {
		return nil, m.failed(err)
	}
	if err := m.qmp.ignoreShared(); err != nil {
		return nil, m.failed(err)
	}
	return m, nil
}

// env is the environment of programs that open a snapshot's files.
func (g *Guest) env(file string) []string {
	return append(os.Environ(), "LD_PRELOAD="+g.library(), "READ_ONLY="+filepath.Dir(file)+"/")
}

// patience is how long a guest may take for a turn, booting included.
const patience = 5 * time.Minute

// turn waits until the guest is done with a turn of its work.
func (m *machine) turn(ctx context.Context) (time.Time, error) {
	select {
	case t, ok := <-m.turns:
		if !ok {
			return t, errors.New("the guest ended")
		}
		return t, nil
	case <-time.After(patience):
		return time.Time{}, fmt.Errorf("the guest did nothing for %v", patience)
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
}

// end kills QEMU. Nothing of what it has is of use any more.
func (m *machine) end() error {
	if m.qmp != nil {
		m.qmp.conn.Close()
	}
	_ = m.cmd.Process.Kill()
	for range m.turns { // until the serial line is read to its end
	}
	_ = m.cmd.Wait() // killed, as asked
	return os.RemoveAll(m.dir)
}

// failed ends a machine, and adds what QEMU said to the error.
func (m *machine) failed(err error) error {
	if closing := m.end(); closing != nil {
		err = errors.Join(err, closing)
	}
	if words := strings.TrimSpace(m.words.String()); words != "" {
		err = fmt.Errorf("%w: qemu: %s", err, words)
	}
	return err
}
