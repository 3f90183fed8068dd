package snapshot

import (
	"archive/tar"
	"encoding/hex"
	"errors"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// passGit reports whether hdr is the header that git archive begins a tar
// with: global records with the commit as a comment. It is passed over, as it
// says nothing about files.
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

// gitError returns what is wrong with an export: where a git archive has no
// envelope, that is all there is to say about its other entries.
func (r *exportReader) gitError(err error) error {
	if r.commit == "" || r.text != nil || !errors.Is(err, layout.ErrContent) {
		return err
	}
	return &inputError{wrong("it is a git archive, of commit %s, and no export of cocoon: it has no %s", r.commit, EnvelopeName)}
}
