package main

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// helperPrefix begins the names under which mount(8) calls its helpers.
const helperPrefix = "mount."

// helperArgs turns a mount helper's arguments, REF DIR [-sfnv] [-N ns]
// [-o options] [-t type], into those of the mount command.
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
			case 'n': // we write no /etc/mtab
			default:
				return nil, usagef("a mount helper has no option -%c", arg[i])
			}
		}
	}
	// --sloppy must be known before the options are read.
	return slices.Concat([]string{"mount"}, flags, lists, []string{"--"}, names), nil
}

// optionList is the value of -o: it sets the flags that its parts name.
type optionList struct {
	flags  *pflag.FlagSet
	sloppy *bool
	text   []string
}

// alwaysSo are options of mount(8) that say what is so anyway, or speak to
// others than us.
var alwaysSo = []string{
	"ro", "rw", "defaults", "nosuid", "nodev", "exec", "noexec", "auto", "noauto", "nofail",
	"user", "nouser", "users", "group", "owner", "async", "_netdev", "atime", "noatime", "relatime",
	"norelatime", "strictatime", "nodiratime", "default_permissions",
}

// Set reads name[=value],…
func (l *optionList) Set(s string) error {
	l.text = append(l.text, s)
	for option := range strings.SplitSeq(s, ",") {
		name, value, valued := strings.Cut(option, "=")
		if name == "" || slices.Contains(alwaysSo, name) || strings.HasPrefix(name, "x-") || name == "comment" {
			continue
		}
		flag := l.flags.Lookup(strings.ReplaceAll(name, "_", "-"))
		if flag == nil || flag.Value == pflag.Value(l) || flag.Name == "help" {
			if *l.sloppy {
				continue
			}
			return usagef("there is no mount option %q", name)
		}
		if !valued {
			if value = flag.NoOptDefVal; value == "" {
				return usagef("mount option %s needs a value", name)
			}
		}
		if err := l.flags.Set(flag.Name, value); err != nil {
			return err
		}
	}
	return nil
}

// String returns the options as they were given.
func (l *optionList) String() string { return strings.Join(l.text, ",") }

// Type names the value in the help.
func (l *optionList) Type() string { return "options" }
