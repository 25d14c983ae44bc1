package audit

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
)

// faultyDisk is a directory of the operating system with a limited size and
// faults on order. It is a layer of ours over real files, not a fake of them.
type faultyDisk struct {
	disk
	mu        sync.Mutex
	space     int64 // bytes that files may still grow by; negative: no limit
	syncErr   error // of each Sync of a segment; nil: none
	syncs     int   // of segments
	writes    int
	failWrite int // the number of the write that fails, half of it done; 0: none
}

func newFaultyDisk() *faultyDisk { return &faultyDisk{space: -1} }

func (d *faultyDisk) on(dir string) (disk, error) {
	inner, err := newDisk(dir)
	d.disk = inner
	return d, err
}

func (d *faultyDisk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *faultyDisk) wrap(name string, f file, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return &faultyFile{file: f, d: d, segment: strings.HasSuffix(name, segmentSuffix)}, nil
}

func (d *faultyDisk) Open(name string) (file, error) {
	f, err := d.disk.Open(name)
	return d.wrap(name, f, err)
}

func (d *faultyDisk) Create(name string) (file, error) {
	f, err := d.disk.Create(name)
	return d.wrap(name, f, err)
}

func (d *faultyDisk) Remove(name string) error {
	if f, err := d.disk.Open(name); err == nil {
		size, _ := f.Size()
		f.Close()
		d.free(size)
	}
	return d.disk.Remove(name)
}

func (d *faultyDisk) Free() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.space < 0 {
		return d.disk.Free()
	}
	return d.space, nil
}

func (d *faultyDisk) free(n int64) {
	d.set(func() {
		if d.space >= 0 {
			d.space += n
		}
	})
}

type faultyFile struct {
	file
	d       *faultyDisk
	segment bool
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	grow := max(at+int64(len(b))-size, 0)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.writes++
	if f.d.failWrite > 0 && f.d.writes == f.d.failWrite {
		n, err := f.file.WriteAt(b[:len(b)/2], at)
		return n, errors.Join(err, syscall.EIO)
	}
	if f.d.space >= 0 {
		if grow > f.d.space {
			fits := max(int64(len(b))-(grow-f.d.space), 0)
			n, _ := f.file.WriteAt(b[:fits], at)
			f.d.space = 0
			return n, &os.PathError{Op: "write", Path: "segment", Err: syscall.ENOSPC}
		}
		f.d.space -= grow
	}
	return f.file.WriteAt(b, at)
}

func (f *faultyFile) Truncate(size int64) error {
	before, err := f.Size()
	if err != nil {
		return err
	}
	f.d.free(max(before-size, 0))
	return f.file.Truncate(size)
}

func (f *faultyFile) Sync() error {
	f.d.mu.Lock()
	if f.segment {
		f.d.syncs++
		if err := f.d.syncErr; err != nil {
			f.d.mu.Unlock()
			return err
		}
	}
	f.d.mu.Unlock()
	return f.file.Sync()
}
