package registry

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// A registry's own words are part of an error, whatever form they have, on
// one line.
func TestRegistrysWords(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("too long ", 100)
	for body, want := range map[string]string{
		`{"errors":[{"code":"DENIED","message":"quota of 10 GiB exceeded"}]}`: "409 Conflict (DENIED: quota of 10 GiB exceeded)",
		`{"errors":[{"code":"DENIED","message":"","detail":"no room"}]}`:      "409 Conflict (DENIED: no room)",
		`{"errors":[{"code":"DENIED","message":"two\nlines\u001b[31m."}]}`:    "409 Conflict (DENIED: two lines [31m)",
		`{"message":"go away"}`: "409 Conflict (go away)",
		`{"error":"read only"}`: "409 Conflict (read only)",
		`<html><head><title>409 No Entry</title></head><body>x</body></html>`: "409 Conflict (409 No Entry)",
		"maintenance until noon\n":                              "409 Conflict (maintenance until noon)",
		`<html><head><title>409 Conflict</title></head></html>`: "409 Conflict",
		`<Error><Code>AccessDenied</Code></Error>`:              "409 Conflict",
		`{"errors":[]}`: "409 Conflict",
		"":              "409 Conflict",
		`{"errors":[{"code":"DENIED","message":"` + long + `"}]}`:                        "409 Conflict (DENIED: " + long[:200] + "…)",
		`{"errors":[{"code":"DENIED","message":"sha256:` + someDigest[7:] + ` is it"}]}`: "409 Conflict (DENIED: " + someDigest + " is it)",
	} {
		f := answers(t, func(w http.ResponseWriter, _ *http.Request) {})
		f.Inject(&registrytest.Fault{Status: http.StatusConflict, Body: body})
		_, err := client(t, f.URL, Options{}).GetBlob(t.Context(), "vm", someDigest)
		e := wantError(t, err, err, false)
		if got := e.Error(); !strings.HasSuffix(got, ": "+want) {
			t.Errorf("%q: %q", body, got)
		}
	}
}

// Words that repeat what the request was allowed by, or look as secrets do,
// lose that.
func TestWordsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	req := &http.Request{
		Header: http.Header{"Authorization": {"Basic am9lOmh1bnRlcjI="}},
		URL:    &url.URL{Host: "r", RawQuery: "X-Signature=s1gned%2Bvalue&digest=" + someDigest},
	}
	jwt := "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9." + strings.Repeat("eyJpc3MiOiJ4", 6) + ".c2lnbmF0dXJl"
	for text, secret := range map[string]string{
		"joe with hunter2 may not":                          "hunter2",
		"am9lOmh1bnRlcjI= is no account":                    "am9lOmh1bnRlcjI",
		"s1gned+value is too old":                           "s1gned",
		"s1gned%2Bvalue is too old":                         "s1gned",
		"see https://storage/x?X-Amz-Signature=abc&y=z now": "abc",
		"go to https://joe:pass@host/":                      "pass",
		"Bearer abc.def was refused":                        "abc.def",
		"your token: t0psecret":                             "t0psecret",
		"access_token=t0psecret":                            "t0psecret",
		jwt + " has expired":                                "eyJpc3MiOiJ4",
	} {
		if got := redact(text, req); strings.Contains(got, secret) || got == "" {
			t.Errorf("%q became %q", text, got)
		}
	}
	plain := "the upload of " + someDigest + " to team/vm failed: 416?"
	if got := redact(plain, req); got != plain {
		t.Errorf("%q became %q", plain, got)
	}
}
