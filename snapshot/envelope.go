package snapshot

import (
	"encoding/json"
	"fmt"
	"path"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// envelope is snapshot.json as far as this package must understand it.
// The text itself is what is kept.
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

// envelopeOf is the text of snapshot.json: as it was pushed, where the
// artifact kept it, else made of the config's fields.
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
