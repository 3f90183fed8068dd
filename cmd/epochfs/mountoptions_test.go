package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// options are mount's flags after these options were read.
func options(t *testing.T, args ...string) (*mountOptions, *optionList, error) {
	t.Helper()
	root, _ := newRootCmd()
	cmd, _, err := root.Find([]string{"mount"})
	must(t, err)
	err = cmd.ParseFlags(args)
	list, ok := cmd.Flags().Lookup("options").Value.(*optionList)
	if !ok {
		t.Fatal("-o is not a list of options")
	}
	return &mountOptions{flags: cmd.Flags()}, list, err
}

func value(f *pflag.FlagSet, name string) string { return f.Lookup(name).Value.String() }

func TestOptionList(t *testing.T) {
	opts, _, err := options(t, "-o", "ro,allow_other,uid=7", "-o", "cache-dir=/a=b,x-anything=1,X-mount.mkdir,comment=x y,user=joe,uhelper=udisks2,helper=x")
	must(t, err)
	if f := opts.flags; value(f, "allow-other") != "true" || value(f, "uid") != "7" || value(f, "cache-dir") != "/a=b" || f.Changed("gid") {
		t.Errorf("%v", f.Args())
	}
	for _, bad := range []string{"frob", "uid", "uid=x", "options=ro", "remount", "rw,remount", "ro=1", "comment", "sync=1", "dev=x"} {
		if _, _, err := options(t, "-o", bad); err == nil {
			t.Errorf("option %q was taken", bad)
		}
	}
	if _, _, err := options(t, "--sloppy", "-o", "frob,ro=1"); err != nil {
		t.Errorf("sloppy: %v", err)
	}
}

// What mount(8) itself hands to its helpers, as they are called for each
// kind of user and for options of all kinds.
func TestOptionsOfMount8(t *testing.T) {
	for text, want := range map[string]struct{ powerless, noexec string }{
		"rw": {"", "false"},
		"rw,sync,dirsync,lazytime,nolazytime,mand,nomand,iversion": {"", "false"},
		"rw,noexec,nosuid,nodev,user,nofail,_netdev":               {"", "true"},
		"rw,user=joe,exec,suid,dev":                                {"suid,dev", "false"},
		"rw,noexec,exec":                                           {"", "false"},
		"exec,noexec":                                              {"", "true"},
		"dev,suid":                                                 {"dev,suid", "false"},
		"noatime,strictatime,nodiratime,relatime,nosymfollow":      {"", "false"},
		"defaults,owner,group,users,auto,noauto,silent,loud,async": {"", "false"},
	} {
		opts, list, err := options(t, "-o", text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := strings.Join(list.powerless, ","); got != want.powerless || value(opts.flags, "noexec") != want.noexec {
			t.Errorf("%s: %q without effect, noexec %s", text, got, value(opts.flags, "noexec"))
		}
	}
}

// SELinux's options go to the kernel where SELinux is enabled.
func TestSELinuxOptions(t *testing.T) {
	opts, _, err := options(t, "-o", `ro,context="system_u:object_r:x_t:s0:c1,c2",rootcontext=y,uid=7`)
	must(t, err)
	if value(opts.flags, "uid") != "7" {
		t.Error("the option behind is lost")
	}
	defer func(dir string) { selinuxDir = dir }(selinuxDir)
	selinuxDir = t.TempDir()
	if got, ignored := opts.contexts(); len(got) > 0 || !ignored {
		t.Errorf("without SELinux: %q, %v", got, ignored)
	}
	must(t, os.WriteFile(filepath.Join(selinuxDir, "enforce"), []byte("1"), 0o600))
	want := []string{`context="system_u:object_r:x_t:s0:c1,c2"`, "rootcontext=y"}
	if got, ignored := opts.contexts(); !slices.Equal(got, want) || ignored {
		t.Errorf("with SELinux: %q, %v", got, ignored)
	}
	none, _, err := options(t, "-o", "ro")
	must(t, err)
	if got, ignored := none.contexts(); len(got) > 0 || ignored {
		t.Errorf("none were given: %q, %v", got, ignored)
	}
}
