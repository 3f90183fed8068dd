package main

import (
	"errors"
	"math"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// byteSize is a flag for a number of bytes, written as 50GiB, 100MB or a
// plain number. Zero means not set.
type byteSize int64

// Set implements pflag.Value.
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

// String returns "" if the flag is not set.
func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*b))
}

// Type returns the placeholder in help texts.
func (b *byteSize) Type() string { return "size" }

// age is a flag for a duration, written as 7d, 2w or 12h30m. Zero means not
// set.
type age time.Duration

var ageForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:(\d{1,5})w)?(?:(\d{1,5})d)?(.*)$`)
})

// Set implements pflag.Value.
func (a *age) Set(s string) error {
	parts := ageForm().FindStringSubmatch(s)
	var sum time.Duration
	for i, unit := range []time.Duration{7 * 24 * time.Hour, 24 * time.Hour} {
		if n, err := strconv.ParseInt(parts[i+1], 10, 64); err == nil {
			sum += time.Duration(n) * unit
		}
	}
	if parts[3] != "" {
		d, err := time.ParseDuration(parts[3])
		if err != nil {
			return errors.New("it is a time span, such as 7d or 12h")
		}
		sum += d
	}
	if sum <= 0 {
		return errors.New("it is a time span, such as 7d or 12h")
	}
	*a = age(sum)
	return nil
}

func (a *age) duration() time.Duration { return time.Duration(*a) }

// String returns "" if the flag is not set.
func (a *age) String() string {
	if *a == 0 {
		return ""
	}
	return a.duration().String()
}

// Type returns the placeholder in help texts.
func (a *age) Type() string { return "span" }
