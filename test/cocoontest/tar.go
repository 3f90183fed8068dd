package cocoontest

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const (
	envelopeName = "snapshot.json"
	paxMap       = "COCOON.sparse.map"
	paxSize      = "COCOON.sparse.size"
)

type segment struct {
	Offset int64 `json:"o"`
	Length int64 `json:"l"`
}

// entry is one file as the tar had it, in the tar's order.
type entry struct {
	Name string            `json:"name"`
	Mode int64             `json:"mode"`
	PAX  map[string]string `json:"pax,omitempty"`
}

type envelope struct {
	Version int `json:"version"`
	Config  struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	} `json:"config"`
	Files []string `json:"files"`
}

// Import reads a snapshot's tar and registers it under name, or under the
// name in the tar where name is empty. What fails leaves nothing behind.
func (s Store) Import(r io.Reader, name, description string) (err error) {
	r, err = unzipped(r)
	if err != nil {
		return err
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	dir := filepath.Join(s.Dir, "snapshots", id)
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	entries, err := extract(tar.NewReader(r), filepath.Join(dir, "data"))
	if err != nil {
		return fmt.Errorf("import: extract archive: %w", err)
	}
	env, err := takeEnvelope(dir, entries)
	if err != nil {
		return err
	}
	rec := Record{ID: id, Name: env.Config.Name, Description: env.Config.Description}
	if name != "" {
		rec.Name = name
	}
	if description != "" {
		rec.Description = description
	}
	if other, findErr := s.Find(rec.Name); findErr == nil {
		return fmt.Errorf("import: snapshot name %q already in use by %s", rec.Name, filepath.Base(other))
	}
	if err := writeJSON(filepath.Join(dir, "entries.json"), entries); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "record.json"), rec)
}

func unzipped(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(2)
	if err != nil {
		return nil, fmt.Errorf("import: peek archive header: %w", err)
	}
	if magic[0] == 0x1f && magic[1] == 0x8b {
		return gzip.NewReader(b)
	}
	return b, nil
}

// extract takes an end of file for the end of the archive wherever
// archive/tar does.
func extract(tr *tar.Reader, dir string) ([]entry, error) {
	var all []entry
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue // so does cocoon with what it does not know, GNU sparse too
		}
		if filepath.Base(h.Name) != h.Name {
			return nil, fmt.Errorf("bad name %q", h.Name)
		}
		e := entry{Name: h.Name, Mode: h.Mode}
		if m, ok := h.PAXRecords[paxMap]; ok {
			e.PAX = map[string]string{paxMap: m, paxSize: h.PAXRecords[paxSize]}
		}
		if err := extractFile(tr, filepath.Join(dir, h.Name), h.Size, e); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
}

func extractFile(r io.Reader, path string, size int64, e entry) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	segs := []segment{{0, size}}
	apparent := size
	if e.PAX != nil {
		if err := json.Unmarshal([]byte(e.PAX[paxMap]), &segs); err != nil {
			return fmt.Errorf("sparse map of %s: %w", e.Name, err)
		}
		if apparent, err = strconv.ParseInt(e.PAX[paxSize], 10, 64); err != nil {
			return fmt.Errorf("sparse size of %s: %w", e.Name, err)
		}
	}
	if err := f.Truncate(apparent); err != nil {
		return err
	}
	for _, s := range segs {
		if _, err := io.CopyN(io.NewOffsetWriter(f, s.Offset), r, s.Length); err != nil {
			return err
		}
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n != 0 {
		return errors.Join(err, fmt.Errorf("%s: %d bytes past its map", e.Name, n))
	}
	return f.Close()
}

// takeEnvelope moves snapshot.json out of the data and checks it.
func takeEnvelope(dir string, entries []entry) (*envelope, error) {
	path := filepath.Join(dir, "data", envelopeName)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("invalid snapshot archive: %w", err)
	}
	var env envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return nil, fmt.Errorf("parse %s: %w", envelopeName, err)
	}
	if env.Version != 1 {
		return nil, fmt.Errorf("unsupported snapshot archive version %d", env.Version)
	}
	for _, name := range env.Files {
		if !slices.ContainsFunc(entries, func(e entry) bool { return e.Name == name }) {
			return nil, fmt.Errorf("archive lacks %s", name)
		}
	}
	return &env, os.Rename(path, filepath.Join(dir, envelopeName))
}

// Export writes the named snapshot as a tar: the envelope first, then the
// files as they were imported.
func (s Store) Export(name string, w io.Writer) error {
	dir, err := s.Find(name)
	if err != nil {
		return err
	}
	var entries []entry
	raw, err := os.ReadFile(filepath.Join(dir, "entries.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &entries); err != nil {
		return err
	}
	if os.Getenv(FailEnv) == "export" {
		w = &shortWriter{w: w, left: 1 << 20}
	}
	tw := tar.NewWriter(w)
	for _, e := range entries {
		path := filepath.Join(dir, "data", e.Name)
		if e.Name == envelopeName {
			path = filepath.Join(dir, envelopeName)
		}
		if err := exportFile(tw, path, e); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	return tw.Close()
}

func exportFile(tw *tar.Writer, path string, e entry) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	segs := []segment{{0, st.Size()}}
	if e.PAX != nil {
		if err := json.Unmarshal([]byte(e.PAX[paxMap]), &segs); err != nil {
			return err
		}
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: e.Name, Mode: e.Mode, PAXRecords: e.PAX}
	for _, s := range segs {
		h.Size += s.Length
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	for _, s := range segs {
		if _, err := io.Copy(tw, io.NewSectionReader(f, s.Offset, s.Length)); err != nil {
			return err
		}
	}
	return nil
}

// shortWriter fails after a number of bytes, as a disk with a bad sector
// under the exporter would make it.
type shortWriter struct {
	w    io.Writer
	left int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	if len(p) > s.left {
		n, _ := s.w.Write(p[:s.left])
		s.left = 0
		return n, errors.New("read cow.raw: input/output error")
	}
	s.left -= len(p)
	return s.w.Write(p)
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}
