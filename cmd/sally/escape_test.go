package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEscapes(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		gone     bool
		helped   bool
	}{
		{in: "", want: ""},
		{in: "ls ~/x\r", want: "ls ~/x\r"},
		{in: "~.", gone: true},
		{in: "ls\r~.more", want: "ls\r", gone: true},
		{in: "ls\n~.", want: "ls\n", gone: true},
		{in: "a~.", want: "a~."},
		{in: "~~.", want: "~."},
		{in: "~~~.", want: "~~."},
		{in: "~x~.", want: "~x~."},
		{in: "~?ls", want: "ls", helped: true},
		{in: "~?~.", gone: true, helped: true},
		{in: "~\r~.", want: "~\r", gone: true},
		{in: "x\r~", want: "x\r~"},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with the end": iotest.DataErrReader} {
			var help bytes.Buffer
			gone := false
			e := &escapes{r: wrap(strings.NewReader(tt.in)), help: &help, disconnect: func() { gone = true }}
			got, err := io.ReadAll(e)
			if err != nil || string(got) != tt.want || gone != tt.gone || (help.Len() > 0) != tt.helped {
				t.Errorf("%q by %s: %q %v, gone %v, help %d bytes; want %+v", tt.in, name, got, err, gone, help.Len(), tt)
			}
		}
	}
}

// FuzzEscapes: however the bytes come, the same is meant; text without a tilde
// passes as it is.
func FuzzEscapes(f *testing.F) {
	f.Add([]byte("a\r~~~?~.b"))
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(r io.Reader) (string, bool) {
			gone := false
			got, err := io.ReadAll(&escapes{r: r, help: io.Discard, disconnect: func() { gone = true }})
			if err != nil {
				t.Fatal(err)
			}
			return string(got), gone
		}
		a, agone := read(bytes.NewReader(in))
		b, bgone := read(iotest.OneByteReader(bytes.NewReader(in)))
		if a != b || agone != bgone {
			t.Fatalf("%q is %q or %q", in, a, b)
		}
		if !bytes.Contains(in, []byte("~")) && a != string(in) {
			t.Fatalf("%q became %q", in, a)
		}
	})
}
