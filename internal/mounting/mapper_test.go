package mounting

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// mapperEnv names the file that a process of this program maps, instead of
// running tests: who uses a mount must not be the process that serves it.
const mapperEnv = "EPOCHFS_TEST_MAP"

// mapper maps a file privately and has it open. It answers lines: "map" and
// "read" are asked for n bytes from off on, and "write" writes one to the
// mapping.
func mapper(name string) int {
	f, err := os.Open(name)
	if err != nil {
		return 1
	}
	info, err := f.Stat()
	if err != nil {
		return 1
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return 1
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var how string
		var off, n int
		if _, err := fmt.Sscan(in.Text(), &how, &off, &n); err != nil {
			return 1
		}
		p := make([]byte, n)
		switch how {
		case "map":
			copy(p, mem[off:])
		case "read":
			if _, err := f.ReadAt(p, int64(off)); err != nil {
				return 1
			}
		case "write":
			mem[off] = byte(n)
			p = p[:0]
		}
		if _, err := os.Stdout.Write(p); err != nil {
			return 1
		}
	}
	return 0
}

// mapped is such a process.
type mapped struct {
	t   *testing.T
	in  io.WriteCloser
	out io.Reader
	end func() // ends the process
}

func startMapper(t *testing.T, name string) *mapped {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mapperEnv+"="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &mapped{t: t, in: in, out: out}
	m.end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(m.end)
	return m
}

// ask returns n bytes from off on, by the mapping or by pread.
func (m *mapped) ask(how string, off, n int) []byte {
	m.t.Helper()
	fmt.Fprintln(m.in, how, off, n)
	p := make([]byte, n)
	if _, err := io.ReadFull(m.out, p); err != nil {
		m.t.Fatal(err)
	}
	return p
}

// write writes a byte to the mapping.
func (m *mapped) write(off int, b byte) { fmt.Fprintln(m.in, "write", off, b) }
