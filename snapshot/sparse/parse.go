package sparse

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// parseSegments decodes the list of segments. Every known writer uses one
// form, without blanks and with "o" before "l". A plain scan reads this form
// some thirty times faster than a JSON decoder, and a mount has to wait for
// it. Any other text is decoded as JSON.
func parseSegments(text string) ([]Segment, error) {
	if segs, ok := scanSegments(text); ok {
		return segs, nil
	}
	return decodeSegments(text)
}

// scanSegments reads the usual form. It returns false if the text has
// another form, valid or not, or too many segments.
func scanSegments(text string) ([]Segment, bool) {
	rest, ok := strings.CutPrefix(text, "[{")
	if !ok {
		return nil, false
	}
	// The shortest segment, with its separator, is 15 bytes.
	segs := make([]Segment, 0, min(len(text)/15+1, MaxSegments))
	for len(segs) < MaxSegments {
		var s Segment
		if rest, s.Offset, ok = scanNumber(rest, `"o":`); !ok {
			return nil, false
		}
		if rest, s.Length, ok = scanNumber(rest, `,"l":`); !ok {
			return nil, false
		}
		segs = append(segs, s)
		if rest == "}]" {
			return segs, true
		}
		if rest, ok = strings.CutPrefix(rest, "},{"); !ok {
			return nil, false
		}
	}
	return nil, false
}

// scanNumber cuts key and the decimal digits after it off s. It accepts up
// to 18 digits, which cannot overflow, and leaves longer numbers, signs and
// leading zeros to the JSON decoder.
func scanNumber(s, key string) (rest string, n int64, ok bool) {
	s, ok = strings.CutPrefix(s, key)
	if !ok {
		return "", 0, false
	}
	i := 0
	for i < len(s) && i < 18 && s[i] >= '0' && s[i] <= '9' {
		n = n*10 + int64(s[i]-'0')
		i++
	}
	if i == 0 || i > 1 && s[0] == '0' {
		return "", 0, false
	}
	return s[i:], n, true
}

// decodeSegments reads any JSON list of segments, one at a time, so that
// hostile text takes no more memory than MaxSegments segments.
func decodeSegments(text string) ([]Segment, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	var segs []Segment
	if tok != nil { // null is the JSON of a nil slice: no data at all
		if segs, err = decodeList(dec, tok); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: text after the list", ErrInvalid)
	}
	return segs, nil
}

func decodeList(dec *json.Decoder, first json.Token) ([]Segment, error) {
	if first != json.Delim('[') {
		return nil, fmt.Errorf("%w: not a list of segments", ErrInvalid)
	}
	var segs []Segment
	for dec.More() {
		if len(segs) == MaxSegments {
			return nil, fmt.Errorf("%w: more than %d segments", ErrInvalid, MaxSegments)
		}
		var s Segment
		if err := dec.Decode(&s); err != nil {
			return nil, fmt.Errorf("%w: segment %d: %v", ErrInvalid, len(segs), err)
		}
		segs = append(segs, s)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return segs, nil
}
