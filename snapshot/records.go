package snapshot

import (
	"strings"
	"unicode/utf8"
)

const (
	// paxPrefix begins the names of cocoon's records in a header.
	paxPrefix = "COCOON."

	// maxRecords bounds the unknown records of one file, in bytes: with the
	// map they fit into a header of 1 MiB.
	maxRecords = 64 << 10
)

// recordsOf returns those of cocoon's records that have no other place in
// the artifact.
func recordsOf(pax map[string]string) map[string]string {
	var records map[string]string
	for key, value := range pax {
		if !strings.HasPrefix(key, paxPrefix) || key == paxSparseMap || key == paxSparseSize {
			continue
		}
		if records == nil {
			records = map[string]string{}
		}
		records[key] = value
	}
	return records
}

// checkRecords returns an error unless a tar header and JSON can hold the
// records unchanged.
func checkRecords(records map[string]string) error {
	size := 0
	for key, value := range records {
		size += len(key) + len(value)
		switch {
		case size > maxRecords:
			return wrong("records of more than %d bytes", maxRecords)
		case len(recordsOf(map[string]string{key: value})) == 0, strings.ContainsAny(key, "=\x00"):
			return wrong("a record %q", key)
		case !utf8.ValidString(key), !utf8.ValidString(value):
			return wrong("record %q is not UTF-8", key)
		}
	}
	return nil
}
