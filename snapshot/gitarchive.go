package snapshot

import (
	"archive/tar"
	"encoding/hex"
	"errors"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// passGit reports whether hdr is the first header of a git archive: global
// records with the commit as a comment. It is skipped, because it describes
// no file.
func (r *exportReader) passGit(hdr *tar.Header) bool {
	if hdr.Typeflag != tar.TypeXGlobalHeader || len(r.names) > 0 || r.commit != "" || len(hdr.PAXRecords) != 1 {
		return false
	}
	commit := hdr.PAXRecords["comment"]
	if raw, err := hex.DecodeString(commit); err != nil || len(raw) != 20 && len(raw) != 32 {
		return false
	}
	r.commit = commit
	return true
}

// gitError returns the error of a bad export. For a git archive without an
// envelope, it says only that, and nothing about other entries.
func (r *exportReader) gitError(err error) error {
	if r.commit == "" || r.text != nil || !errors.Is(err, layout.ErrContent) {
		return err
	}
	return &inputError{wrong("it is a git archive, of commit %s, and no export of cocoon: it has no %s", r.commit, EnvelopeName)}
}
