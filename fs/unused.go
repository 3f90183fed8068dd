package fs

// A file that is complete on disk is read by the kernel itself from the next
// open on, which drops the pages that the mount has of it. Until then they would be
// in memory for nobody.

// DropUnused drops the mount's pages of a file that nobody has open, if its next
// open is in passthrough mode. It returns at once.
func (m *Mounted) DropUnused(name string) {
	if n := m.tree.byName[name]; n != nil {
		n.open.Lock()
		defer n.open.Unlock()
		m.tree.dropUnused(n)
	}
}

// dropUnused is DropUnused. It reports whether the pages are dropped. The caller
// holds n.open.
func (t *tree) dropUnused(n *node) bool {
	use, _ := t.handles.usage(n.ino)
	if t.drop == nil || n.bare.Load() || use != (Usage{}) || n.noBacking || !t.backing.Load() {
		return false
	}
	file, ok := n.Content.Backing()
	if !ok || t.register(n, file) == 0 {
		return false
	}
	t.dropBacking(n)
	n.bare.Store(true)
	t.drop(n.ino, wholeFile)
	if c, ok := n.Content.(Taker); ok {
		c.Untaken()
	}
	return true
}

// filled notes that the mount gets pages of n.
func (n *node) filled() {
	if n.bare.Load() {
		n.bare.Store(false)
	}
}
