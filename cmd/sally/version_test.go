package main

import (
	"errors"
	"io"
	"testing"
)

// TestVersionUnwritten: a version that nobody could write was a success.
func TestVersionUnwritten(t *testing.T) {
	r, w := io.Pipe()
	full := errors.New("no space left")
	if err := r.CloseWithError(full); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SALLY_HOME", t.TempDir())
	p := &program{ctx: t.Context(), stdout: w}
	for _, format := range []string{"text", "json"} {
		if err := (&versionCmd{Format: format, Client: true}).Run(p); !errors.Is(err, full) {
			t.Errorf("%s: %v", format, err)
		}
	}
}
