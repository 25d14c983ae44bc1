package main

import (
	"fmt"
	"io"

	"github.com/pkg/sftp"
)

// requests carries the sftp library's requests to the node. It tells a connection that
// is gone by its name: the SSH library says io.EOF, which is how the sftp library
// tells the end of a file.
type requests struct {
	io.WriteCloser
}

func (r *requests) Write(b []byte) (int, error) {
	if _, err := r.WriteCloser.Write(b); err != nil {
		return 0, fmt.Errorf("%w: %v", sftp.ErrSSHFxConnectionLost, err)
	}
	return len(b), nil
}
