package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// envelope is the part of snapshot.json that this package uses. The text
// itself is stored.
type envelope struct {
	Version int            `json:"version"`
	Config  envelopeConfig `json:"config"`
	Files   []string       `json:"files,omitempty"` // newer cocoons: names of the files beside it
}

type envelopeConfig struct {
	ID           string              `json:"id,omitempty"`
	Name         string              `json:"name"`
	Description  string              `json:"description,omitempty"`
	Image        string              `json:"image,omitempty"`
	ImageDigest  string              `json:"image_digest,omitempty"`
	ImageType    string              `json:"image_type,omitempty"`
	ImageBlobIDs map[string]struct{} `json:"image_blob_ids,omitempty"`
	Hypervisor   string              `json:"hypervisor,omitempty"`
	CPU          int                 `json:"cpu,omitempty"`
	Memory       int64               `json:"memory,omitempty"`
	Storage      int64               `json:"storage,omitempty"`
	NICs         int                 `json:"nics,omitempty"`
	Network      string              `json:"network,omitempty"`
	Windows      bool                `json:"windows,omitempty"`
}

// decode decodes a text that findSpans has accepted. It leaves out keys
// whose values have another type than cocoon writes, and returns them; the
// text still has them.
func (e *envelope) decode(text []byte) (odd []string, err error) {
	c := &e.Config
	config := map[string]func([]byte) error{
		"id": into(&c.ID), "name": into(&c.Name), "description": into(&c.Description),
		"image": into(&c.Image), "image_digest": into(&c.ImageDigest), "image_type": into(&c.ImageType), "image_blob_ids": into(&c.ImageBlobIDs),
		"hypervisor": into(&c.Hypervisor), "cpu": into(&c.CPU), "memory": into(&c.Memory), "storage": into(&c.Storage),
		"nics": into(&c.NICs), "network": into(&c.Network), "windows": into(&c.Windows),
	}
	err = eachKey(text, func(key string, at span) error {
		value := text[at.from:at.to]
		switch {
		case key == "files":
			if into(&e.Files)(value) != nil {
				odd = append(odd, "files")
			}
		case key == "config":
			return eachKey(value, func(key string, at span) error {
				if set := config[key]; set != nil && set(value[at.from:at.to]) != nil {
					odd = append(odd, "config."+key)
				}
				return nil
			})
		}
		return nil
	})
	return odd, err
}

// into returns a function that decodes a value into to, or leaves to
// unchanged.
func into[T any](to *T) func([]byte) error {
	return func(value []byte) error {
		var v T
		if err := json.Unmarshal(value, &v); err != nil {
			return err
		}
		*to = v
		return nil
	}
}

// envelopeOf returns the text of snapshot.json, with names as the names of the
// artifact's files: the text that the artifact kept, else one made of the
// config object that it kept, else of the config blob's fields. A text whose
// list of files has a name that is not among names is wrong: cocoon would take
// the snapshot for cut.
func envelopeOf(cfg *manifest.SnapshotConfig, repo string, names []string) ([]byte, error) {
	var text []byte
	var err error
	switch engine := engineOf(cfg); {
	case cfg.Envelope != nil:
		text = []byte(*cfg.Envelope)
	case engine != nil:
		text, err = engineEnvelope(engine, path.Base(repo), names)
	default:
		return rebuildEnvelope(cfg, path.Base(repo), names)
	}
	if err != nil {
		return nil, err
	}
	if len(text) > MaxEnvelope {
		return nil, wrong("envelope of %d bytes, at most %d", len(text), MaxEnvelope)
	}
	if _, err := findSpans(text); err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	var e envelope
	if _, err := e.decode(text); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", EnvelopeName, layout.ErrContent, err)
	}
	for _, name := range e.Files {
		if name != EnvelopeName && !slices.Contains(names, name) {
			return nil, wrong("%s names a file %q that the artifact does not have", EnvelopeName, name)
		}
	}
	return text, nil
}

// engineOf returns the config object that the config blob keeps, or nil. The
// key is engine; if the blob lacks it, the one other object that agrees with
// the blob's fields is taken, whatever its key.
func engineOf(cfg *manifest.SnapshotConfig) json.RawMessage {
	if cfg.Engine != nil {
		return cfg.Engine
	}
	var found json.RawMessage
	for _, value := range cfg.Others {
		if !agrees(value, cfg) {
			continue
		}
		if found != nil {
			return nil
		}
		found = value
	}
	return found
}

// agrees reports whether a JSON object is the config object of the snapshot
// that cfg describes.
func agrees(object json.RawMessage, cfg *manifest.SnapshotConfig) bool {
	var e envelope
	odd, err := e.decode(slices.Concat([]byte(`{"config":`), object, []byte(`}`)))
	c := &e.Config
	return err == nil && len(odd) == 0 && (c.ID != "" || c.CPU != 0 && c.Memory != 0) &&
		c.ID == cfg.SnapshotID && c.Hypervisor == cfg.Hypervisor &&
		c.CPU == cfg.CPU && c.Memory == cfg.Memory && c.Storage == cfg.Storage
}

// engineEnvelope makes a text around a config object, and keeps the object's
// order and numbers. The object gets a name if it has none.
func engineEnvelope(engine json.RawMessage, name string, files []string) ([]byte, error) {
	if len(engine) > MaxEnvelope {
		return nil, wrong("config object of %d bytes, at most %d", len(engine), MaxEnvelope)
	}
	list, err := json.Marshal(files)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", EnvelopeName, err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, fmt.Appendf(nil, `{"version":1,"config":%s,"files":%s}`, engine, list), "", "  "); err != nil {
		return nil, wrong("config object: %v", err)
	}
	text := append(out.Bytes(), '\n')
	configs, err := findSpans(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	if configs[0].exact["name"] {
		return text, nil
	}
	return editEnvelope(text, name, "")
}

func rebuildEnvelope(cfg *manifest.SnapshotConfig, name string, files []string) ([]byte, error) {
	e := envelope{Version: 1, Files: files, Config: envelopeConfig{
		ID: cfg.SnapshotID, Name: name, Description: cfg.Description,
		Image: cfg.Image, ImageDigest: cfg.ImageDigest, ImageType: cfg.ImageType, ImageBlobIDs: cfg.ImageBlobIDs,
		Hypervisor: cfg.Hypervisor, CPU: cfg.CPU, Memory: cfg.Memory, Storage: cfg.Storage,
		NICs: cfg.NICs, Network: cfg.Network, Windows: cfg.Windows,
	}}
	text, err := json.MarshalIndent(&e, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", EnvelopeName, err)
	}
	return append(text, '\n'), nil
}

// engineText returns the config object of an envelope that findSpans has
// accepted.
func engineText(text []byte) (engine json.RawMessage, err error) {
	err = eachKey(text, func(key string, at span) error {
		if key == "config" {
			engine = text[at.from:at.to]
		}
		return nil
	})
	return engine, err
}
