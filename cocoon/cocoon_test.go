package cocoon

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/test/cocoontest"
)

// TestMain makes the test binary the stand-in cocoon when it is called by
// that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "cocoon" {
		cocoontest.Main()
	}
	goleak.VerifyTestMain(m)
}

// standIn returns a runner of the stand-in and its store.
func standIn(t *testing.T, fail string) (*Exec, cocoontest.Store, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, "cocoon")); err != nil {
		t.Fatal(err)
	}
	store := cocoontest.Store{Dir: t.TempDir()}
	t.Setenv("PATH", bin)
	t.Setenv(cocoontest.DirEnv, store.Dir)
	t.Setenv(cocoontest.FailEnv, fail)
	t.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // a second for each child otherwise
	path, err := ResolveBinary("")
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	return &Exec{Binary: path, Stderr: &stderr}, store, &stderr
}

type file struct{ name, text string }

func archive(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sample(t *testing.T) []byte {
	return archive(t,
		file{"snapshot.json", `{"version":1,"config":{"name":"old"}}`},
		file{"memory-ranges", strings.Repeat("memory", 1000)},
	)
}

// put imports data, as a caller that does everything right.
func put(t *testing.T, e *Exec, name string, data []byte) error {
	t.Helper()
	w, wait, err := e.Import(t.Context(), ImportOptions{Name: name, Description: "d"})
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := w.Write(data)
	if closeErr := w.Close(); writeErr == nil {
		writeErr = closeErr
	}
	if err := wait(); err != nil {
		return err
	}
	return writeErr
}

func TestImportListExport(t *testing.T) {
	e, store, _ := standIn(t, "")
	if err := e.CheckFree(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	if err := put(t, e, "vm", sample(t)); err != nil {
		t.Fatal(err)
	}
	if err := e.CheckFree(t.Context(), "vm"); !errors.Is(err, ErrNameTaken) {
		t.Fatalf("CheckFree of a taken name: %v", err)
	}
	all, err := store.List()
	if err != nil || len(all) != 1 || all[0].Name != "vm" || all[0].Description != "d" {
		t.Fatalf("store has %+v, %v", all, err)
	}
	got, err := e.List(t.Context())
	if err != nil || !slices.Equal(got, []Snapshot{{ID: all[0].ID, Name: "vm"}}) {
		t.Fatalf("List = %+v, %v", got, err)
	}
	r, wait, err := e.Export(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	tarBytes, err := io.ReadAll(r)
	if err := errors.Join(err, wait()); err != nil {
		t.Fatal(err)
	}
	if want := sample(t); !bytes.Equal(tarBytes, want) {
		t.Fatalf("export has %d bytes, other ones than the %d imported", len(tarBytes), len(want))
	}
}

func TestExportOfNothing(t *testing.T) {
	e, _, _ := standIn(t, "")
	r, wait, err := e.Export(t.Context(), "gone")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 0 || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	if err := wait(); !errors.Is(err, ErrNoSnapshot) {
		t.Fatalf("wait = %v", err)
	}
	for _, name := range []string{"", "-o"} {
		if _, _, err := e.Export(t.Context(), name); err == nil {
			t.Errorf("Export(%q) was started", name)
		}
	}
}

func TestExportThatBreaks(t *testing.T) {
	e, _, stderr := standIn(t, "")
	big := archive(t, file{"snapshot.json", `{"version":1}`}, file{"cow.raw", strings.Repeat("x", 2<<20)})
	if err := put(t, e, "vm", big); err != nil {
		t.Fatal(err)
	}
	t.Setenv(cocoontest.FailEnv, "export")
	r, wait, err := e.Export(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 1<<20 || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	var failed *Error
	if err := wait(); !errors.As(err, &failed) || !strings.Contains(failed.Words, "input/output error") {
		t.Fatalf("wait = %v", err)
	}
	if !strings.Contains(stderr.String(), "input/output error") {
		t.Fatalf("stderr got %q", stderr)
	}
}

func TestExportEndedEarly(t *testing.T) {
	e, _, _ := standIn(t, "")
	big := archive(t, file{"snapshot.json", `{"version":1}`}, file{"cow.raw", strings.Repeat("x", 2<<20)})
	if err := put(t, e, "vm", big); err != nil {
		t.Fatal(err)
	}
	r, wait, err := e.Export(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Fatal("an export that nobody read is called whole")
	}
}

// An export that is ended after its first bytes starts nothing more: the
// snapshot was there.
func TestExportEndedEarlyIsNotLookedFor(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := filepath.Join(dir, "cocoon")
	text := "#!/bin/sh\necho \"$2\" >>" + asked + "\n[ $2 != export ] || exec yes\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	r, wait, err := (&Exec{Binary: script}).Export(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Error("an export that was ended is called whole")
	}
	if got, err := os.ReadFile(asked); err != nil || string(got) != "export\n" {
		t.Errorf("cocoon was asked for %q, %v", got, err)
	}
}

func TestErrorHasCocoonsWords(t *testing.T) {
	e, _, stderr := standIn(t, "start")
	_, err := e.List(t.Context())
	var failed *Error
	if !errors.As(err, &failed) {
		t.Fatalf("List = %v", err)
	}
	if strings.ContainsRune(err.Error(), 0x1b) || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("error text %q", err)
	}
	if !strings.Contains(stderr.String(), "permission denied") {
		t.Fatalf("stderr got %q", stderr)
	}
}

func TestImportFailureLeavesNothing(t *testing.T) {
	whole := sample(t)
	abort := bytes.Repeat([]byte{0xff}, 512)
	cases := map[string]struct {
		fail string
		data []byte
	}{
		"aborted at an entry's boundary": {"", slices.Concat(whole[:1024], abort)},
		"aborted behind the last entry":  {"", slices.Concat(whole[:len(whole)-1024], abort)},
		"cut in a body":                  {"", whole[:2048]},
		"cocoon's disk is full":          {"read", archive(t, file{"snapshot.json", `{"version":1}`}, file{"cow.raw", strings.Repeat("x", 4<<20)})},
		"not a tar":                      {"", bytes.Repeat([]byte("x"), 4096)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			e, store, _ := standIn(t, c.fail)
			var failed *Error
			if err := put(t, e, "vm", c.data); !errors.As(err, &failed) {
				t.Fatalf("import = %v", err)
			}
			if left, _ := os.ReadDir(filepath.Join(store.Dir, "snapshots")); len(left) != 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

// A cut at an entry's boundary is taken for a whole tar: the reason why a
// writer that gives up must write the invalid block.
func TestStandInSharesCocoonsWeakness(t *testing.T) {
	e, store, _ := standIn(t, "")
	if err := put(t, e, "vm", sample(t)[:1024]); err != nil {
		t.Fatal(err)
	}
	if all, err := store.List(); err != nil || len(all) != 1 {
		t.Fatalf("store has %v, %v", all, err)
	}
}

func TestImportOfTakenName(t *testing.T) {
	e, store, _ := standIn(t, "")
	if err := put(t, e, "vm", sample(t)); err != nil {
		t.Fatal(err)
	}
	var failed *Error
	if err := put(t, e, "vm", sample(t)); !errors.As(err, &failed) || !strings.Contains(failed.Words, "already in use") {
		t.Fatalf("second import = %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(store.Dir, "snapshots")); len(left) != 1 {
		t.Fatalf("left: %v", left)
	}
}

// The end of the context alone must not end an import: the writer has yet
// to say that the tar is no good.
func TestImportOutlivesContext(t *testing.T) {
	e, store, _ := standIn(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	w, wait, err := e.Import(ctx, ImportOptions{Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	whole := sample(t)
	if _, err := w.Write(whole[:1024]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := w.Write(bytes.Repeat([]byte{0xff}, 512)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var failed *Error
	if err := wait(); !errors.As(err, &failed) || !strings.Contains(failed.Words, "invalid tar header") {
		t.Fatalf("wait = %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(store.Dir, "snapshots")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestHungCocoonIsKilled(t *testing.T) {
	e, _, _ := standIn(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	c := e.command(ctx, "snapshot", "import", "--name", "vm")
	c.cmd.Cancel = func() error { return os.ErrProcessDone }
	c.cmd.WaitDelay = 50 * time.Millisecond
	w, wait, err := c.startWriter()
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Fatal("a hung import ended well")
	}
	if st := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
		t.Fatalf("ended with %v", c.cmd.ProcessState)
	}
}

func TestImageImport(t *testing.T) {
	e, store, _ := standIn(t, "")
	w, wait, err := e.ImageImport(t.Context(), "ubuntu")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "QFI\xfb and so on"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), wait()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(store.Dir, "images", "ubuntu"))
	if err != nil || string(got) != "QFI\xfb and so on" {
		t.Fatalf("image is %q, %v", got, err)
	}
}

func TestImageImportCancelled(t *testing.T) {
	e, store, _ := standIn(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	w, wait, err := e.ImageImport(ctx, "ubuntu")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "QFI\xfb half of it"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := wait(); err == nil {
		t.Fatal("half an image was imported")
	}
	if left, _ := os.ReadDir(filepath.Join(store.Dir, "images")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestResolveBinary(t *testing.T) {
	e, _, _ := standIn(t, "")
	if got, err := ResolveBinary(" " + e.Binary + " "); err != nil || got != e.Binary {
		t.Errorf("ResolveBinary(path) = %q, %v", got, err)
	}
	t.Setenv("PATH", t.TempDir())
	var failed *Error
	if _, err := ResolveBinary(""); !errors.As(err, &failed) {
		t.Errorf("ResolveBinary with an empty PATH: %v", err)
	}
}
