package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// page is a manual page as roff has it.
type page struct{ strings.Builder }

func newPage(name, section, short string) *page {
	p := &page{}
	fmt.Fprintf(p, ".\\\" Made from the commands by make generate.\n.TH %s %s \"\" epochfs \"epochfs manual\"\n", strings.ToUpper(roff(name)), section)
	p.section("NAME")
	p.text(name + " - " + strings.ToLower(short[:1]) + short[1:])
	return p
}

func (p *page) section(title string) { fmt.Fprintf(p, ".SH %s\n", title) }

// text writes paragraphs.
func (p *page) text(s string) {
	p.WriteString(strings.ReplaceAll(roff(strings.TrimSpace(s)), "\n\n", "\n.PP\n") + "\n")
}

// literal writes lines as they are.
func (p *page) literal(s string) {
	p.WriteString(".RS 4\n.nf\n" + roff(strings.Trim(s, "\n")) + "\n.fi\n.RE\n")
}

func (p *page) items(all [][2]string) {
	for _, item := range all {
		fmt.Fprintf(p, ".TP\n.B %s\n%s\n", roff(item[0]), roff(item[1]))
	}
}

// roff escapes what roff would take for its own.
func roff(s string) string {
	s = strings.NewReplacer("\\", "\\e", "-", "\\-").Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = "\\&" + line
		}
	}
	return strings.Join(lines, "\n")
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// commandPage is the page of one command.
func commandPage(cmd *cobra.Command) string {
	p := newPage(pageName(cmd), "1", cmd.Short)
	p.section("SYNOPSIS")
	for _, use := range uses(cmd) {
		p.text(use)
		p.WriteString(".br\n")
	}
	p.section("DESCRIPTION")
	if cmd.Long == "" {
		p.text(cmd.Short + ".")
	} else {
		p.text(cmd.Long)
	}
	p.flags("OPTIONS", cmd.NonInheritedFlags())
	if cmd.HasInheritedFlags() {
		p.section("GLOBAL OPTIONS")
		p.text("The flags of all commands are described in epochfs(1).")
	}
	if text := examples[pageName(cmd)]; text != "" {
		p.section("EXAMPLES")
		p.literal(text)
	}
	if !cmd.HasParent() {
		p.section("EXIT STATUS")
		p.items(exitMeanings)
		p.section("ENVIRONMENT")
		p.items(environment)
		p.section("FILES")
		p.items(files)
	} else {
		p.section("EXIT STATUS")
		p.text("As for epochfs(1).")
	}
	p.seeAlso(cmd)
	return p.String()
}

// uses are the forms of a command, or of those below it.
func uses(cmd *cobra.Command) (lines []string) {
	if cmd.HasParent() && !cmd.HasAvailableSubCommands() {
		return []string{cmd.UseLine()}
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			lines = append(lines, sub.UseLine())
		}
	}
	return lines
}

func (p *page) flags(title string, set *pflag.FlagSet) {
	var all [][2]string
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		text := "--" + f.Name
		if f.Shorthand != "" {
			text = "-" + f.Shorthand + ", " + text
		}
		if name != "" {
			text += " " + name
		}
		all = append(all, [2]string{text, strings.ToUpper(usage[:1]) + usage[1:] + "."})
	})
	if len(all) > 0 {
		p.section(title)
		p.items(all)
	}
}

func (p *page) seeAlso(cmd *cobra.Command) {
	var names []string
	add := func(name, section string) { names = append(names, name+"("+section+")") }
	if cmd.HasParent() {
		add(pageName(cmd.Parent()), "1")
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			add(pageName(sub), "1")
		}
	}
	names = append(names, seeAlso[pageName(cmd)]...)
	slices.Sort(names)
	p.section("SEE ALSO")
	p.text(strings.Join(names, ",\n"))
}

// helperPage is that of the name by which mount(8) calls the program. Its
// options are the flags of the command mount.
func helperPage(root *cobra.Command) string {
	const name = "mount.fuse.epochfs"
	p := newPage(name, "8", "mount a snapshot from an OCI registry, for mount(8) and fstab(5)")
	p.section("SYNOPSIS")
	p.text("mount -t fuse.epochfs [-o OPTIONS] REF DIR")
	p.WriteString(".br\n")
	p.text(name + " REF DIR [-sfnv] [-o OPTIONS] [-t TYPE]")
	p.section("DESCRIPTION")
	p.text(helperText)
	mount, _, err := root.Find([]string{"mount"})
	if err != nil {
		panic(err)
	}
	p.section("MOUNT OPTIONS")
	p.text(helperOptions)
	p.flags("FLAGS OF EPOCHFS MOUNT", mount.NonInheritedFlags())
	p.flags("FLAGS OF ALL COMMANDS", root.PersistentFlags())
	p.section("EXAMPLES")
	p.literal(examples[name])
	p.section("EXIT STATUS")
	p.text("As for epochfs(1), not the bits of mount(8), which passes the code on.")
	p.section("FILES")
	p.items([][2]string{{"/sbin/" + name, "A link to the program epochfs."}, {"/etc/fstab", "The machine's mounts."}})
	p.section("SEE ALSO")
	p.text(strings.Join([]string{"epochfs(1)", "epochfs-mount(1)", "fstab(5)", "systemd.automount(5)", "mount(8)", "umount(8)"}, ",\n"))
	return p.String()
}
