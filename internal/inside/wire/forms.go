package wire

// Volume appends a volume.
func (e *Encoder) Volume(v Volume) {
	e.Num(uint64(v.Number))
	e.Text(v.Name, MaxName)
	e.Text(v.Type, MaxName)
	e.Text(v.Label, MaxName)
	e.Int(v.Offset)
	e.Int(v.Size)
}

// Volume parses a volume.
func (d *Decoder) Volume() Volume {
	return Volume{
		Number: int(d.NumBelow(1 << 16)),
		Name:   d.Text(MaxName), Type: d.Text(MaxName), Label: d.Text(MaxName),
		Offset: d.Int(), Size: d.Int(),
	}
}

// Description appends a description.
func (e *Encoder) Description(v Description) {
	for _, s := range []string{v.Type, v.Label, v.UUID, v.State} {
		e.Text(s, MaxText)
	}
	e.Int(v.Size)
	e.Bool(v.HasUpper)
}

// Description parses a description.
func (d *Decoder) Description() Description {
	return Description{
		Type: d.Text(MaxText), Label: d.Text(MaxText), UUID: d.Text(MaxText), State: d.Text(MaxText),
		Size: d.Int(), HasUpper: d.Bool(),
	}
}

// File appends a file.
func (e *Encoder) File(f *File) {
	e.Text(f.Name, MaxPath)
	e.Num(f.Inode)
	e.B = append(e.B, f.Type)
	e.Bool(f.Stated)
	for _, n := range []uint64{uint64(f.Mode), uint64(f.Links), uint64(f.UID), uint64(f.GID), uint64(f.Major), uint64(f.Minor)} {
		e.Num(n)
	}
	e.Int(f.Size)
	e.Int(f.Blocks)
	e.Time(f.Modified)
	e.Time(f.Changed)
	e.Time(f.Accessed)
	e.Text(f.Target, MaxPath)
	e.Bool(f.Whiteout)
	e.Bool(f.Opaque)
	e.Bool(f.Metacopy)
	e.Text(f.Broken, MaxText)
}

// File parses a file.
func (d *Decoder) File() File {
	f := File{Name: d.Text(MaxPath), Inode: d.Num()}
	if len(d.B) == 0 {
		d.fail()
		return f
	}
	f.Type, d.B = d.B[0], d.B[1:]
	f.Stated = d.Bool()
	f.Mode = uint16(d.NumBelow(1 << 12))
	for _, n := range []*uint32{&f.Links, &f.UID, &f.GID, &f.Major, &f.Minor} {
		*n = uint32(d.NumBelow(1 << 32))
	}
	f.Size, f.Blocks = d.Int(), d.Int()
	f.Modified, f.Changed, f.Accessed = d.Time(), d.Time(), d.Time()
	f.Target = d.Text(MaxPath)
	f.Whiteout, f.Opaque, f.Metacopy = d.Bool(), d.Bool(), d.Bool()
	f.Broken = d.Text(MaxText)
	return f
}
