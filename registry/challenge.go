package registry

import "strings"

// challenge is one way to authenticate, as offered by a 401.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// maxChallenges bounds the challenges read from one answer.
const maxChallenges = 8

// parseChallenges parses WWW-Authenticate headers. A header may hold several
// challenges; a syntax error ends its header.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		for h = skipCommas(h); h != "" && len(all) < maxChallenges; h = skipCommas(h) {
			var scheme string
			scheme, h = cutToken(h)
			if scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			h = c.readParams(h)
			all = append(all, c)
		}
	}
	return all
}

// readParams parses key=value pairs up to the next challenge, which is a
// token without "=", and returns the rest.
func (c *challenge) readParams(h string) string {
	for {
		rest := skipCommas(h)
		key, after := cutToken(rest)
		after = strings.TrimLeft(after, " \t")
		if key == "" || !strings.HasPrefix(after, "=") {
			return rest
		}
		var value string
		value, h = cutValue(strings.TrimLeft(after[1:], " \t"))
		key = strings.ToLower(key)
		if _, twice := c.params[key]; !twice {
			c.params[key] = value
		}
	}
}

func skipCommas(s string) string { return strings.TrimLeft(s, " \t,") }

func cutToken(s string) (token, rest string) {
	n := 0
	for n < len(s) && isTokenByte(s[n]) {
		n++
	}
	return s[:n], s[n:]
}

func isTokenByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

// cutValue splits off a token or a quoted string. An unclosed quote takes
// the rest.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		// Some registries do not quote URLs.
		if n := strings.IndexAny(s, ", \t"); n >= 0 {
			return s[:n], s[n:]
		}
		return s, ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
