package registry

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
)

// message returns an answer's text for people: cleaned for one line, and
// without possible secrets. It returns "" for storage behind a redirect,
// which repeats signed URLs.
func message(resp *http.Response, body []byte) string {
	const most = 200
	if redirected(resp) {
		return ""
	}
	text := strings.Join(strings.Fields(clip(redact(words(body), resp.Request))), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	if text = strings.TrimRight(text, "."); text == resp.Status {
		return "" // some pages have only that title
	}
	return text
}

var title = lazily(`(?is)<title>([^<]*)</title>`)

// words finds the text for people in a body: of a registry's error, of a
// gateway's JSON error, the title of a page, or plain text.
func words(body []byte) string {
	var doc struct {
		Errors []struct {
			Message string `json:"message"`
			Detail  any    `json:"detail"`
		} `json:"errors"`
		Message string `json:"message"`
		Error   any    `json:"error"`
	}
	if json.Unmarshal(body, &doc) == nil {
		if len(doc.Errors) > 0 {
			detail, _ := doc.Errors[0].Detail.(string)
			return either(doc.Errors[0].Message, detail)
		}
		text, _ := doc.Error.(string)
		return either(doc.Message, text)
	}
	if m := title().FindSubmatch(body); m != nil {
		return string(m[1])
	}
	if strings.ContainsAny(string(body), "<>{}") {
		return ""
	}
	return string(body)
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// lazily returns a function that compiles an expression when it is first
// called: most processes never see an error with a body.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// Possible secrets and what replaces them.
var secrets = []struct {
	form func() *regexp.Regexp
	with string
}{
	{lazily(`://[^/\s@]*@`), "://…@"},
	{lazily(`\?[^\s"'<>?]*=[^\s"'<>]*`), "?…"},
	{lazily(`(?i)\b(bearer|basic)\s+[^\s"',;]+`), "$1 …"},
	{lazily(`(?i)\b([\w-]*(?:token|password|secret|signature|credential|api-?key))(\s*[=:]\s*)[^\s"',;&]+`), "$1$2…"},
}

// opaque matches a word as long as a token.
var opaque = lazily(`[A-Za-z0-9_+=-]{40,}`)

// redact removes the credentials of the request from text, and everything
// that looks like credentials.
func redact(text string, req *http.Request) string {
	if text == "" {
		return ""
	}
	for _, s := range secretsOf(req) {
		text = strings.ReplaceAll(text, s, "…")
	}
	for _, s := range secrets {
		text = s.form().ReplaceAllString(text, s.with)
	}
	return opaque().ReplaceAllStringFunc(text, func(word string) string {
		if len(word) == 64 && strings.Trim(word, "0123456789abcdef") == "" {
			return word // a digest
		}
		return "…"
	})
}

// secretsOf returns the credentials and signatures of a request.
func secretsOf(req *http.Request) (all []string) {
	const least = 4 // characters; shorter texts match ordinary words
	if req == nil {
		return nil
	}
	add := func(s string) {
		if len(s) >= least {
			all = append(all, s, url.QueryEscape(s))
		}
	}
	kind, value, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	add(value)
	if strings.EqualFold(kind, "basic") {
		raw, _ := base64.StdEncoding.DecodeString(value)
		_, password, _ := strings.Cut(string(raw), ":")
		add(password)
	}
	for key, values := range req.URL.Query() {
		if key == "digest" || key == "mount" || key == "from" || key == "ns" {
			continue
		}
		for _, v := range values {
			add(v)
		}
	}
	return all
}
