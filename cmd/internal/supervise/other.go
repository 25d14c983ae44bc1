//go:build !linux

package supervise

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// Line is a main process's end. There is none on this system.
type Line struct{}

// Keeper is the supervisor. There is none on this system.
type Keeper struct{}

// Duties say what Run does besides listening.
type Duties struct{ Signals, Children <-chan os.Signal }

// Forwarded are the signals that are meant for the main process.
func Forwarded() []os.Signal {
	return []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGQUIT}
}

func Pair() (*Keeper, *Line, error)      { return nil, nil, errors.ErrUnsupported }
func Inherited(int) (*Line, error)       { return nil, errors.ErrUnsupported }
func OpenLine(int) *Line                 { return &Line{} }
func Resume(int, State) (*Keeper, error) { return nil, errors.ErrUnsupported }
func Adopt() (undo func(), err error)    { return nil, errors.ErrUnsupported }
func Listen() (d Duties, stop func())    { return Duties{}, func() {} }
func (*Line) Main(uint64, int) error     { return errors.ErrUnsupported }
func (*Line) Over(uint64, int) error     { return errors.ErrUnsupported }
func (*Line) Crash() error               { return errors.ErrUnsupported }
func Quiet() error                       { return nil }
func (*Line) Wait() error                { return errors.ErrUnsupported }
func (*Line) Dup() (int, error)          { return -1, errors.ErrUnsupported }
func (*Line) Close() error               { return nil }
func (*Keeper) Main(uint64, int)         {}
func (*Keeper) Signal(os.Signal)         {}
func (*Keeper) Close() error             { return nil }

func (*Keeper) Become(string, []string, []string, <-chan os.Signal) error {
	return errors.ErrUnsupported
}

func (*Keeper) Run(context.Context, Duties) (code int, over bool) { return Lost, true }
