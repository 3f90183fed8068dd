package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// span is a stretch of a text.
type span struct{ from, to int }

// edit puts text in a span's place.
type edit struct {
	span
	text string
}

// spans is where the values that a tar may change stand in an envelope.
type spans struct {
	open   int    // after the brace that opens config
	blank  string // what stands between that brace and the first key
	empty  bool   // config has no keys
	values map[string][]span
}

// editEnvelope returns the envelope with config.name and
// config.description set where they are not "", and not one other byte
// changed: a decode into maps and back would lose large integers and the
// order. A key that is missing is put in front of the others.
func editEnvelope(text []byte, name, description string) ([]byte, error) {
	if name == "" && description == "" {
		return text, nil
	}
	s, err := findSpans(text)
	if err != nil {
		return nil, err
	}
	var edits []edit
	insert := ""
	for _, kv := range [][2]string{{"name", name}, {"description", description}} {
		key, value := kv[0], kv[1]
		if value == "" {
			continue
		}
		at := s.values[key]
		for _, v := range at {
			edits = append(edits, edit{v, quote(value)})
		}
		if len(at) == 0 {
			insert += s.blank + quote(key) + ": " + quote(value) + ","
		}
	}
	if insert != "" {
		if s.empty {
			insert = insert[:len(insert)-1]
		}
		edits = append(edits, edit{span{s.open, s.open}, insert})
	}
	return apply(text, edits), nil
}

// apply makes edits that do not overlap.
func apply(text []byte, edits []edit) []byte {
	slices.SortFunc(edits, func(a, b edit) int { return a.from - b.from })
	var out bytes.Buffer
	at := 0
	for _, e := range edits {
		out.Write(text[at:e.from])
		out.WriteString(e.text)
		at = e.to
	}
	out.Write(text[at:])
	return out.Bytes()
}

// quote is s as a JSON string, with nothing escaped that need not be.
func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string cannot fail
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// findSpans checks that the text is one JSON object with an object
// "config" in it, and finds the values in that. A key that is there
// twice counts twice, since readers differ on which they take; of two
// configs the last counts, as it does for cocoon, and keys in the others
// are changed too.
func findSpans(text []byte) (*spans, error) {
	if !json.Valid(text) {
		return nil, errors.New(EnvelopeName + " is not JSON")
	}
	s := &spans{values: map[string][]span{}}
	found := false
	err := eachKey(text, func(key string, value span) error {
		if key != "config" {
			return nil
		}
		found = true
		return s.config(text, value)
	})
	if err == nil && !found {
		err = errors.New("it has no config")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvelopeName, err)
	}
	return s, nil
}

// config takes the spans of one config object.
func (s *spans) config(text []byte, at span) error {
	body := text[at.from:at.to]
	s.empty = true
	err := eachKey(body, func(key string, value span) error {
		s.empty = false
		if key == "name" || key == "description" {
			s.values[key] = append(s.values[key], span{at.from + value.from, at.from + value.to})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	s.open = at.from + 1
	rest := bytes.TrimLeft(body[1:], " \t\r\n")
	s.blank = string(body[1 : len(body)-len(rest)])
	return nil
}

// eachKey calls f for each key of the JSON object that text, which is
// valid JSON, must be.
func eachKey(text []byte, f func(key string, value span) error) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.Join(errors.New("it is not an object"), err)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		end := int(dec.InputOffset())
		if err := f(key.(string), span{end - len(value), end}); err != nil {
			return err
		}
	}
	return nil
}
