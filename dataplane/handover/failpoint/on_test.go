//go:build failpoints && unix

package failpoint

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text, name string
		hits       string // what each hit says: e is an error
	}{
		{"", "a", "..."},
		{"a=error", "a", "eee"},
		{"a=error", "b", "..."},
		{" a#2=error ;; b=panic", "a", ".e."},
		{"a#1=error;a#3=error", "a", "e.e"},
		{"a=sleep:1ns;a#2=error", "a", ".e."},
	} {
		p, err := parse(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := ""
		for range c.hits {
			if p.hit(c.name) != nil {
				got += "e"
			} else {
				got += "."
			}
		}
		if got != c.hits {
			t.Errorf("%q at %s: %s, want %s", c.text, c.name, got, c.hits)
		}
	}
	for _, bad := range []string{"a", "a=", "a=run", "a=sleep", "a=sleep:x", "a#0=error", "a#x=error", "a=kill:1s"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestPanicAndSleep(t *testing.T) {
	p, err := parse("a=panic;b=sleep:2ms")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.hit("b"); err != nil || time.Since(began) < 2*time.Millisecond {
		t.Errorf("sleep: %v after %v", err, time.Since(began))
	}
	defer func() {
		if said := recover(); said != Panic("a") {
			t.Errorf("panic: %v", said)
		}
	}()
	_ = p.hit("a")
}
