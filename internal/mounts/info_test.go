package mounts

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestUID(t *testing.T) {
	for options, want := range map[string]int{"rw,user_id=1000,group_id=100,default_permissions": 1000, "rw,user_id=0,group_id=0": 0, "": 0} {
		if m := fromInfo(&mountinfo.Info{VFSOptions: options}); m.UID != want {
			t.Errorf("%q: %d", options, m.UID)
		}
	}
}
