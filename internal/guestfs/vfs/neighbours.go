package vfs

import "sync"

const (
	// maxNeighbours bounds the inodes of a directory that are remembered.
	maxNeighbours = 1 << 16
	// neighboursWindow is how many of them are asked for at once.
	neighboursWindow = 4096
)

// Neighbours are the inodes of the directory that was read last, in its order.
// Whoever stats one of them will want those that follow, too.
type Neighbours struct {
	mu       sync.Mutex
	position map[uint64]int
	inodes   []uint64
	asked    int // so many have been asked for
}

// Remember replaces the neighbours by those whose inodes list visits until
// add returns false.
func (n *Neighbours) Remember(list func(add func(inode uint64) bool) error) error {
	position, inodes := map[uint64]int{}, []uint64(nil)
	err := list(func(inode uint64) bool {
		position[inode] = len(inodes)
		inodes = append(inodes, inode)
		return len(inodes) < maxNeighbours
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.position, n.inodes, n.asked = position, inodes, 0
	return nil
}

// Next returns an inode's neighbours from itself on that have not been asked
// for, and nothing if it is not one or was asked for before.
func (n *Neighbours) Next(inode uint64) []uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.position[inode]
	if !ok || at < n.asked {
		return nil
	}
	end := min(len(n.inodes), at+neighboursWindow)
	n.asked = end
	return n.inodes[at:end]
}
