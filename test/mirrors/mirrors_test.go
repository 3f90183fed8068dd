package mirrors

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/tier"
)

// siteEnv is set by make site: all caches are tried, with up to 32 mounts.
const siteEnv = "EPOCHFS_SITE"

// sitePages is how many pages each of its nodes reads.
const sitePages = 1000

// most is how much more the registry may send to several nodes behind a
// cache of slices than to one.
const most = 1.25

// Several nodes that start one snapshot by way of nginx cost the registry
// little more than one does, and no byte is wrong.
func TestNginx(t *testing.T) {
	tier.Long(t, "runs nginx")
	t.Parallel()
	m, page, pages := start(t, 32<<20, 60)
	u := newUpstream(t, m)
	one := u.starts(t, way{mirror: u.nginx(t)}, 1, page, pages)
	few := u.starts(t, way{u.nginx(t), true}, 4, page, pages)
	lazily(t, u, one, few, 2) // on a machine that has much to do, one or the other waits too long for the cache
}

// So it is when the registry sends elsewhere for its blobs, where its
// credentials do not go.
func TestNginxFollows(t *testing.T) {
	tier.Long(t, "runs nginx")
	t.Parallel()
	m, page, pages := start(t, 32<<20, 60)
	u := newUpstream(t, m)
	u.moves()
	cache := u.nginx(t)
	few := u.starts(t, way{mirror: cache}, 2, page, pages)
	again := u.starts(t, way{mirror: cache}, 2, page, pages)
	lazily(t, u, few, again, 0.5)
	u.askWithCredentials(t, cache)
	if u.leaked.Load() {
		t.Error("credentials went elsewhere")
	}
}

// doctor tells caches that are lazy from those that are not.
func TestDoctor(t *testing.T) {
	tier.Long(t, "runs nginx and docker-registry")
	t.Parallel()
	m, _, _ := start(t, 16<<20, 0)
	u := newUpstream(t, m)
	for _, c := range []struct {
		cache, said string
		most        int64 // what the registry sends for that
	}{
		{u.nginx(t), "lazy", 1 << 20},
		{u.pullThrough(t), "fetches whole blobs", 1 << 40},
	} {
		u.sent()
		out, err := u.newNode(t, way{mirror: c.cache}).run("doctor", u.front.Host+"/"+repo)
		if n := u.sent(); err != nil || n > c.most || strings.Count(out, c.cache+" ") != 1 || !strings.Contains(out, c.said) {
			t.Errorf("%s is to be one that is %q; %d bytes were sent: %v\n%s", c.cache, c.said, n, err, out)
		}
	}
}

// lazily compares what the registry has sent to some nodes with what it sent
// to others, which may not be more than so many times that.
func lazily(t *testing.T, u *upstream, one, some site, times float64) {
	t.Helper()
	if one.wrong+some.wrong > 0 {
		t.Errorf("%d and %d pages are wrong", one.wrong, some.wrong)
	}
	if float64(some.sent) > times*float64(one.sent) {
		t.Errorf("the registry sent %d bytes, and before that %d", some.sent, one.sent)
	}
	if one.sent > int64(len(u.flat))/2 {
		t.Errorf("the registry sent %d bytes for a start, of a memory of %d", one.sent, len(u.flat))
	}
}

// TestSite tries each cache with 1, 8 and 32 nodes that start one snapshot
// at once, each from a cold cache, and prints what docs/operations.md goes by.
func TestSite(t *testing.T) {
	tier.Long(t, "runs site caches")
	if os.Getenv(siteEnv) == "" {
		t.Skip("make site runs it")
	}
	m, page, pages := start(t, 0, sitePages)
	u := newUpstream(t, m)
	unique := page * int64(len(pages))
	fmt.Printf("%d pages of %d bytes, the registry %s away\n", len(pages), page, roundTrip)
	fmt.Printf("%-16s %6s %9s %15s %12s %8s %8s %6s\n", "cache", "mounts", "sent, MB", "per unique byte", "beside, MB", "p50, ms", "p99, ms", "wrong")
	for _, cache := range []struct {
		name  string
		alone bool // the nodes do not go past it
		start func(testing.TB) string
	}{
		{"none", false, func(testing.TB) string { return "" }},
		{"nginx", true, func(t testing.TB) string { return u.nginx(t) }},
		{"nginx, 1 MiB", true, func(t testing.TB) string { return u.nginx(t, "slice 256k", "slice 1m") }},
		{"nginx, mirror", false, func(t testing.TB) string { return u.nginx(t) }},
		{"Traffic Server", true, u.trafficServer},
		{"TS, mirror", false, u.trafficServer},
		{"docker-registry", false, u.pullThrough},
	} {
		var one site
		for _, nodes := range []int{1, 8, 32} {
			t.Run(fmt.Sprintf("%s, %d", cache.name, nodes), func(t *testing.T) {
				got := u.starts(t, way{cache.start(t), cache.alone}, nodes, page, pages)
				ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
				fmt.Printf("%-16s %6d %9.1f %15.2f %12.1f %8.2f %8.1f %6d\n", cache.name, nodes, float64(got.sent)/1e6, float64(got.sent)/float64(unique),
					float64(got.direct)/1e6, ms(got.p50), ms(got.p99), got.wrong)
				if nodes == 1 {
					one = got
				}
				if cache.alone {
					lazily(t, u, one, got, most)
				}
				if got.wrong > 0 {
					t.Errorf("%d pages are wrong", got.wrong)
				}
			})
		}
	}
}
