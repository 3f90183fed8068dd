package main

import (
	"errors"
	"math"

	"github.com/dustin/go-humanize"
)

// byteSize is a flag for a number of bytes, written as 50GiB, 100MB or a
// plain number. Zero is not given.
type byteSize int64

// Set reads it.
func (b *byteSize) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	switch {
	case err != nil:
		return errors.New("it is a number of bytes, such as 50GiB")
	case n == 0 || n > math.MaxInt64:
		return errors.New("it is out of range")
	}
	*b = byteSize(n)
	return nil
}

// String is empty where nothing was given.
func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*b))
}

// Type names the kind of value in help texts.
func (b *byteSize) Type() string { return "size" }
