package registry

import "strings"

// The grammar of the OCI distribution spec. Names that match cannot lead out of
// their place in a URL. It is read by hand: every process of a mount parses a
// reference, and a compiled expression stays in its memory.

const (
	lower    = "abcdefghijklmnopqrstuvwxyz"
	upper    = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits   = "0123456789"
	hexes    = "abcdefABCDEF" + digits
	letters  = lower + upper + digits
	inTag    = letters + "._-"
	maxTag   = 128 // bytes
	mostPort = 5   // digits
)

// only reports whether s consists of characters of set, and is not empty.
func only(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }

// validTag reports whether s can be a tag.
func validTag(s string) bool {
	return len(s) <= maxTag && only(s, inTag) && s[0] != '.' && s[0] != '-'
}

// validRepositoryForm reports whether all components of a repository's name are
// runs of lower-case letters and digits, separated by ".", "_", "__" or hyphens.
func validRepositoryForm(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		for {
			run := len(part) - len(strings.TrimLeft(part, lower+digits))
			if run == 0 {
				return false
			}
			if part = part[run:]; part == "" {
				break
			}
			rest := strings.TrimLeft(part, "-")
			if rest == part {
				rest = strings.TrimPrefix(part[1:], "_")
				if part[0] != '_' && (part[0] != '.' || len(rest) != len(part)-1) {
					return false
				}
			}
			part = rest
		}
	}
	return true
}

// validHostForm reports whether s has the form of a host with or without a
// port. The host is a name, or an address in brackets.
func validHostForm(s string) bool {
	host, port := s, ""
	if at := strings.LastIndexByte(s, ':'); at >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:at], s[at+1:]
		if len(port) > mostPort || !only(port, digits) {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && only(inner, hexes+":.")
	}
	return only(host, inTag) && only(host[:1], letters) && only(host[len(host)-1:], letters)
}
