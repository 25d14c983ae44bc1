package eventtext

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// texts are of all that is written in its own way.
var texts = []string{
	"", "plain", `"\`, "a\nb\tc\rd", "\x00\x1f\x7f", "ü€😀", "\u0085\u2028\ufeff\U000e0001", "\xff\xc3", "\xed\xa0\x80", "é\xc3\"",
	"\U0010f780\U0010f7ff\U0010f77f\U0010f800", strings.Repeat("x", 100) + "\x00" + strings.Repeat("y", 100),
}

func FuzzFit(f *testing.F) {
	for _, s := range texts {
		for _, most := range []int{0, 1, 2, 5, 6, 11, 12, 47, 48, 100, 101, 1000} {
			f.Add(s, most)
		}
	}
	f.Fuzz(func(t *testing.T, s string, most int) {
		if most < 0 {
			return
		}
		n, size := Fit(s, most)
		b, whole := Append(nil, s[:n], math.MaxInt)
		if !whole || len(b) != size || size > most {
			t.Fatalf("%q: %d of %d bytes fit in %d, said to be %d", s, n, len(b), most, size)
		}
		if n < len(s) {
			_, first := utf8.DecodeRuneInString(s[n:])
			if more, _ := Append(b, s[n:n+first], math.MaxInt); len(more) <= most {
				t.Fatalf("%q: %d bytes fit in %d, and more would", s, n, most)
			}
		}
		all, whole := Append(nil, s, math.MaxInt)
		if m, size := Fit(s, math.MaxInt); !whole || m != len(s) || size != len(all) || size > MaxGrowth*len(s) {
			t.Fatalf("%q: %d bytes, of which %d fit, are %d, said to be %d", s, len(s), m, len(all), size)
		}
		var back string
		if err := json.Unmarshal([]byte(`"`+string(all)+`"`), &back); err != nil || strings.ContainsFunc(string(all), unprintable) {
			t.Fatalf("%q: %q, %v", s, all, err)
		}
		if got := bytesOf(back); got != s {
			t.Fatalf("%q came back as %q", s, got)
		}
	})
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// bytesOf puts bytes in the place of the characters that stand for them.
func bytesOf(s string) string {
	var b []byte
	for _, r := range s {
		if c, is := ByteOf(r); is {
			b = append(b, c)
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}

// TestAppendStops: no more is written than one character beyond the bound.
func TestAppendStops(t *testing.T) {
	b, whole := Append(nil, strings.Repeat("\xff", 100), 10)
	if whole || len(b) != MaxGrowth {
		t.Errorf("%d bytes, whole: %v", len(b), whole)
	}
	if b, whole := Append(nil, "ten bytes.", 10); !whole || string(b) != "ten bytes." {
		t.Errorf("%q, whole: %v", b, whole)
	}
}

// TestFitAllocates: it is asked about every statement.
func TestFitAllocates(t *testing.T) {
	s := strings.Repeat("select \"ü\x00\xff\"", 100)
	if n := testing.AllocsPerRun(100, func() { Fit(s, 1000) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
