package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/sallyport/sallyport/controlplane/durable"
)

const maxFile = 16 << 20 // of JSON: certificates of 1,024 resources are 2 MiB

func writeFile(path string, data []byte) error { return durable.WriteFile(path, data) }

// readFile returns nil without an error when there is no file. A file that
// others can read is refused: it holds secrets, or should have had its mode.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %#o lets others read it; run chmod 600 on it", path, info.Mode().Perm())
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", path, info.Size(), most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}

// errDamaged marks a file whose text is not what was written.
var errDamaged = errors.New("damaged")

// readJSON reports whether there was a file. The error is errDamaged for one that
// cannot be what was written there.
func readJSON(path string, v any) (bool, error) {
	data, err := readFile(path, maxFile)
	if err != nil || data == nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	return true, nil
}
