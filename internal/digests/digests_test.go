package digests

import (
	"crypto/sha256"
	"strings"
	"testing"
)

// abc is the digest of "abc", from FIPS 180-2.
const abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

func TestDigest(t *testing.T) {
	t.Parallel()
	if got := Of([]byte("abc")); got != abc {
		t.Errorf("Of: %s", got)
	}
	if got := Of(nil); got != Empty {
		t.Errorf("Of nothing: %s", got)
	}
	h := sha256.New()
	h.Write([]byte("a"))
	OfHash(h)
	h.Write([]byte("bc"))
	if got := OfHash(h); got != abc {
		t.Errorf("OfHash: %s", got)
	}
	sum, ok := Parse(abc)
	if !ok || sum != sha256.Sum256([]byte("abc")) || Format(sum) != abc {
		t.Errorf("Parse: %x, %v", sum, ok)
	}
	if digits, ok := Hex(abc); !ok || "sha256:"+digits != abc || FromHex(digits) != abc {
		t.Errorf("Hex: %s, %v", digits, ok)
	}
}

func TestParseIsStrict(t *testing.T) {
	t.Parallel()
	digits := strings.TrimPrefix(abc, "sha256:")
	for _, s := range []string{
		"", "sha256:", digits, "sha256:" + digits[1:], abc + "0", abc + "\n", " " + abc,
		"sha256:" + strings.ToUpper(digits), "SHA256:" + digits, "sha512:" + digits,
		"sha256:" + digits[:63] + "g", "sha256:" + digits[:32] + "/" + digits[33:],
		"sha256:sha256:" + digits[7:],
	} {
		if _, ok := Parse(s); ok {
			t.Errorf("Parse accepts %q", s)
		}
		if _, ok := Hex(s); ok {
			t.Errorf("Hex accepts %q", s)
		}
	}
	if !HasPrefix(abc) || HasPrefix("latest") || HasPrefix("sha256") || HasPrefix("") {
		t.Error("HasPrefix takes a tag for a digest")
	}
}
