package control

import "strings"

// Map shows where a file has what. It is a string of cells, each of which
// stands for Cell bytes of the file; the last may stand for fewer.
type Map struct {
	Cell  int64  `json:"cell"`
	Cells string `json:"cells"`
}

// CellSize is the size of a map's cells for a file of that size: at most
// mapCells cells, none smaller than a block of a file system.
func CellSize(size int64) int64 {
	return max(smallestCell, (size+mapCells-1)/mapCells)
}

const (
	mapCells     = 2048
	smallestCell = 4096
)

// Letters of a map's cells.
const (
	Hole     = '.'
	Missing  = '-' // data, all of it missing
	Partly   = '+' // data, some of it present
	Present  = 'o' // data, all of it present, not all verified
	Verified = '#' // data, all of it present and verified
)

// Letter is that of a cell in which some data is missing, some is present
// but not verified, some is verified.
func Letter(missing, present, verified bool) byte {
	switch {
	case missing && (present || verified):
		return Partly
	case missing:
		return Missing
	case present:
		return Present
	case verified:
		return Verified
	}
	return Hole
}

// Strip is the map as width letters.
func (m *Map) Strip(width int) string {
	n := len(m.Cells)
	if n == 0 {
		return strings.Repeat(string(Hole), width)
	}
	strip := make([]byte, width)
	for i := range strip {
		from := i * n / width
		to := max(from+1, ((i+1)*n+width-1)/width)
		strip[i] = join(m.Cells[from:to])
	}
	return string(strip)
}

// join is the letter of several cells.
func join(cells string) byte {
	if strings.IndexByte(cells, Partly) >= 0 {
		return Partly
	}
	has := func(c byte) bool { return strings.IndexByte(cells, c) >= 0 }
	return Letter(has(Missing), has(Present), has(Verified))
}
