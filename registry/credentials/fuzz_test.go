package credentials

import (
	"strings"
	"testing"
)

// A file, or what a helper printed, whatever it is, makes no panic, and errors
// of a bounded length on one line.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "{", "{}", ",}", "\xef\xbb\xbf{}", `{"auths":{"r.example":{"auth":"am9lOnB3"}}}`, `{"auths":{"":{"auth":5}},"credHelpers":{"/":"x"}}`, "[1,\n]", `{"Secret":"x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		errs := []string{shown(s, s), shown(s, "")}
		file, err := parse("f", []byte(s))
		if err != nil {
			errs = append(errs, err.Error())
		} else {
			for key := range file.auths {
				if _, err := file.entry(key); err != nil && len(key) < 100 {
					errs = append(errs, err.Error())
				}
			}
		}
		for _, e := range errs {
			if len(e) > 1000 || strings.ContainsAny(e, "\n\r\x1b") {
				t.Errorf("%q", e)
			}
		}
	})
}
