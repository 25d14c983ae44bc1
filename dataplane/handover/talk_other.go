//go:build !linux

package handover

import "os"

// File gives nothing: there is no link.
func (l *Link) File() *os.File { return nil }

// OpenTalk says that there is none.
func OpenTalk(int) (*Talk, error) { return nil, errNotOffered }

func (l *Link) finish() {}
