package snapshot

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

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
		case strings.EqualFold(key, "files"):
			if into(&e.Files)(value) != nil {
				odd = append(odd, "files")
			}
		case strings.EqualFold(key, "config"):
			return eachKey(value, func(key string, at span) error {
				key = strings.ToLower(key)
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

// envelopeOf returns the text of snapshot.json: as it was pushed if the
// artifact has it, else made of the config's fields.
func envelopeOf(cfg *manifest.SnapshotConfig, repo string) ([]byte, error) {
	if cfg.Envelope == nil {
		return rebuildEnvelope(cfg, path.Base(repo))
	}
	text := []byte(*cfg.Envelope)
	if len(text) > MaxEnvelope {
		return nil, wrong("envelope of %d bytes, at most %d", len(text), MaxEnvelope)
	}
	if _, err := findSpans(text); err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	return text, nil
}

func rebuildEnvelope(cfg *manifest.SnapshotConfig, name string) ([]byte, error) {
	e := envelope{Version: 1, Config: envelopeConfig{
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
