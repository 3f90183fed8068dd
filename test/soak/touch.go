package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// touchEnv makes a process a toucher.
const touchEnv = "EPOCHFS_SOAK_TOUCH"

// toucher is a process that reads through mappings. Page faults keep a
// processor of Go's while they wait, so they must not be in the process
// of the registry for which they wait.
type toucher struct {
	cmd *exec.Cmd
	to  io.WriteCloser
	out *bufio.Reader
}

func startToucher() (*toucher, error) {
	t := &toucher{cmd: exec.Command("/proc/self/exe")}
	t.cmd.Env = append(os.Environ(), touchEnv+"=1")
	t.cmd.Stderr = os.Stderr
	to, err := t.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.to, t.out = to, bufio.NewReader(out)
	return t, t.cmd.Start()
}

// read reads up to n bytes of a file, to its end at most.
func (t *toucher) read(name string, off, n int) ([]byte, error) {
	if _, err := fmt.Fprintf(t.to, "%q %d %d\n", name, off, n); err != nil {
		return nil, err
	}
	line, err := t.out.ReadString('\n')
	if err != nil {
		return nil, err
	}
	var text string
	if _, err := fmt.Sscanf(line, "%d %q\n", &n, &text); err != nil {
		return nil, err
	}
	if text != "" {
		return nil, errors.New(text)
	}
	got := make([]byte, n)
	_, err = io.ReadFull(t.out, got)
	return got, err
}

func (t *toucher) close() error {
	return errors.Join(t.to.Close(), t.cmd.Wait())
}

// touch is the process: it answers until its stdin ends.
func touch() error {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var name string
		var off, n int
		if _, err := fmt.Fscanf(in, "%q %d %d\n", &name, &off, &n); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		got, err := mapped(name, off, n)
		text := ""
		if err != nil {
			got, text = nil, err.Error()
		}
		fmt.Fprintf(out, "%d %q\n", len(got), text)
		_, _ = out.Write(got)
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// mapped touches pages, as a hypervisor does that has mapped its guest's
// memory. Where the page does not come, that is SIGBUS.
func mapped(name string, off, n int) (got []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	buf, err := unix.Mmap(int(f.Fd()), int64(off), min(n, int(st.Size())-off), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(buf)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("SIGBUS: %v", r)
		}
	}()
	got = make([]byte, len(buf))
	copy(got, buf)
	return got, nil
}
