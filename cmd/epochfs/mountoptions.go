package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// helperPrefix begins the names under which mount(8) calls its helpers.
const helperPrefix = "mount."

// helperArgs converts a mount helper's arguments, REF DIR [-sfnv] [-N ns]
// [-o options] [-t type], to those of the mount command.
func helperArgs(args []string) ([]string, error) {
	var names, flags, lists []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if len(arg) < 2 || arg[0] != '-' {
			names = append(names, arg)
			continue
		}
		for i := 1; i < len(arg); i++ {
			value := arg[i+1:]
			if strings.IndexByte("otN", arg[i]) >= 0 {
				if value == "" {
					if len(args) == 0 {
						return nil, usagef("-%c needs a value", arg[i])
					}
					value, args = args[0], args[1:]
				}
				if arg[i] == 'o' {
					lists = append(lists, "--options="+value)
				}
				break
			}
			switch arg[i] {
			case 's':
				flags = append(flags, "--sloppy")
			case 'f':
				flags = append(flags, "--fake")
			case 'v':
				flags = append(flags, "--verbose")
			case 'n': // epochfs writes no /etc/mtab
			default:
				return nil, usagef("a mount helper has no option -%c", arg[i])
			}
		}
	}
	// --sloppy must precede the options.
	return slices.Concat([]string{"mount"}, flags, lists, []string{"--"}, names), nil
}

// optionList is the value of -o: it sets the flags that its parts name.
type optionList struct {
	flags     *pflag.FlagSet
	sloppy    *bool
	text      []string
	powerless []string // options without effect
}

// alwaysSo are options of mount(8) that every mount of epochfs has, or that
// are for mount(8) itself, systemd or umount(8).
var alwaysSo = []string{
	"ro", "rw", "defaults", "nosuid", "nodev", "auto", "noauto", "nofail", "_netdev",
	"user", "nouser", "users", "nousers", "group", "nogroup", "owner", "noowner",
	"async", "sync", "dirsync", "iversion", "noiversion", "mand", "nomand", "silent", "loud", "symfollow", "nosymfollow",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
	"default_permissions",
}

// forOthers are options with a value for other programs.
var forOthers = []string{"comment", "helper", "uhelper", "user"}

// powerless are options without effect: a mount of epochfs is always nosuid
// and nodev.
var powerless = []string{"suid", "dev"}

// Set reads name[=value],…
func (l *optionList) Set(s string) error {
	l.text = append(l.text, s)
	for _, option := range splitOptions(s) {
		if err := l.set(option); err != nil {
			return err
		}
	}
	return nil
}

func (l *optionList) set(option string) error {
	name, value, valued := strings.Cut(option, "=")
	switch {
	case name == "", slices.Contains(alwaysSo, name) && !valued, slices.Contains(forOthers, name) && valued:
		return nil
	case strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
		return nil
	case slices.Contains(powerless, option):
		l.powerless = append(l.powerless, option)
		return nil
	case option == "exec":
		return l.flags.Set("noexec", "false")
	case option == "remount":
		return usagef("a mount cannot be remounted: unmount it and mount it again")
	}
	flag := l.flags.Lookup(strings.ReplaceAll(name, "_", "-"))
	if flag == nil || flag.Value == pflag.Value(l) || flag.Name == "help" {
		if *l.sloppy {
			return nil
		}
		return usagef("there is no mount option %q", name)
	}
	if !valued {
		if value = flag.NoOptDefVal; value == "" {
			return usagef("mount option %s needs a value", name)
		}
	}
	return l.flags.Set(flag.Name, value)
}

// splitOptions splits at commas outside double quotes, which an SELinux
// context may have. The quotes stay.
func splitOptions(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
}

// String returns the options as given.
func (l *optionList) String() string { return strings.Join(l.text, ",") }

// Type returns the placeholder in help texts.
func (l *optionList) Type() string { return "options" }

// contextOptions are SELinux's mount options, which the kernel reads. They
// are flags that can only be set as mount options.
var contextOptions = []string{"context", "fscontext", "defcontext", "rootcontext"}

// selinuxDir exists if SELinux is enabled.
var selinuxDir = "/sys/fs/selinux"

// contexts returns the given SELinux options for the kernel. Without SELinux
// the kernel would refuse them, so they are ignored, as in mount(8).
func (opts *mountOptions) contexts() (given []string, ignored bool) {
	for _, name := range contextOptions {
		if f := opts.flags.Lookup(name); f.Changed {
			given = append(given, name+"="+f.Value.String())
		}
	}
	if _, err := os.Stat(filepath.Join(selinuxDir, "enforce")); err != nil && len(given) > 0 {
		return nil, true
	}
	return given, false
}

// notePowerless prints the given options that have no effect.
func (opts *mountOptions) notePowerless() {
	if list, ok := opts.flags.Lookup("options").Value.(*optionList); ok && len(list.powerless) > 0 {
		opts.note("mount option %s has no effect: a mount is always nosuid and nodev", strings.Join(list.powerless, ","))
	}
	if _, ignored := opts.contexts(); ignored {
		opts.note("SELinux is not enabled here: its mount options have no effect")
	}
}
