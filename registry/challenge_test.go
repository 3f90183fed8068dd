package registry

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
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

// FuzzParseChallenges: whatever a header says, few challenges come of it,
// with names as they are looked up; and what is quoted as it should be is
// read as it was meant.
func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s", Basic realm=x`)
	f.Add(`a b c,,="\`)
	f.Add("Bearer realm=\"https://auth.example.com/token?a=b\\\"\", scope=\"repository:x:pull,push\"")
	f.Add("Negotiate, Digest realm=, Basic")
	f.Fuzz(func(t *testing.T, s string) {
		all := parseChallenges([]string{s, s})
		if len(all) > maxChallenges {
			t.Error(len(all))
		}
		for _, c := range all {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > len(s) {
				t.Errorf("%q: %+v", s, c)
			}
			for key := range c.params {
				if key == "" || key != strings.ToLower(key) {
					t.Errorf("%q: %+v", s, c)
				}
			}
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
		got := parseChallenges([]string{`Bearer realm="` + quoted + `" , service = "x",Basic realm=y`})
		if len(got) != 2 || got[0].scheme != "bearer" || got[0].params["realm"] != s || got[0].params["service"] != "x" || got[1].params["realm"] != "y" {
			t.Errorf("%q: %+v", s, got)
		}
	})
}

// FuzzNextHop: a redirect leads to http or https, never from https to
// http, never with credentials or to a cloud's own addresses; and an error
// does not repeat where it would have led.
func FuzzNextHop(f *testing.F) {
	for _, to := range []string{
		"/v2/x", "https://s3.example.com/k?X-Amz-Signature=5ecret", "http://other.example.com/", "//h/x", "https://u:p@h/x",
		"http://169.254.169.254/latest", "http://[fe80::1%25eth0]/x", "ftp://h/x", "", "%zz", "https:///x", "?a#b", "http://0.0.0.0/",
	} {
		f.Add(true, to)
		f.Add(false, to)
	}
	f.Fuzz(func(t *testing.T, tls bool, location string) {
		from := &url.URL{Scheme: "http", Host: "r.example.com:5000", Path: "/v2/a/blobs/x"}
		if tls {
			from.Scheme = "https"
		}
		to, err := (&Registry{}).nextHop(from, location)
		if err != nil {
			if len(location) > 9 && strings.Contains(err.Error(), location) {
				t.Errorf("%q: %v", location, err)
			}
			return
		}
		if to.Scheme != "https" && (to.Scheme != "http" || tls) || to.Host == "" || to.User != nil || to.Fragment != "" {
			t.Errorf("%q leads to %v", location, to)
		}
		if ip, err := netip.ParseAddr(to.Hostname()); err == nil && (ip.Unmap().IsLinkLocalUnicast() || ip.Unmap().IsUnspecified()) {
			t.Errorf("%q leads to %v", location, to)
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
