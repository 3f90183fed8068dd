package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/registry"
)

// automapName is the name under which autofs calls the program as a map.
const automapName = "auto.epochfs"

// allowList names the file of registries that autofs mounts from.
const allowList = "/etc/epochfs/autofs.allow"

// maxAllowList bounds the list, in bytes.
const maxAllowList = 1 << 20

// automapArgs converts the argument of a program map, the requested name, to
// those of the command. Any user can choose the name.
func automapArgs(args []string) []string { return append([]string{automapName, "--"}, args...) }

func newAutomapCmd() *cobra.Command {
	return &cobra.Command{
		Use:    automapName + " NAME",
		Short:  "Print the entry of autofs for the directory of a snapshot",
		Hidden: true, // autofs runs it
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := readAllowList(allowList)
			if err != nil {
				return err
			}
			entry, err := automapEntry(args[0], list)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), entry)
			return err
		},
	}
}

// automapEntry returns the entry of an autofs map, in Sun's format, for the
// directory of that name.
func automapEntry(name string, allowed []string) (string, error) {
	ref, err := referenceOfName(name)
	if err != nil {
		return "", err
	}
	if !isAllowed(ref, allowed) {
		return "", fmt.Errorf("%s/%s is not in %s: %w", ref.Host, ref.Repository, allowList, errNotFound)
	}
	return "-fstype=fuse.epochfs :" + strings.ReplaceAll(name, "+", "/"), nil
}

// referenceOfName returns the reference whose directory has that name. A name
// is the reference with + for each slash, which no reference has. It begins
// with the host, in lower case, so that each name means one reference,
// whatever the environment says.
func referenceOfName(name string) (registry.Reference, error) {
	text := strings.ReplaceAll(name, "+", "/")
	// These alone are in references, and mean nothing in a map. A [ would be
	// that of an IPv6 address.
	other := func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./_-:@", r)
	}
	ref, err := registry.ParseReference(text, registry.ReferenceOptions{})
	if err != nil || strings.Contains(name, "/") || strings.ContainsFunc(text, other) || !strings.HasPrefix(text, ref.Host+"/"+ref.Repository) {
		return ref, fmt.Errorf("%q is not the name of a snapshot, such as registry.example+team+vm:v1: %w", name, errNotFound)
	}
	return ref, nil
}

// isAllowed reports whether the list has the reference's registry, or the
// repository or one above it.
func isAllowed(ref registry.Reference, list []string) bool {
	full := ref.Host + "/" + ref.Repository + "/"
	for _, entry := range list {
		if strings.HasPrefix(full, entry+"/") {
			return true
		}
	}
	return false
}

// readAllowList returns the entries of the list, one
// HOST[:PORT][/REPOSITORY] on each line, or none if the file does not exist.
func readAllowList(name string) (list []string, err error) {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxAllowList))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimRight(strings.TrimSpace(line), "/"); line != "" {
			list = append(list, line)
		}
	}
	return list, lines.Err()
}
