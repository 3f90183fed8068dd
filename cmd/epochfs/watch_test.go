package main

import (
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// watches are inotify descriptors by the file that they watch.
var watches sync.Map

// watch FILE: from now on it is noted who opens or reads it.
func watch(ts *testscript.TestScript, _ bool, args []string) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	ts.Check(err)
	name := ts.MkAbs(args[0])
	_, err = unix.InotifyAddWatch(fd, name, unix.IN_OPEN|unix.IN_ACCESS)
	ts.Check(err)
	watches.Store(name, fd)
	ts.Defer(func() { _ = unix.Close(fd) })
}

// untouched FILE: nobody has opened it since it is watched.
func untouched(ts *testscript.TestScript, neg bool, args []string) {
	fd, ok := watches.Load(ts.MkAbs(args[0]))
	if !ok {
		ts.Fatalf("%s is not watched", args[0])
	}
	var events [4096]byte
	n, err := unix.Read(fd.(int), events[:])
	if touched := err == nil && n > 0; touched != neg {
		ts.Fatalf("%s: opened is %v", args[0], touched)
	}
}
