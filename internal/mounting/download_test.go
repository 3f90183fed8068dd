package mounting

import (
	"testing"
	"time"
)

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 seconds", 90 * time.Second: "90 seconds", 90 * time.Minute: "90 minutes",
		30 * time.Hour: "30 hours", 100 * time.Hour: "4 days",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
