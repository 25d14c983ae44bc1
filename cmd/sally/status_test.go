package main

import (
	"slices"
	"testing"
)

// TestLogins: what stands for no OS login is not shown as one.
func TestLogins(t *testing.T) {
	for _, tt := range []struct{ principals, want []string }{
		{nil, nil},
		{[]string{"root", "ubuntu"}, []string{"root", "ubuntu"}},
		{[]string{"-sallyport-nologin-alice"}, nil},
		{[]string{"root", "-teleport-internal-join"}, []string{"root"}},
	} {
		kept := slices.Clone(tt.principals)
		if got := logins(tt.principals); !slices.Equal(got, tt.want) || !slices.Equal(tt.principals, kept) {
			t.Errorf("%q: %q, want %q", tt.principals, got, tt.want)
		}
	}
}
