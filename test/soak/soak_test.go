package main

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/tier"
)

func TestMain(m *testing.M) {
	if os.Getenv(touchEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// build makes the program that is tried.
func build(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("mounts need /dev/fuse and root here")
	}
	bin := filepath.Join(t.TempDir(), "epochfs")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../cmd/epochfs").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// TestFaultCampaignOfLies has wrong bits of blobs that can be checked only as a
// whole be read, and then whole blobs come: no wrong byte is left.
func TestFaultCampaignOfLies(t *testing.T) {
	tier.Long(t, "injects wrong bits under mounts")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rep, err := lies(context.Background(), config{bin: build(t), dir: t.TempDir(), seed: seed, kills: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(rep)
	if err := rep.verdict(); err != nil {
		t.Error(err)
	}
	if rep.faults[liesKind] == 0 || rep.faults[wholesKind] == 0 {
		t.Errorf("not all of it was injected: %v", rep.faults)
	}
}

// TestFaultCampaign injects 2,000 faults of all kinds, in make test fewer,
// under readers of real mounts whose processes are killed: no read fails, no
// byte is wrong.
func TestFaultCampaign(t *testing.T) {
	tier.Long(t, "injects thousands of faults under mounts")
	bin, faultsOfEach := build(t), 1000/tier.Shorter()
	total, kills := 0, int64(0)
	for _, flips := range []bool{true, false} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rep, err := campaign(context.Background(), config{
			bin: bin, dir: t.TempDir(), seed: seed, length: 3 * time.Minute, faults: faultsOfEach, flips: flips, kills: 6, away: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(rep)
		if err := rep.verdict(); err != nil {
			t.Error(err)
		}
		for _, n := range rep.faults {
			total += n
		}
		kills += rep.kills
		if flips {
			for _, f := range faults {
				if rep.faults[f.name] == 0 {
					t.Errorf("no fault %q was injected", f.name)
				}
			}
		}
	}
	if total < 2*faultsOfEach {
		t.Errorf("only %d faults in the time there is", total)
	}
	t.Logf("%d faults, %d kills", total, kills)
}
