// Package cocoontest is a stand-in for the cocoon command line, for tests
// on machines without one. It keeps snapshots in a directory and reads and
// writes real tars with Go's archive/tar, as cocoon does; so it shares
// cocoon's weak side too: a tar that ends at an entry's boundary is taken
// for a whole one.
package cocoontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// DirEnv names the environment variable with the directory that holds the
// stand-in's snapshots and images.
const DirEnv = "COCOON_STANDIN_DIR"

// FailEnv makes the stand-in fail where real ones do: "start" at once;
// "read" after the first megabyte of standard input; "hang" never ends
// by itself, whatever signal comes; "export" after the first megabyte of
// a tar.
const FailEnv = "COCOON_STANDIN_FAIL"

// Main is the stand-in's main function; it exits the process.
func Main() {
	if os.Getenv(FailEnv) == "hang" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGPIPE)
		select {}
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Store is the directory that a stand-in keeps its snapshots in.
type Store struct{ Dir string }

// Record is one snapshot of a Store.
type Record struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
}

func run(args []string) error {
	if os.Getenv(FailEnv) == "start" {
		return errors.New("cannot open /var/lib/cocoon: \x1b[31mpermission denied")
	}
	s := Store{Dir: os.Getenv(DirEnv)}
	if s.Dir == "" {
		return errors.New(DirEnv + " is not set")
	}
	if len(args) < 2 {
		return fmt.Errorf("unknown command %q", args)
	}
	rest := args[2:]
	switch args[0] + " " + args[1] {
	case "snapshot list":
		return s.list(rest)
	case "snapshot export":
		if len(rest) != 3 || rest[1] != "-o" || rest[2] != "-" {
			return fmt.Errorf("export wants NAME -o -, got %q", rest)
		}
		return s.Export(rest[0], os.Stdout)
	case "snapshot import":
		name, description, err := importFlags(rest)
		if err != nil {
			return err
		}
		return s.Import(input(), name, description)
	case "vm clone":
		return s.clone(rest, false)
	case "vm restore":
		return s.clone(rest, true)
	case "image import":
		if len(rest) != 1 {
			return fmt.Errorf("image import wants NAME, got %q", rest)
		}
		return s.importImage(rest[0], input())
	}
	return fmt.Errorf("unknown command %q", args)
}

func importFlags(args []string) (name, description string, err error) {
	for len(args) > 0 {
		if len(args) == 1 {
			return "", "", fmt.Errorf("flag needs an argument: %s", args[0])
		}
		switch args[0] {
		case "--name":
			name = args[1]
		case "--description":
			description = args[1]
		default:
			return "", "", fmt.Errorf("unknown flag: %s", args[0])
		}
		args = args[2:]
	}
	return name, description, nil
}

// input returns standard input, or its start if the reader is to fail.
func input() io.Reader {
	if os.Getenv(FailEnv) != "read" {
		return os.Stdin
	}
	return io.MultiReader(io.LimitReader(os.Stdin, 1<<20), failing{})
}

type failing struct{}

func (failing) Read([]byte) (int, error) {
	return 0, errors.New("write /var/lib/cocoon: no space left")
}

func (s Store) list(args []string) error {
	if len(args) != 2 || args[0] != "--format" || args[1] != "json" {
		return fmt.Errorf("list wants --format json, got %q", args)
	}
	all, err := s.List()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Println("No snapshots found.")
		return nil
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

// List returns the snapshots of the store.
func (s Store) List() ([]Record, error) {
	ids, err := os.ReadDir(filepath.Join(s.Dir, "snapshots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var all []Record
	for _, id := range ids {
		raw, err := os.ReadFile(filepath.Join(s.Dir, "snapshots", id.Name(), "record.json"))
		if errors.Is(err, os.ErrNotExist) {
			continue // being imported
		}
		if err != nil {
			return nil, err
		}
		var r Record
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// Find returns the directory of the named snapshot's files.
func (s Store) Find(name string) (dir string, err error) {
	all, err := s.List()
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.Name == name || r.ID == name {
			return filepath.Join(s.Dir, "snapshots", r.ID), nil
		}
	}
	return "", fmt.Errorf("snapshot %q not found", name)
}

// importImage keeps the disk read from r under images/NAME.
func (s Store) importImage(name string, r io.Reader) error {
	dir := filepath.Join(s.Dir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Dir, "image-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(f, r)
	if err != nil {
		return err
	}
	if n < 4 {
		return errors.New("image is empty")
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}
