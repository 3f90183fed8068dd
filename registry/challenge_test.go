package registry

import (
	"fmt"
	"testing"
	"time"
)

func TestParseChallenges(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string
	}{
		{nil, "[]"},
		{[]string{""}, "[]"},
		{[]string{`Basic realm="x"`}, "[{basic map[realm:x]}]"},
		{[]string{`Negotiate`, `basic REALM=x`}, "[{negotiate map[]} {basic map[realm:x]}]"},
		{[]string{`Bearer realm="https://a/t?x=1,2",service="s, t",scope="repository:a:pull,push"`},
			"[{bearer map[realm:https://a/t?x=1,2 scope:repository:a:pull,push service:s, t]}]"},
		{[]string{`Basic realm="a\"b\\", Bearer realm=https://h/t?a=b , service = "q"`},
			`[{basic map[realm:a"b\]} {bearer map[realm:https://h/t?a=b service:q]}]`},
		{[]string{`Negotiate, Basic realm="x"`}, "[{negotiate map[]} {basic map[realm:x]}]"},
		{[]string{`Bearer realm="one",realm="two"`}, "[{bearer map[realm:one]}]"},
		{[]string{`Bearer realm="never closed`}, "[{bearer map[realm:never closed]}]"},
		{[]string{`"quoted" x`, `=`, `Bearer realm=`}, "[{bearer map[realm:]}]"},
		{[]string{`Negotiate YWJj==`}, "[{negotiate map[ywjj:=]}]"},
	} {
		if got := fmt.Sprint(parseChallenges(c.in)); got != c.want {
			t.Errorf("%q: %s", c.in, got)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s", Basic realm=x`)
	f.Add(`a b c,,="\`)
	f.Fuzz(func(t *testing.T, s string) {
		if n := len(parseChallenges([]string{s, s})); n > maxChallenges {
			t.Error(n)
		}
	})
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 0-1/2")
	f.Add("bytes 5-5/*")
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, ok := parseContentRange(s)
		if ok && (start < 0 || end < start || total >= 0 && end >= total) {
			t.Error(s, start, end, total)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for _, s := range []string{"", "bytes", "bytes 0-1", "bytes 1-0/5", "bytes 0-5/5", "bytes -1-2/5", "bytes 0-1/-5", "bytes +0-1/5",
		"items 0-1/5", "bytes 0-1/5,3-4/5", "bytes */5", "bytes 0-99999999999999999999/*", "bytes 0x0-1/5"} {
		if _, _, _, ok := parseContentRange(s); ok {
			t.Errorf("%q is taken", s)
		}
	}
	start, end, total, ok := parseContentRange("bytes 3-7/10")
	if !ok || start != 3 || end != 7 || total != 10 {
		t.Error(start, end, total, ok)
	}
	if _, _, total, ok := parseContentRange("Bytes 3-7/*"); !ok || total != -1 {
		t.Error(total, ok)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"x":                             0,
		"999999":                        time.Hour,
		"99999999999999999999":          0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
		"Fri, 02 Jan 2099 03:04:00 GMT": time.Hour,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}
