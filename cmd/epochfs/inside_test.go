package main

import (
	"testing"

	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	titles := []string{"cow.raw", "data", "data:1.raw", "data:1.raw:p1", "a:", "x:/etc"}
	for arg, want := range map[string]address{
		"cow.raw":                {title: "cow.raw"},
		"cow.raw:/etc":           {title: "cow.raw", path: "/etc"},
		"cow.raw:/a:b":           {title: "cow.raw", path: "/a:b"},
		"cow.raw:p2:/etc":        {title: "cow.raw", volume: "p2", path: "/etc"},
		"cow.raw:vg0/root:/a:/b": {title: "cow.raw", volume: "vg0/root", path: "/a:/b"},
		"cow.raw:upper:/etc":     {title: "cow.raw", upper: true, path: "/etc"},
		"cow.raw:p2:upper:/etc":  {title: "cow.raw", volume: "p2", upper: true, path: "/etc"},
		"cow.raw:p2":             {title: "cow.raw", volume: "p2", path: "/"},
		"cow.raw:":               {title: "cow.raw", path: "/"},
		"data:1.raw":             {title: "data:1.raw"}, // exact, not volume 1.raw of data
		"data:1.raw:/etc":        {title: "data:1.raw", path: "/etc"},
		"data:1.raw:p1":          {title: "data:1.raw:p1"},
		"data:1.raw:p1:/etc":     {title: "data:1.raw:p1", path: "/etc"}, // the longest
		"data:2.raw:/etc":        {title: "data", volume: "2.raw", path: "/etc"},
		"x:/etc":                 {title: "x:/etc"},
		"x:/etc:/passwd":         {title: "x:/etc", path: "/passwd"},
		"a::/etc":                {title: "a:", path: "/etc"},
	} {
		got, ok := parseAddress(titles, arg)
		if !ok || got != want {
			t.Errorf("%s: %+v, want %+v", arg, got, want)
		}
	}
	for _, arg := range []string{"", "cow", "cow.raw/etc", "cow.rawx", ":/etc", "other:/etc"} {
		if got, ok := parseAddress(titles, arg); ok {
			t.Errorf("%s: %+v", arg, got)
		}
	}
}

func TestLeadsOut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, target string
		want         bool
	}{
		{"top/link", "file", false},
		{"top/link", "./a//file", false},
		{"top/link", "..file", false},
		{"top/link", "../top/file", false},
		{"top/link", "../file", false}, // beside the copy
		{"top/a/link", "../../top/b", false},
		{"top/a/link", "..", false},
		{"top/link", "/etc/passwd", true},
		{"top/link", "../..", true},
		{"top/link", "a/../../../etc", true},
		// With top/a/b/up -> ../.. this is outside, for all its names.
		{"top/link", "a/b/up/../..", true},
		{"link", "..", true},
		{"link", "file", false},
		{"link", "", true},
	} {
		if got := leadsOut(c.name, c.target); got != c.want {
			t.Errorf("%s -> %s: %v", c.name, c.target, got)
		}
	}
}

func TestDiskFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mediaType string
		format          inside.Format
		ok              bool
	}{
		{"cow.raw", manifest.MediaTypeDiskRaw, inside.Raw, true},
		{"overlay.qcow2", manifest.MediaTypeDiskQcow2 + manifest.SuffixZstd, inside.Qcow2, true},
		{"odd.qcow2", manifest.MediaTypeDiskRaw, inside.Raw, true}, // the media type counts
		{"odd.qcow2", manifest.MediaTypeGeneric, inside.Qcow2, true},
		{"disk.raw", manifest.MediaTypeWindowsDiskRawPart, inside.Raw, true},
		{"cidata.img", manifest.MediaTypeVMCidata, inside.Raw, true},
		{"memory-ranges", manifest.MediaTypeVMMemory, inside.Raw, false},
		{"config.json", manifest.MediaTypeVMConfig, inside.Raw, false},
	} {
		format, ok := diskFormat(&layout.File{Name: c.name, MediaType: c.mediaType})
		if format != c.format || ok != c.ok {
			t.Errorf("%s, %s: %v, %v", c.name, c.mediaType, format, ok)
		}
	}
	if _, ok := diskFormat(nil); ok {
		t.Error("the envelope is a disk")
	}
}
