package main

import (
	"cmp"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// A process that stands lean collects nothing, and from its first collection on
// as a process that serves. The environment decides where it says anything.
func TestStandLean(t *testing.T) {
	const child = "EPOCHFS_TEST_LEAN"
	if os.Getenv(child) == "" { // the settings are the whole process's
		for name, env := range map[string][]string{"": nil, "GOGC": {"GOGC=77"}, "GOMEMLIMIT": {"GOMEMLIMIT=1GiB"}} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestStandLean$")
			cmd.Env = append(os.Environ(), child+"="+cmp.Or(name, "none"))
			cmd.Env = append(cmd.Env, env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("with %q: %v: %s", env, err, out)
			}
		}
		return
	}
	settings := func() (percent int, limit int64) { // and changes nothing meanwhile
		read := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
		metrics.Read(read)
		return int(read[0].Value.Uint64()), int64(read[1].Value.Uint64())
	}
	expect := func(wantPercent int, wantLimit int64) {
		t.Helper()
		var percent int
		var limit int64
		for end := time.Now().Add(patience); time.Now().Before(end); runtime.Gosched() {
			if percent, limit = settings(); percent == wantPercent && limit == wantLimit {
				return
			}
		}
		t.Fatalf("GOGC %d and a limit of %d, not %d and %d", percent, limit, wantPercent, wantLimit)
	}
	standLean(os.Getenv)
	switch os.Getenv(child) {
	case "GOGC":
		expect(77, serveMemory)
	case "GOMEMLIMIT":
		expect(serveGC, 1<<30)
	default:
		expect(-1, standMemory)
		runtime.GC()
		expect(serveGC, serveMemory)
	}
}
