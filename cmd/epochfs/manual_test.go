package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the manual pages anew")

const manDir = "../../docs/man"

// pages are those of all commands, by their files' names.
func pages() map[string]string {
	root, finish := newRootCmd()
	defer finish()
	all := map[string]string{"mount.fuse.epochfs.8": helperPage(root)}
	addPages(all, root)
	return all
}

// addPages makes a page of a command and of those below it.
func addPages(all map[string]string, cmd *cobra.Command) {
	all[pageName(cmd)+".1"] = commandPage(cmd)
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			addPages(all, sub)
		}
	}
}

// TestManualPages compares the pages that are there with what the commands
// say now.
func TestManualPages(t *testing.T) {
	want := pages()
	if *update {
		if err := errors.Join(os.RemoveAll(manDir), os.Mkdir(manDir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range want {
		file := filepath.Join(manDir, name)
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("docs/man/%s is not what the commands say (%v): make generate", name, err)
		}
	}
	there, err := os.ReadDir(manDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range there {
		if want[e.Name()] == "" {
			t.Errorf("docs/man/%s is of no command: make generate", e.Name())
		}
	}
}
