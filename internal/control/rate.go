package control

import "time"

// rateOver is the time over which rates are measured.
const rateOver = 200 * time.Millisecond

// withRates returns status extended by rates. While bytes are fetched, it
// calls status twice.
func withRates(status func() Mount) func() Mount {
	return func() Mount {
		before, began := status(), time.Now()
		if !before.fetching() {
			return before
		}
		time.Sleep(rateOver)
		after := status()
		after.rate(before, time.Since(began))
		return after
	}
}

func (m *Mount) fetching() bool {
	for _, f := range m.Files {
		if f.Fetching {
			return true
		}
	}
	return false
}

// rate sets the rates from an earlier status, taken d ago.
func (m *Mount) rate(before Mount, d time.Duration) {
	m.Network.Rate = perSecond(m.Network.Bytes-before.Network.Bytes, d)
	for i := range m.Mirrors {
		if i < len(before.Mirrors) && before.Mirrors[i].Host == m.Mirrors[i].Host {
			m.Mirrors[i].Rate = perSecond(m.Mirrors[i].Bytes-before.Mirrors[i].Bytes, d)
		}
	}
	for i := range m.Files { // the fetch may have ended meanwhile
		if i < len(before.Files) && before.Files[i].Fetching {
			m.Files[i].Fetching = true
		}
	}
}

func perSecond(n int64, d time.Duration) int64 { return int64(float64(n) / d.Seconds()) }
