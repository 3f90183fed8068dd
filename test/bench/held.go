package main

import "golang.org/x/sys/unix"

// held is memory that is the machine's when a run begins, and free in it. A
// virtual machine may give what it does not use back to its host, and pays
// a multiple of a copy for each page that it takes again. Then runs differ
// by how much of that they had to do, and not by what is measured.
type held []byte

const (
	// holdMost is what the page caches of a run take.
	holdMost = 3 << 30
	// holdShare is the share of the machine's memory that is held at most.
	holdShare = 4
)

// large is for rows that fill gigabytes of page cache: taking it takes a
// second or two.
var large held

// hold sets addresses aside for the memory.
func hold(machineMiB int64) held {
	n := min(holdMost, machineMiB<<20/holdShare)
	mem, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil // the figures scatter more
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return mem
}

// take makes the memory the machine's; leave then has it free.
func (h held) take() (leave func()) {
	if len(h) == 0 {
		return func() {}
	}
	_ = unix.Madvise(h, unix.MADV_POPULATE_WRITE) // what it does not get is as it was
	return func() { _ = unix.Madvise(h, unix.MADV_DONTNEED) }
}

// holding is b for such rows.
func (b *bench) holding() *bench {
	h := *b
	h.held = large
	return &h
}
