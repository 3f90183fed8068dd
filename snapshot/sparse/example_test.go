package sparse_test

import (
	"fmt"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// A map says where a sparse file's data lies. The payload is the data without
// the holes between.
func Example() {
	m, err := sparse.Parse(`[{"o":0,"l":8192},{"o":65536,"l":4096}]`, 1<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("size", m.Size(), "data", m.DataSize())
	next, _ := m.SeekData(8192)
	fmt.Println("the next data after 8192 is at", next)
	for run := range m.Payload(8000, 400) {
		fmt.Printf("payload %d: %d bytes at %d of the file\n", run.Payload, run.Length, run.Offset)
	}
	// Output:
	// size 1048576 data 12288
	// the next data after 8192 is at 65536
	// payload 8000: 192 bytes at 8000 of the file
	// payload 8192: 208 bytes at 65536 of the file
}
