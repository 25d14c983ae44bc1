package client

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"sync"
)

// keeping writes a host's files. A directory has one writer: in an upgrade that
// is the old process until the commit, and the new one afterwards.
//
//	writing ──hold──▶ held ──resume──▶ writing   (the way back, or the new process's start)
//	                   └─────leave────▶ left      (a remnant: what it learns is in memory only)
type keeping struct {
	mu      sync.Mutex
	state   keepState
	pending map[string][]byte // by path: newer than what is on disk
}

type keepState int

const (
	keepWriting keepState = iota
	keepHeld
	keepLeft
)

// write replaces a file. While the directory is held it is written later, if
// this process comes to write again.
func (k *keeping) write(path string, data []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch k.state {
	case keepHeld:
		k.rememberLocked(path, data)
		return nil
	case keepLeft:
		return nil
	}
	if err := writeFile(path, data); err != nil {
		return err
	}
	delete(k.pending, path)
	return nil
}

func (k *keeping) writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return k.write(path, data)
}

// remember keeps what could not be written, for the next hold.
func (k *keeping) remember(path string, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state != keepLeft {
		k.rememberLocked(path, data)
	}
}

func (k *keeping) rememberLocked(path string, data []byte) {
	if k.pending == nil {
		k.pending = map[string][]byte{}
	}
	k.pending[path] = data
}

// remove removes a file that is not needed. It is not removed while this
// process does not write.
func (k *keeping) remove(path string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state != keepWriting {
		return nil
	}
	delete(k.pending, path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hold stops the writing, with all on disk that is known.
func (k *keeping) hold() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.flushLocked(); err != nil {
		return err
	}
	k.state = keepHeld
	return nil
}

// resume writes again, first what has come meanwhile. There is no way back from
// leave.
func (k *keeping) resume() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == keepLeft {
		return nil
	}
	k.state = keepWriting
	return k.flushLocked()
}

// leave never writes again.
func (k *keeping) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state, k.pending = keepLeft, nil
}

func (k *keeping) flushLocked() error {
	for path, data := range k.pending {
		if err := writeFile(path, data); err != nil {
			return err
		}
		delete(k.pending, path)
	}
	return nil
}
