package ssh

import (
	"errors"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// ServeFiles serves sftp on in and out, with the rights of this process, until
// the client leaves: what a program does that Server.FileServer names. Relative
// paths are those of the home directory.
func ServeFiles(in io.Reader, out io.WriteCloser) error {
	home, err := os.Getwd()
	if err != nil {
		home = "/"
	}
	server, err := sftp.NewServer(stdio{in, out}, sftp.WithServerWorkingDirectory(home))
	if err != nil {
		return err
	}
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

type stdio struct {
	io.Reader
	io.WriteCloser
}
