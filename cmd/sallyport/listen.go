package main

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/sallyport/sallyport"
)

// listenProblem tells a person what to do about an address that cannot be
// listened at; other errors pass as they are.
func listenProblem(err error, field, example string) error {
	p := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		p.Fact = fmt.Sprintf("another program listens already: %v", err)
		p.Hint = fmt.Sprintf("stop it (ss -ltnp shows it), or take another port: %s", example)
	case errors.Is(err, syscall.EACCES):
		p.Fact = fmt.Sprintf("this user may not listen there: %v", err)
		p.Hint = "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE (docs/operate.md), or take another port: " + example
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		p.Fact = fmt.Sprintf("this machine has no such address: %v", err)
		p.Hint = "correct " + field
	default:
		return err
	}
	return p
}
