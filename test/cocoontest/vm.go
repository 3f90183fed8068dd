package cocoontest

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// runVM is a VM as far as its memory goes: the file is mapped privately, asks for
// huge pages, and is closed. It runs until a signal ends it; then the digest of its memory
// is written down.
func runVM(dir, memory, mode string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGINT, syscall.SIGTERM)
	mem, err := mapMemory(memory, mode)
	if err != nil {
		return err
	}
	page := os.Getpagesize()
	if mode == "ondemand" { // as a userfaultfd handler does in the background
		sum := byte(0)
		for at := 0; at < len(mem); at += page {
			sum += mem[at]
		}
		runtime.KeepAlive(sum)
	}
	// What a guest writes stays in the mapping.
	first := mem[0]
	mem[0]++
	if err := os.WriteFile(filepath.Join(dir, ReadyFile), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	<-asked
	mem[0] = first
	sum := sha256.Sum256(mem)
	return os.WriteFile(filepath.Join(dir, SumFile), []byte(hex.EncodeToString(sum[:])+"\n"), 0o644)
}

// mapMemory returns the guest's memory: the file, mapped, or a copy of it.
func mapMemory(name, mode string) ([]byte, error) {
	if mode == "copy" {
		return os.ReadFile(name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return mem, os.NewSyscallError("madvise", unix.Madvise(mem, unix.MADV_HUGEPAGE))
}
