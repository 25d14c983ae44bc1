package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/pkg/sftp"
)

// requests carries the sftp library's requests to the node, and does two things
// that the library does not. It has what is made on the node made with a mode: the
// library asks for none, and what is narrowed only afterwards is open to others for
// a moment. And it tells a connection that is gone by its name: the SSH library says
// io.EOF, which is how the sftp library tells the end of a file.
type requests struct {
	io.WriteCloser

	mu   sync.Mutex
	made *creation // what the next request for its path makes; guarded by mu
}

// creation is a file or a directory that is about to be made.
type creation struct {
	path string
	mode fs.FileMode
	told bool // the request with the mode is on its way
}

// Numbers of SFTP version 3 (draft-ietf-secsh-filexfer-02).
const (
	sftpOpen            = 3      // SSH_FXP_OPEN
	sftpMkdir           = 14     // SSH_FXP_MKDIR
	sftpAttrPermissions = 4      // SSH_FILEXFER_ATTR_PERMISSIONS
	sftpSticky          = 0o1000 // in permissions, as in stat(2)
)

// making has the request that do sends for a path carry a mode: permissions, and for
// a directory the sticky bit. What exists already keeps its own.
func (r *requests) making(path string, mode fs.FileMode, do func() error) error {
	c := &creation{path: path, mode: mode}
	r.set(c)
	err := do()
	r.set(nil)
	if err == nil && !c.told {
		panic("sftp: something was made without its mode")
	}
	return err
}

func (r *requests) set(c *creation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = c
}

// Write takes one request, or the beginning or the rest of one with a file's bytes.
func (r *requests) Write(b []byte) (int, error) {
	if _, err := r.WriteCloser.Write(r.withMode(b)); err != nil {
		return 0, fmt.Errorf("%w: %v", sftp.ErrSSHFxConnectionLost, err)
	}
	return len(b), nil
}

func (r *requests) withMode(b []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made == nil || !r.made.asked(b) {
		return b
	}
	r.made.told = true
	mode := uint32(r.made.mode.Perm())
	if r.made.mode&fs.ModeSticky != 0 {
		mode |= sftpSticky
	}
	b = slices.Clone(b)
	binary.BigEndian.PutUint32(b[len(b)-4:], sftpAttrPermissions) // it was 0: no attributes
	b = binary.BigEndian.AppendUint32(b, mode)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// asked says whether b is the request to make c, as a whole and without attributes:
//
//	uint32 length | byte type | uint32 id | string path | uint32 flags of OPEN | uint32 0
func (c *creation) asked(b []byte) bool {
	const head, number = 9, 4 // bytes
	if len(b) < head+2*number || int64(binary.BigEndian.Uint32(b)) != int64(len(b)-number) {
		return false
	}
	flags := 0 // bytes of them
	switch b[number] {
	case sftpOpen:
		flags = number
	case sftpMkdir:
	default:
		return false
	}
	path := binary.BigEndian.AppendUint32(nil, uint32(len(c.path)))
	path = append(path, c.path...)
	rest := b[head:]
	return len(rest) == len(path)+flags+number && string(rest[:len(path)]) == string(path) &&
		binary.BigEndian.Uint32(rest[len(rest)-number:]) == 0
}
