package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// A materialize that is killed at any moment leaves all of its target or
// none, and nothing beside it that the next run does not take away. With
// --keep that one fetches what is missing, and no more.
func TestMaterializeKilled(t *testing.T) {
	tier.Long(t, "kills the program, again and again")
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	data := make([]byte, 12<<20+77)
	rand.NewChaCha8([32]byte{1}).Read(data)
	files := []artifacttest.File{{Name: "config.json", Data: []byte("{}")}, {Name: "memory-ranges", Data: data}}
	for form, opts := range map[string]artifacttest.Options{
		"whole":  {},
		"chunks": {Zstd: true, Chunk: 1 << 20},
	} {
		for flag, name := range map[string]string{"-o": "vm.tar", "--to-dir": "vm"} {
			t.Run(form+" "+flag, func(t *testing.T) {
				t.Parallel()
				front := startRegistry(t, "memory")
				k := &killedRun{t: t, front: front, dir: t.TempDir(), cfg: mounting.Config{CacheDir: filepath.Join(t.TempDir(), "cache")}}
				k.args = []string{"--quiet", "--cache-dir", k.cfg.CacheDir, "materialize", "--keep", flag, filepath.Join(k.dir, name), front.Host + "/vm"}
				ref, err := k.cfg.Reference(front.Host + "/vm")
				must(t, err)
				reg, err := k.cfg.Registry(ref)
				must(t, err)
				defer reg.Close()
				must(t, artifacttest.Snapshot(files, opts).Push(t.Context(), reg, "vm", "latest"))
				k.run(name, int64(len(data)), rand.New(rand.NewPCG(seed, uint64(len(form+flag)))))
				if flag == "--to-dir" {
					if got, err := os.ReadFile(filepath.Join(k.dir, name, "memory-ranges")); err != nil || !bytes.Equal(got, data) {
						t.Errorf("other bytes, %v", err)
					}
				}
			})
		}
	}
}

// killedRun is a command that is killed, and then is not.
type killedRun struct {
	t     *testing.T
	front *registrytest.Front
	dir   string // of its target, and nothing else
	cfg   mounting.Config
	args  []string
}

func (k *killedRun) run(name string, data int64, rng *rand.Rand) {
	target := filepath.Join(k.dir, name)
	var whole int64
	for range 4 {
		// Not all at once, for the next to have something to fetch.
		n := (data - k.local()) * 5 / 8
		k.front.Reset()
		k.kill(rng.Int64N(n+1), time.Duration(rng.IntN(20))*time.Millisecond)
		size, err := sizeOf(target)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if whole == 0 {
			whole = size
		}
		if err != nil || size < data || size != whole {
			k.t.Errorf("%s has %d bytes, %v", name, size, err)
		}
		must(k.t, os.RemoveAll(target))
	}
	k.front.Reset()
	missing := data - k.local()
	k.front.Reset()
	cmd := exec.Command("epochfs", k.args...)
	cmd.Env = append(os.Environ(), tardyEnv+"=10s")
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%v: %s", err, out)
	}
	const frames = 128 << 10 // what frames of random data take beside it
	if got := k.front.Counts().BlobBytes; got > missing+frames {
		k.t.Errorf("%d bytes were fetched, %d were missing", got, missing)
	}
	found, err := os.ReadDir(k.dir)
	if err != nil || len(found) != 1 || found[0].Name() != name {
		k.t.Errorf("left are %v, %v", found, err)
	}
	if size, err := sizeOf(target); err != nil || size < data || whole != 0 && size != whole {
		k.t.Errorf("%d bytes, %v", size, err)
	}
}

// kill runs the command and kills it when the registry has sent n bytes
// and some time more has passed.
func (k *killedRun) kill(n int64, more time.Duration) {
	cmd := exec.Command("epochfs", append(k.args, "--limit-rate", "24MiB")...)
	must(k.t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it may be killed, or be faster
	}()
	eventually(k.t, "enough was fetched", func() bool {
		select {
		case <-ended:
			return true
		default:
			return k.front.Counts().BlobBytes >= n
		}
	})
	select {
	case <-ended:
	case <-time.After(more):
		_ = cmd.Process.Kill() // it may be faster
		<-ended
	}
}

// local is what the cache has.
func (k *killedRun) local() int64 {
	k.t.Helper()
	o, err := mounting.Open(context.Background(), k.front.Host+"/vm", k.cfg)
	must(k.t, err)
	defer o.Close()
	sum, err := o.Sizes()
	must(k.t, err)
	return sum.Local
}

// sizeOf is the bytes of a file, or of all files in a directory.
func sizeOf(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			n += st.Size()
		}
		return err
	})
	return n, err
}
