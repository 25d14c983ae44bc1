//go:build !linux

package handover

import (
	"errors"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Link is an end of a pair of sockets that only Linux has.
type Link struct{}

var (
	errLater      = errors.New("the other process has to take something first")
	errNotOffered = errors.New("descriptors change hands on Linux only")
)

// Pair says that there is none.
func Pair() (old, new *Link, err error) { return nil, nil, errNotOffered }

func (l *Link) send([]byte, []int) error                    { return errNotOffered }
func (l *Link) receive() (*handoverv1.Packet, []int, error) { return nil, nil, errNotOffered }
func (l *Link) shut()                                       {}
func own(int) (int, error)                                  { return -1, errNotOffered }
func noneLeft(error) bool                                   { return false }
func closeAll([]int)                                        {}

// Close does nothing: there is no link.
func (l *Link) Close() {}
