package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// behave does what the first frame says. What it returns is an error of the
// system call that was tried, as a number.
func behave(c *Conn) error {
	for {
		_, what, err := c.Read()
		if err != nil {
			return err
		}
		name, arg, _ := strings.Cut(string(what), " ")
		if err := c.Write(1, fmt.Append(nil, behaviours[name](c, arg))); err != nil {
			return err
		}
	}
}

var behaviours = map[string]func(c *Conn, arg string) int{
	"echo": func(*Conn, string) int { return 0 },
	"open": func(_ *Conn, arg string) int {
		_, err := unix.Open(arg, unix.O_RDONLY, 0)
		return number(err)
	},
	"create": func(_ *Conn, arg string) int {
		_, err := unix.Open(arg, unix.O_CREAT|unix.O_WRONLY, 0o600)
		return number(err)
	},
	"socket": func(*Conn, string) int {
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		return number(err)
	},
	"dup": func(*Conn, string) int {
		_, err := unix.Dup(0)
		return number(err)
	},
	"fork": func(*Conn, string) int {
		_, _, e := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		return int(e)
	},
	"exec":        func(*Conn, string) int { return number(unix.Exec("/bin/true", []string{"true"}, nil)) },
	"kill":        func(_ *Conn, pid string) int { return number(unix.Kill(pidOf(pid), 0)) },
	"kill-thread": func(_ *Conn, pid string) int { return number(unix.Tgkill(pidOf(pid), pidOf(pid), 0)) },
	"share": func(*Conn, string) int { // memory that no limit counts
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
		return number(err)
	},
	"grow": func(*Conn, string) int { // the same, as a stack
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_GROWSDOWN)
		return number(err)
	},
	"poison": func(*Conn, string) int { // root could take the machine's memory out of use
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return number(err)
		}
		const softOffline = 101
		_, _, e := unix.RawSyscall(unix.SYS_MADVISE, uintptr(unsafe.Pointer(&b[0])), 0, softOffline)
		return int(e)
	},
	"code": func(*Conn, string) int {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return number(err)
	},
	"executable": func(*Conn, string) int {
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return number(err)
		}
		return number(unix.Mprotect(page, unix.PROT_EXEC))
	},
	"read": func(_ *Conn, arg string) int {
		var fd int
		_, _ = fmt.Sscan(arg, &fd)
		_, err := unix.Read(fd, make([]byte, 1))
		return number(err)
	},
	"env": func(*Conn, string) int { return len(os.Environ()) },
	"threads": func(*Conn, string) int { // the runtime still starts some, and collects garbage
		done := make(chan int)
		for range 64 {
			go func() {
				sum := 0
				for i := range 50 {
					sum += len(make([]byte, i<<10)) & 1
				}
				done <- sum
			}()
		}
		for range 64 {
			<-done
		}
		return 0
	},
	"memory": func(*Conn, string) int {
		var all [][]byte
		for {
			b := make([]byte, 16<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
			_ = all
		}
	},
	"recurse": func(*Conn, string) int { return endless(0) },
	"panic":   func(*Conn, string) int { panic("a secret of the guest") },
	"fault": func(*Conn, string) int {
		var nowhere *int
		return *nowhere
	},
	"exit": func(*Conn, string) int { os.Exit(0); return 0 },
	"spin": func(*Conn, string) int {
		n := 0
		for n >= 0 {
			n ^= 1
		}
		return n
	},
	"rest": func(*Conn, string) int {
		time.Sleep(time.Hour)
		return 0
	},
	"huge": func(c *Conn, _ string) int {
		var h [headerSize]byte
		binary.LittleEndian.PutUint32(h[1:], 1<<31)
		_, _ = c.w.Write(h[:])
		select {}
	},
	"flood": func(*Conn, string) int {
		line := bytes.Repeat([]byte("x"), 64<<10)
		for range 1000 {
			_, _ = unix.Write(2, line)
		}
		return 0
	},
	"drip": func(c *Conn, _ string) int { // a frame that never ends
		for {
			_, _ = c.w.Write([]byte{1})
			end := time.Now().Add(time.Millisecond)
			for time.Now().Before(end) {
			}
		}
	},
}

//go:noinline
func endless(n int) int {
	var pad [512]int
	if pad[n%512] = n; n == 1<<40 {
		return 0
	}
	return endless(n+1) + pad[(n+1)%512]
}

func pidOf(text string) int {
	pid, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return pid
}

func number(err error) int {
	var e syscall.Errno
	if errors.As(err, &e) {
		return int(e)
	}
	return 0
}
