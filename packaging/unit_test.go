// Package packaging has what is installed beside the binary.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const unitFile = "epochfs@.service"

// separating are the directives of systemd.exec(5) that give a service a mount
// namespace of its own, by themselves or in some version by what they imply,
// or a user namespace, from which the host's cannot be mounted in.
var separating = []string{
	"BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories", "ExtensionImages",
	"IPCNamespacePath", "InaccessiblePaths", "LogNamespace", "MountAPIVFS", "MountFlags", "MountImages",
	"NetworkNamespacePath", "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork",
	"PrivatePIDs", "PrivateTmp", "PrivateUsers", "ProcSubset", "ProtectControlGroups", "ProtectHome",
	"ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
	"ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootEphemeral", "RootImage",
	"TemporaryFileSystem",
	// Older names.
	"InaccessibleDirectories", "ReadOnlyDirectories", "ReadWriteDirectories",
}

// directives are the names that a unit sets, in lines of their own.
func directives(unit string) (names []string) {
	for line := range strings.Lines(unit) {
		name, _, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

// namespaced are the directives of a unit because of which nobody else
// would see its mount.
func namespaced(unit string) (names []string) {
	for _, name := range directives(unit) {
		if slices.Contains(separating, name) {
			names = append(names, name)
		}
	}
	return names
}

func readUnit(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestUnitHasNoMountNamespace(t *testing.T) {
	unit := readUnit(t)
	if names := namespaced(unit); len(names) > 0 {
		t.Errorf("%s: its mount would be seen by nobody else: %v", unitFile, names)
	}
	if n := len(directives(unit)); n < 20 {
		t.Errorf("%s: only %d directives were read", unitFile, n)
	}
	for _, name := range separating {
		for _, line := range []string{name + "=yes", " " + name + " = yes"} {
			if got := namespaced(strings.Replace(unit, "UMask=", line+"\nUMask=", 1)); !slices.Equal(got, []string{name}) {
				t.Errorf("with %q the check finds %v", line, got)
			}
		}
	}
}

// TestUnitIsUnderstood has systemd read the unit, with a binary that is
// there.
func TestUnitIsUnderstood(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	const binary = "/usr/bin/epochfs"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := readUnit(t)
	if !strings.Contains(unit, "\nExecStart="+binary+" ") {
		t.Fatalf("%s does not start %s", unitFile, binary)
	}
	unit = strings.ReplaceAll(unit, binary, self)
	if out, err := verify(t, unit); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, _ := verify(t, strings.ReplaceAll(unit, "SendSIGKILL=", "SendSIGKIL=")); !strings.Contains(out, "'SendSIGKIL'") {
		t.Errorf("with a wrong directive systemd-analyze verify says %q", out)
	}
}

func verify(t *testing.T, unit string) (string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "epochfs@web.service")
	if err := os.WriteFile(name, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", name).CombinedOutput()
	return string(out), err
}
