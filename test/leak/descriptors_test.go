package leak

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestDescriptors(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // as Descriptors says
	}
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	forgotten := null()
	first := null()
	runtime.KeepAlive(forgotten)
	check, before := Descriptors(t), settled()
	check()
	left := null()
	if got := changes(before, time.Millisecond); !strings.Contains(got, "left: ") || !strings.Contains(got, os.DevNull) || strings.Contains(got, "\n") {
		t.Errorf("one left: %q", got)
	}
	go func() {
		time.Sleep(10 * time.Millisecond)
		left.Close()
	}()
	check()
	first.Close()
	if got := changes(before, time.Millisecond); !strings.Contains(got, "gone: ") || !strings.Contains(got, os.DevNull) || strings.Contains(got, "\n") {
		t.Errorf("one gone: %q", got)
	}
}
