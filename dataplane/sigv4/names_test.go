package sigv4

import (
	"strings"
	"testing"
)

func TestValidRole(t *testing.T) {
	const account = "arn:aws:iam::123456789012:role/"
	for arn, want := range map[string]bool{
		account + "reader":                               true,
		account + "path/to/Reader_+=,.@-":                true,
		"arn:aws-cn:iam::123456789012:role/r":            true,
		"arn:aws-us-gov:iam::123456789012:role/r":        true,
		account + strings.Repeat("a", 576):               true,
		account + strings.Repeat("a", 577):               false,
		account:                                          false,
		account + "a b":                                  false,
		account + "a\n":                                  false,
		account + "*":                                    false,
		account + "ä":                                    false,
		" " + account + "a":                              false,
		"arn:aws:iam::12345678901:role/r":                false,
		"arn:aws:iam::123456789012:user/r":               false,
		"arn:aws:sts::123456789012:assumed-role/r/alice": false,
		"arn:other:iam::123456789012:role/r":             false,
		"":                                               false,
	} {
		if got := ValidRole(arn); got != want {
			t.Errorf("%q: %v", arn, got)
		}
	}
}
