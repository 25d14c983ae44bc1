package audit

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/controlplane/durable"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
)

// disk is the file system of a journal's directory. Tests put faults into it.
type disk interface {
	Open(name string) (file, error)   // for reading and writing; it exists
	Create(name string) (file, error) // it does not exist
	Rename(from, to string) error
	Remove(name string) error
	List() ([]os.DirEntry, error)
	Read(name string, max int64) ([]byte, error)
	SyncDir() error
	Free() (int64, error) // bytes that files may still grow by
}

// file is one open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Size() (int64, error)
	Close() error
}

// Files are readable by their owner only.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// osDisk is a directory of the operating system.
type osDisk struct{ dir string }

func newDisk(dir string) (disk, error) {
	if err := durable.MkdirAll(dir); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, dirMode); err != nil {
		return nil, err
	}
	return osDisk{dir}, nil
}

type osFile struct{ *os.File }

// WriteAt can be stopped in the middle: a large write is not done at once.
func (f osFile) WriteAt(b []byte, at int64) (int, error) {
	if !failpoint.Enabled {
		return f.File.WriteAt(b, at)
	}
	if err := failpoint.Hit("audit.write"); err != nil {
		return 0, err
	}
	half := len(b) / 2
	n, err := f.File.WriteAt(b[:half], at)
	if err = errors.Join(err, failpoint.Hit("audit.write.half")); err != nil {
		return n, err
	}
	m, err := f.File.WriteAt(b[half:], at+int64(half))
	return n + m, err
}

func (f osFile) Truncate(size int64) error {
	if err := failpoint.Hit("audit.truncate"); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f osFile) Sync() error {
	if err := failpoint.Hit("audit.sync"); err != nil {
		return err
	}
	return errors.Join(f.File.Sync(), failpoint.Hit("audit.synced"))
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (d osDisk) open(name string, flag int) (file, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_RDWR|flag, fileMode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDisk) Open(name string) (file, error) { return d.open(name, 0) }

func (d osDisk) Create(name string) (file, error) {
	if err := failpoint.Hit("audit.create"); err != nil {
		return nil, err
	}
	return d.open(name, os.O_CREATE|os.O_EXCL)
}

func (d osDisk) Rename(from, to string) error {
	if err := failpoint.Hit("audit.rename"); err != nil {
		return err
	}
	return os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to))
}

func (d osDisk) Remove(name string) error {
	if err := failpoint.Hit("audit.remove"); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d osDisk) List() ([]os.DirEntry, error) { return os.ReadDir(d.dir) }

var errTooLarge = errors.New("the file is too large")

func (d osDisk) Read(name string, max int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		return nil, errTooLarge
	}
	return b, err
}

func (d osDisk) SyncDir() error { return durable.SyncDir(d.dir) }

func (d osDisk) Free() (int64, error) { return free(d.dir) }

// replace writes a small file so that a reader sees the old or the new one.
func replace(d disk, name string, content []byte) error {
	tmp := name + ".new"
	if err := d.Remove(tmp); err != nil {
		return err
	}
	f, err := d.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return d.Rename(tmp, name)
}

// Names of files: segments are named by their first sequence number, so that
// they sort.
const (
	segmentSuffix = ".audit"
	packedSuffix  = ".audit.zst"
	digits        = 20
)

func segmentName(first uint64) string {
	s := strconv.FormatUint(first, 10)
	return strings.Repeat("0", digits-len(s)) + s + segmentSuffix
}

// firstOf reads the first sequence number from a segment's name.
func firstOf(name string) (first uint64, ok bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(base) != digits {
		return 0, false
	}
	first, err := strconv.ParseUint(base, 10, 64)
	return first, err == nil && first > 0
}
