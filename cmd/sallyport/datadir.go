package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/durable"
)

// ownDir makes the data directory, or checks that nobody else may write to the
// one that is there: whoever can replaces keys, the store and the programs'
// sockets, whatever the modes of those are.
func ownDir(dir string) error {
	if err := durable.MkdirAll(dir); err != nil {
		return unusable(dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return unusable(dir, err)
	}
	if !info.IsDir() {
		return unusable(dir, syscall.ENOTDIR)
	}
	if p := writableByOthers(dir, info); p != nil {
		return p
	}
	return nil
}

func writableByOthers(dir string, info fs.FileInfo) *sallyport.Problem {
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid,
			Fact: fmt.Sprintf("the data directory %s can be written to by other users (mode %04o)", dir, mode),
			Hint: "chmod 700 " + shellQuote(dir) + ", after a look at what others have put there; or use another directory"}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid,
		Fact: fmt.Sprintf("the data directory %s belongs to another user (uid %d; this process has %d)", dir, st.Uid, os.Geteuid()),
		Hint: "run as that user, give it to this one with chown -R, or use another directory"}
}

func unusable(dir string, err error) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err,
		Fact: fmt.Sprintf("the data directory %s cannot be used: %s", dir, reason(err)),
		Hint: "use another directory, or one that this user may write to"}
}

// reason is what the operating system says, without the path that is named
// already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
