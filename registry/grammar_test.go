package registry

import (
	"regexp"
	"testing"
)

// FuzzGrammar compares the grammar with the expressions of the distribution
// spec.
func FuzzGrammar(f *testing.F) {
	host := regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)
	forms := map[string]struct {
		want *regexp.Regexp
		got  func(string) bool
	}{
		"repository": {regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`), validRepositoryForm},
		"tag":        {regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`), validTag},
		"host":       {host, validHostForm},
	}
	for _, s := range []string{
		"", "a", "a/b", "a//b", "/a", "a/", "a.b", "a..b", "a._b", "a_.b", "a__b", "a___b", "a---b", "a-_b", "-a", "a-", "a_", "A", "a\n", "é",
		"v1", "_x", ".x", "-x", "v1.0-rc_1", "h.io", "h.io:5000", "h.io:", "h.io:123456", "h.io:1a", "-h", "h-", "h_", "[::1]", "[::1]:5", "[]", "[::1", "::1", "[g]:1", "a:1:2", "[:]]:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for what, form := range forms {
			if got, want := form.got(s), form.want.MatchString(s); got != want {
				t.Errorf("%q as %s: %v, want %v", s, what, got, want)
			}
		}
	})
}
