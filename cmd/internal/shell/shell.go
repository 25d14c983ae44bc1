// Package shell writes words that a POSIX shell reads back as they were.
package shell

import "strings"

// plain are the bytes that no POSIX shell gives a meaning, anywhere in a word.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+,"

// Word makes one word of s, which must hold no NUL (POSIX.1, 2.2.2 single quotes).
func Word(s string) string {
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
