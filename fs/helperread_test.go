package fs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func helpSha(args []string) error {
	for _, path := range args {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Printf("%x\n", sha256.Sum256(b))
	}
	return nil
}

func helpMmap(args []string) error {
	b, _, err := mapFile(args[0])
	if err != nil {
		return err
	}
	fmt.Printf("%x\n", sha256.Sum256(b))
	return nil
}

func mapFile(path string) ([]byte, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	return b, f, err
}

func helpODirect(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20+4096)
	buf = buf[4096-int(uintptr(unsafe.Pointer(&buf[0])))&4095:][:1<<20]
	h := sha256.New()
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			fmt.Printf("%x\n", h.Sum(nil))
			return nil
		}
		h.Write(buf[:n])
	}
}

// helpReadAt reads n bytes at an offset with pread and prints them.
func helpReadAt(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	off, _ := strconv.ParseInt(args[1], 10, 64)
	n, _ := strconv.Atoi(args[2])
	b := make([]byte, n)
	got, err := syscall.Pread(int(f.Fd()), b, off)
	if err != nil {
		return err
	}
	fmt.Printf("%x\n", b[:got])
	return nil
}

// helpSeek prints the data segments that SEEK_DATA and SEEK_HOLE tell of.
func helpSeek(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		if off, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		fmt.Println(data, off-data)
	}
}

func helpSeekAt(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	for _, a := range args[1:] {
		what, at, _ := strings.Cut(a, "@")
		off, _ := strconv.ParseInt(at, 10, 64)
		whence := map[string]int{"data": unix.SEEK_DATA, "hole": unix.SEEK_HOLE, "end": io.SeekEnd}[what]
		got, err := unix.Seek(int(f.Fd()), off, whence)
		if err != nil {
			fmt.Println(errnoName(err))
			continue
		}
		fmt.Println(got)
	}
	return nil
}

// helpHold keeps a file open until its standard input ends: as a plain
// descriptor, with O_DIRECT, or as a mapping whose descriptor is closed.
func helpHold(args []string) error {
	flags := unix.O_RDONLY
	if args[1] == "direct" {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(args[0], flags, 0)
	if err != nil {
		return err
	}
	if args[1] == "mmap" {
		b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		unix.Close(fd)
		defer unix.Munmap(b)
		_ = b[0]
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func helpMany(args []string) error {
	n, _ := strconv.Atoi(args[1])
	b := make([]byte, 100)
	for range n {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// helpFaults maps a file so that each page fault is one READ, and has one
// happen inside a system call, as those of a guest's memory happen inside
// KVM_RUN, while its thread gets signals.
func helpFaults(args []string) error {
	b, _, err := mapFile(args[0])
	if err != nil {
		return err
	}
	if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
		return err
	}
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		return err
	}
	if args[1] == "signals" {
		signalMyself()
	} else if err := defaultAction(unix.SIGINT); err != nil {
		return err
	}
	fmt.Println("ready")
	at := len(b) / 2
	if _, err := unix.Write(pipe[1], b[at:at+1]); err != nil {
		return err
	}
	fmt.Println(b[at])
	return nil
}

// helpTouch maps a file privately, as a hypervisor maps a guest's memory, with
// MADV_HUGEPAGE, and prints the first bytes of pages, in the given order.
func helpTouch(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
		return err
	}
	for _, arg := range args[1:] {
		page, _ := strconv.Atoi(arg)
		fmt.Printf("%x\n", b[page*4096:page*4096+8])
	}
	return nil
}
