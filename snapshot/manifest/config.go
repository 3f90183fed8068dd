package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
)

// maxValues bounds the values in a JSON text that is decoded: a value of two
// bytes can take over a hundred bytes in memory. Artifacts with several
// thousand layers or chunks have some ten thousand values.
const maxValues = 1 << 18

var errValues = errors.New("it has more values than any artifact needs")

// checkValues roughly counts a text's values before they are decoded. It
// ignores the contents of strings.
func checkValues(raw []byte) error {
	n, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			if n++; n > maxValues {
				return errValues
			}
		}
	}
	return nil
}

// ParseConfig decodes the config blob of a snapshot.
func ParseConfig(raw []byte) (*SnapshotConfig, error) {
	if err := checkValues(raw); err != nil {
		return nil, err
	}
	var cfg SnapshotConfig
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, err
	}
	if cfg.Envelope == nil && cfg.Engine == nil {
		var err error
		if cfg.Others, err = otherObjects(raw); err != nil {
			return nil, err
		}
	}
	return &cfg, nil
}

// maxObject bounds an object that otherObjects returns, in bytes, as that of an
// envelope is bounded.
const maxObject = 256 << 10

// object is a JSON object of at most maxObject bytes, or nil for every other
// value, of which no copy is made.
type object json.RawMessage

func (o *object) UnmarshalJSON(value []byte) error {
	if len(value) <= maxObject && value[0] == '{' {
		*o = bytes.Clone(value)
	}
	return nil
}

// otherObjects returns the values of a config blob's keys that SnapshotConfig
// does not have, if they are objects of at most maxObject bytes.
func otherObjects(raw []byte) (map[string]json.RawMessage, error) {
	var all map[string]object
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	others := map[string]json.RawMessage{}
	for key, value := range all {
		if value != nil && !known[strings.ToLower(key)] {
			others[key] = json.RawMessage(value)
		}
	}
	return others, nil
}

// known holds SnapshotConfig's keys in lower case.
var known = func() map[string]bool {
	keys := map[string]bool{}
	for f := range reflect.TypeFor[SnapshotConfig]().Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		keys[strings.ToLower(key)] = true
	}
	return keys
}()
