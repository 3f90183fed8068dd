package main

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where the figures come from.
type machine struct {
	CPU        string            `json:"cpu"`
	Processors int               `json:"processors"`
	MemoryMiB  int64             `json:"memory_mib"`
	Load       float64           `json:"load"` // before the first row, of what else runs there
	Kernel     string            `json:"kernel"`
	FileSystem string            `json:"file_system"` // type of the cache's, as statfs numbers it
	Go         string            `json:"go"`
	Tools      map[string]string `json:"tools"` // what the references are
}

func thisMachine(dir string) machine {
	m := machine{Processors: runtime.NumCPU(), Load: load(), Go: runtime.Version(), Tools: map[string]string{}}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = field(string(text), "model name")
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		kib, _, _ := strings.Cut(field(string(text), "MemTotal"), " ")
		n, _ := strconv.ParseInt(kib, 10, 64)
		m.MemoryMiB = n >> 10
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		m.FileSystem = "0x" + strconv.FormatInt(int64(st.Type), 16)
	}
	for name, args := range map[string][]string{"curl": {"--version"}, "rclone": {"version"}, "docker-registry": {"--version"}} {
		if out, err := exec.Command(name, args...).Output(); err == nil {
			m.Tools[name], _, _ = strings.Cut(string(out), "\n")
		}
	}
	return m
}

// field is the value of the first "name : value".
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// load is how many processes wanted a processor in the last minute.
func load() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	f, _ := strconv.ParseFloat(first, 64)
	return f
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
