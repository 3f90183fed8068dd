package packaging

import (
	"os"
	"strings"
	"testing"
)

// What is installed for autofs bounds a look, lets root alone read, and
// keeps mounts when the service stops.
func TestAutofsAsInstalled(t *testing.T) {
	raw, err := os.ReadFile("autofs/epochfs.autofs")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) != 5 || fields[0] != "/epochfs" || fields[1] != "program:/usr/lib/epochfs/auto.epochfs" || fields[4] != "mount_timeout=30s" {
		t.Errorf("the line is %q", fields)
	}
	unit, err := os.ReadFile("autofs/service.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nKillMode=process\n") {
		t.Error("stopping autofs ends the processes of mounts")
	}
	if names := namespaced(string(unit)); len(names) > 0 {
		t.Errorf("its mounts would be seen by nobody else: %v", names)
	}
}
