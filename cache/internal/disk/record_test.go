package disk

import (
	"strings"
	"testing"
)

// FuzzRecord reads any bytes as KEY.meta.
func FuzzRecord(f *testing.F) {
	f.Add(`{"version":1,"name":"a","size":9,"parts":[{"digest":"x","length":9,"pieceSize":3}]}` + "\n[]\n")
	f.Add("{}\n")
	f.Add(`{"version":1,"parts":[{"length":-1,"pieceSize":1}]}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, rest, err := parseRecord(strings.NewReader(text))
		if err != nil {
			return
		}
		if m, err := readMap(rest, r.Size); err == nil {
			_ = r.layout(m).PayloadSize()
		}
	})
}
