package control

import "strings"

// Map shows which parts of a file are present. It is a string of cells, each
// for Cell bytes of the file; the last may cover fewer.
type Map struct {
	Cell  int64  `json:"cell"`
	Cells string `json:"cells"`
}

// CellSize returns the cell size of a map of a file of the given size: at
// most mapCells cells, none smaller than a file system block.
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

// Letter returns the letter of a cell with missing, present but unverified,
// and verified data, as given by its arguments.
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

// Strip returns the map scaled to width letters.
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

// join returns the letter for several cells.
func join(cells string) byte {
	if strings.IndexByte(cells, Partly) >= 0 {
		return Partly
	}
	has := func(c byte) bool { return strings.IndexByte(cells, c) >= 0 }
	return Letter(has(Missing), has(Present), has(Verified))
}
