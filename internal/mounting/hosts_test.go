package mounting

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/registry/hosts"
)

// A flag's directory of hosts.toml goes before the environment's, and both
// before the system's.
func TestHostsDirs(t *testing.T) {
	if want := []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}; !slices.Equal(hosts.Dirs(), want) {
		t.Errorf("the system's are %q", hosts.Dirs())
	}
	flag, env := t.TempDir(), t.TempDir()
	cfg := Config{HostsDirs: []string{flag}}
	cfg.FromEnvironment(func(name string) string { return map[string]string{HostsDirEnv: env}[name] })
	ref, err := registry.ParseReference("registry.example.com/team/vm", registry.ReferenceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{env, flag} { // each goes before what was there
		at := filepath.Join(dir, ref.Host)
		mirror := filepath.Base(dir) + ".example.com"
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "hosts.toml"), []byte("[host.\"https://"+mirror+"\"]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := cfg.Hosts(ref)
		if err != nil || len(conf.Mirrors) != 1 || conf.Mirrors[0].Host != mirror {
			t.Errorf("%+v, %v, want %s", conf, err, mirror)
		}
	}
}
