package volumes

import (
	"fmt"
	"strconv"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Bounds on LVM's text: the size of all of a disk's (an area has 1 MiB by
// default), how deep its sections are nested (volume groups need 4) and how
// many values each has.
const (
	maxText   = 4 << 20
	maxNested = 8
	maxValues = 1 << 17
)

// section is a section of LVM's text: values are strings, int64s, lists of
// them, and sections.
type section map[string]any

func (s section) text(key string) string   { v, _ := s[key].(string); return v }
func (s section) number(key string) int64  { v, _ := s[key].(int64); return v }
func (s section) list(key string) []any    { v, _ := s[key].([]any); return v }
func (s section) below(key string) section { v, _ := s[key].(section); return v }

// parser reads "key = value" and "key { ... }", with comments.
type parser struct {
	b      []byte
	at     int
	values int
}

func parseText(b []byte) (section, error) {
	p := &parser{b: b}
	return p.section(0)
}

func (p *parser) fail(what string) error {
	return fmt.Errorf("%w: LVM metadata, byte %d: %s", vfs.ErrDamaged, p.at, what)
}

// next returns the next token: a word, a string in quotes with its first
// quote, or one character. It is empty at the end.
func (p *parser) next() string {
	for p.at < len(p.b) {
		switch c := p.b[p.at]; c {
		case ' ', '\t', '\n', '\r', 0:
			p.at++
			continue
		case '#':
			for p.at < len(p.b) && p.b[p.at] != '\n' {
				p.at++
			}
			continue
		case '"':
			return p.quoted()
		case '{', '}', '=', '[', ']', ',':
			p.at++
			return string(c)
		}
		start := p.at
		for p.at < len(p.b) && word(p.b[p.at]) {
			p.at++
		}
		if p.at == start {
			p.at++ // an odd character is a word of its own
		}
		return string(p.b[start:p.at])
	}
	return ""
}

func word(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '_' || c == '-' || c == '.' || c == '+' || c == '/'
}

func (p *parser) quoted() string {
	text := []byte{'"'}
	for p.at++; p.at < len(p.b); p.at++ {
		switch c := p.b[p.at]; {
		case c == '"':
			p.at++
			return string(text)
		case c == '\\' && p.at+1 < len(p.b):
			p.at++
			text = append(text, p.b[p.at])
		default:
			text = append(text, c)
		}
	}
	return string(text)
}

// section reads up to the closing brace, or to the end at depth 0.
func (p *parser) section(depth int) (section, error) {
	if depth > maxNested {
		return nil, p.fail("nested too deep")
	}
	s := section{}
	for {
		key := p.next()
		switch {
		case key == "" && depth == 0, key == "}" && depth > 0:
			return s, nil
		case key == "" || !word(key[0]):
			return nil, p.fail("no name where one should be")
		}
		if p.values++; p.values > maxValues {
			return nil, p.fail("too many values")
		}
		var err error
		switch p.next() {
		case "{":
			s[key], err = p.section(depth + 1)
		case "=":
			s[key], err = p.value()
		default:
			err = p.fail("neither a section nor a value")
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) value() (any, error) {
	token := p.next()
	if token != "[" {
		return p.scalar(token)
	}
	var list []any
	for {
		token := p.next()
		switch token {
		case "]":
			return list, nil
		case ",":
			continue
		}
		if p.values++; p.values > maxValues {
			return nil, p.fail("too many values")
		}
		v, err := p.scalar(token)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

func (p *parser) scalar(token string) (any, error) {
	if token == "" {
		return nil, p.fail("ends early")
	}
	if token[0] == '"' {
		return token[1:], nil
	}
	if n, err := strconv.ParseInt(token, 10, 64); err == nil {
		return n, nil
	}
	if _, err := strconv.ParseFloat(token, 64); err == nil {
		return token, nil
	}
	return nil, p.fail("neither a text nor a number")
}
