package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// What the kernel says and hears of autofs, version 5: include/uapi/linux/auto_fs.h.
const (
	autofsReady  = 0x9360
	autofsFail   = 0x9361
	autofsPacket = 304 // bytes; the token is at 8
)

// automounted DIR REF: DIR becomes one that is mounted when somebody looks
// into it, as systemd does for x-systemd.automount; somebody does.
func automounted(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	r, w, err := os.Pipe()
	ts.Check(err)
	defer r.Close()
	err = unix.Mount("test", dir, "autofs", 0, fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", w.Fd(), unix.Getpgrp()))
	ts.Check(w.Close())
	ts.Check(err)
	root, err := os.Open(dir)
	ts.Check(err)
	reader := exec.Command("cat", filepath.Join(dir, "config.json"))
	reader.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(reader.Start())
	packet := make([]byte, autofsPacket)
	_, err = r.Read(packet)
	ts.Check(err)
	token := int(binary.NativeEndian.Uint32(packet[8:]))
	answer := func(kind uint) error { return unix.IoctlSetInt(int(root.Fd()), kind, token) }
	tooLong := time.AfterFunc(patience, func() { _ = answer(autofsFail) })
	// In our group, which alone is let through.
	err = ts.Exec("mount.fuse.epochfs", args[1], dir)
	if !tooLong.Stop() {
		ts.Fatalf("who mounts and who waits for it wait for each other")
	}
	if err != nil {
		_ = answer(autofsFail)
	}
	ts.Check(err)
	ts.Check(answer(autofsReady))
	ts.Check(root.Close())
	ts.Check(reader.Wait())
}

// foreign PID...: the processes are of other groups than the test's.
func foreign(ts *testscript.TestScript, _ bool, args []string) {
	for _, arg := range args {
		pid, err := strconv.Atoi(arg)
		ts.Check(err)
		group, err := unix.Getpgid(pid)
		ts.Check(err)
		if group == unix.Getpgrp() {
			ts.Fatalf("process %d is in the group of who mounted", pid)
		}
	}
}
