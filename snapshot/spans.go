package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// span is a stretch of a text.
type span struct{ from, to int }

// edit puts text in a span's place.
type edit struct {
	span
	text string
}

// configSpans is where, in one config object of an envelope, the values
// stand that a tar may change.
type configSpans struct {
	open   int               // after the brace that opens it
	blank  string            // what stands between that brace and the first key
	empty  bool              // it has no keys
	values map[string][]span // in whatever case their keys are
	exact  map[string]bool   // which keys are there in lower case
}

// editEnvelope returns the envelope with config.name and
// config.description set where they are not "", and not one other byte
// changed: a decode into maps and back would lose large integers and the
// order. A key that is missing is put in front of the others.
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

// edits sets each key that has a value to set.
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
// "config" in it, and finds the values in that. What is there twice
// counts twice, since readers differ on which they take. So does what is
// there in another case, which Go's readers take for the same.
func findSpans(text []byte) ([]*configSpans, error) {
	if !json.Valid(text) {
		return nil, errors.New(EnvelopeName + " is not JSON")
	}
	var configs []*configSpans
	err := eachKey(text, func(key string, value span) error {
		if !strings.EqualFold(key, "config") {
			return nil
		}
		c, err := findConfig(text, value)
		configs = append(configs, c)
		return err
	})
	if err == nil && len(configs) == 0 {
		err = errors.New("it has no config")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvelopeName, err)
	}
	return configs, nil
}

// findConfig takes the spans of the config object at a place.
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
