package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// span is a range of a text.
type span struct{ from, to int }

// edit replaces a span with text.
type edit struct {
	span
	text string
}

// configSpans holds the places, in one config object of an envelope, of the
// values that a tar may change.
type configSpans struct {
	open   int               // after the opening brace
	blank  string            // text between that brace and the first key
	empty  bool              // it has no keys
	values map[string][]span // by key in lower case, whatever its case in the text
	exact  map[string]bool   // keys that occur in lower case
}

// editEnvelope returns the envelope with config.name and config.description
// set unless they are "", and no other byte changed: decoding into maps and
// encoding would lose large integers and the order. A missing key is
// inserted before the others.
func editEnvelope(text []byte, name, description string) ([]byte, error) {
	if name == "" && description == "" {
		return text, nil
	}
	configs, err := findSpans(text)
	if err != nil {
		return nil, err
	}
	var edits []edit
	for _, c := range configs {
		edits = append(edits, c.edits([][2]string{{"name", name}, {"description", description}})...)
	}
	return apply(text, edits), nil
}

// edits returns the edits that set each key.
func (c *configSpans) edits(set [][2]string) []edit {
	var edits []edit
	insert := ""
	for _, kv := range set {
		key, value := kv[0], kv[1]
		if value == "" {
			continue
		}
		for _, v := range c.values[key] {
			edits = append(edits, edit{v, quote(value)})
		}
		if !c.exact[key] {
			insert += c.blank + quote(key) + ": " + quote(value) + ","
		}
	}
	if c.empty {
		insert = strings.TrimSuffix(insert, ",")
	}
	if insert != "" {
		edits = append(edits, edit{span{c.open, c.open}, insert})
	}
	return edits
}

// apply applies edits that do not overlap.
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

// quote returns s as a JSON string with as few escapes as possible.
func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string cannot fail
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// findSpans checks that the text is one strict JSON object with an object
// "config", and finds the values in it. It returns keys in another case too:
// newer cocoons take them for other keys, older ones for the same.
func findSpans(text []byte) ([]*configSpans, error) {
	if err := checkStrict(text); err != nil {
		return nil, fmt.Errorf("%s: %w", EnvelopeName, err)
	}
	exact := false
	var configs []*configSpans
	err := eachKey(text, func(key string, value span) error {
		if !strings.EqualFold(key, "config") {
			return nil
		}
		exact = exact || key == "config"
		c, err := findConfig(text, value)
		configs = append(configs, c)
		return err
	})
	if err == nil && !exact {
		err = errors.New("it has no config")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvelopeName, err)
	}
	return configs, nil
}

// findConfig returns the spans of the config object at a place.
func findConfig(text []byte, at span) (*configSpans, error) {
	c := &configSpans{open: at.from + 1, empty: true, values: map[string][]span{}, exact: map[string]bool{}}
	body := text[at.from:at.to]
	err := eachKey(body, func(key string, value span) error {
		c.empty = false
		for _, known := range []string{"name", "description"} {
			if strings.EqualFold(key, known) {
				c.values[known] = append(c.values[known], span{at.from + value.from, at.from + value.to})
			}
			c.exact[known] = c.exact[known] || key == known
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	rest := bytes.TrimLeft(body[1:], " \t\r\n")
	c.blank = string(body[1 : len(body)-len(rest)])
	return c, nil
}

// eachKey calls f for each key of text, which is valid JSON and must be an
// object.
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
