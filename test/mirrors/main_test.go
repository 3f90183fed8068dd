// Package mirrors tries the site caches of docs/mirrors, as they are
// configured there, with mounts of the program: what they ask the registry
// for, how long readers wait, and that no byte is wrong. make site runs it in
// full.
package mirrors

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the binary under test.
var program string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "reader" {
		os.Exit(reader(os.Args[2:]))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		fmt.Println("runs site caches and mounts: left out of make check, run by make test")
		return 0
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		fmt.Println("mounts need /dev/fuse and root here: nothing is tested")
		return 0
	}
	dir, err := os.MkdirTemp("", "epochfs-mirrors-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "epochfs")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "../../cmd/epochfs").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s", err, out)
		return 1
	}
	return m.Run()
}
