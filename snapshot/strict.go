package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// checkStrict checks that text is JSON of which all readers read the same:
// UTF-8, also by its escapes, and no object with a key twice. cocoon refuses
// anything else.
func checkStrict(text []byte) error {
	switch {
	case !utf8.Valid(text):
		return errors.New("it is not UTF-8")
	case !json.Valid(text):
		return errors.New("it is not JSON")
	case halfEscape(text):
		return errors.New("it has an escape that is half a character")
	}
	return uniqueKeys(text)
}

// halfEscape reports whether a \u escape of valid JSON is one half of a
// surrogate pair without the other.
func halfEscape(text []byte) bool {
	for {
		at := bytes.IndexByte(text, '\\')
		if at < 0 {
			return false
		}
		first, ok := unicodeEscape(text[at:])
		text = text[at+2:]
		if !ok || !utf16.IsSurrogate(first) {
			continue
		}
		second, ok := unicodeEscape(text[4:])
		if !ok || utf16.DecodeRune(first, second) == utf8.RuneError {
			return true
		}
		text = text[10:]
	}
}

// unicodeEscape returns the value of the \u escape that text begins with.
func unicodeEscape(text []byte) (rune, bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return rune(n), err == nil
}

// uniqueKeys returns an error if an object in valid JSON has a key twice.
func uniqueKeys(text []byte) error {
	type level struct {
		keys map[string]bool // nil in an array
		key  bool            // a key comes next
	}
	var open []level
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if tok == json.Delim('}') || tok == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if n := len(open) - 1; n >= 0 && open[n].keys != nil {
			if key, ok := tok.(string); ok && open[n].key {
				if open[n].keys[key] {
					return fmt.Errorf("it has the key %q twice", key)
				}
				open[n].keys[key] = true
				open[n].key = false
				continue
			}
			open[n].key = true
		}
		switch tok {
		case json.Delim('{'):
			open = append(open, level{map[string]bool{}, true})
		case json.Delim('['):
			open = append(open, level{})
		}
	}
}
