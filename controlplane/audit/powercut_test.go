package audit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// errPower is what everything says once the power is cut.
var errPower = errors.New("the power is cut")

// cutDisk is a directory in memory whose power is cut after a number of steps.
// What was not synced by then is there afterwards or not, page by page, as chance
// has it; a name that is new, changed or removed likewise until SyncDir. The
// bytes of a file are the file's, whatever its names are.
type cutDisk struct {
	mu    sync.Mutex
	left  int // steps until the power is cut; negative: never
	now   map[string]*cutInode
	safe  map[string]*cutInode // the directory as it was last synced
	steps int
}

// cutInode is a file: as programs see it, and as it was last synced.
type cutInode struct {
	now, safe []byte
}

const cutPage = 512

func newCutDisk(left int) *cutDisk {
	return &cutDisk{left: left, now: map[string]*cutInode{}, safe: map[string]*cutInode{}}
}

func (d *cutDisk) on(string) (disk, error) { return d, nil }

// step counts what changes something. It is called with the lock held.
func (d *cutDisk) step() error {
	if d.left == 0 {
		return errPower
	}
	d.left--
	d.steps++
	return nil
}

// afterCut is what the next start finds.
func (d *cutDisk) afterCut(chance *rand.Rand) *cutDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := newCutDisk(-1)
	names := map[string]bool{}
	for n := range maps.Keys(d.now) {
		names[n] = true
	}
	for n := range maps.Keys(d.safe) {
		names[n] = true
	}
	made := map[*cutInode]*cutInode{}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		in := d.now[n]
		if in != d.safe[n] && chance.IntN(2) == 0 {
			in = d.safe[n]
		}
		if in == nil {
			continue
		}
		if made[in] == nil {
			b := in.survives(chance)
			made[in] = &cutInode{now: b, safe: slices.Clone(b)}
		}
		next.now[n], next.safe[n] = made[in], made[in]
	}
	return next
}

// survives mixes pages of what was synced and of what was not.
func (in *cutInode) survives(chance *rand.Rand) []byte {
	size := len(in.safe)
	if len(in.now) != size && chance.IntN(2) == 0 {
		size = len(in.now)
	}
	out := make([]byte, size)
	for at := 0; at < size; at += cutPage {
		end := min(at+cutPage, size)
		from := in.safe
		if chance.IntN(2) == 0 {
			from = in.now
		}
		if at < len(from) {
			copy(out[at:end], from[at:])
		} // else the file has grown and the page was never written: zeros
	}
	return out
}

func (d *cutDisk) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.now[name]
	if in == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &cutFile{d: d, in: in}, nil
}

func (d *cutDisk) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, err
	}
	if d.now[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	in := &cutInode{}
	d.now[name] = in
	return &cutFile{d: d, in: in}, nil
}

func (d *cutDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	d.now[to] = d.now[from]
	delete(d.now, from)
	return nil
}

func (d *cutDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	delete(d.now, name)
	return nil
}

func (d *cutDisk) List() ([]os.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []os.DirEntry
	for _, name := range slices.Sorted(maps.Keys(d.now)) {
		out = append(out, cutEntry(name))
	}
	return out, nil
}

func (d *cutDisk) Read(name string, most int64) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.now[name]
	if in == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if int64(len(in.now)) > most {
		return nil, errTooLarge
	}
	return slices.Clone(in.now), nil
}

func (d *cutDisk) SyncDir() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	d.safe = maps.Clone(d.now)
	return nil
}

func (d *cutDisk) Free() (int64, error) { return 1 << 40, nil }

type cutEntry string

func (e cutEntry) Name() string               { return string(e) }
func (e cutEntry) IsDir() bool                { return false }
func (e cutEntry) Type() fs.FileMode          { return 0 }
func (e cutEntry) Info() (fs.FileInfo, error) { return nil, fs.ErrInvalid }

type cutFile struct {
	d  *cutDisk
	in *cutInode
}

func (f *cutFile) ReadAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if at >= int64(len(f.in.now)) {
		return 0, io.EOF
	}
	n := copy(b, f.in.now[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *cutFile) WriteAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return 0, err
	}
	grown := make([]byte, max(int64(len(f.in.now)), at+int64(len(b)))) // never in place: safe may be the same
	copy(grown, f.in.now)
	copy(grown[at:], b)
	f.in.now = grown
	return len(b), nil
}

func (f *cutFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	grown := make([]byte, size)
	copy(grown, f.in.now)
	f.in.now = grown
	return nil
}

func (f *cutFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	f.in.safe = f.in.now
	return nil
}

func (f *cutFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.in.now)), nil
}

func (f *cutFile) Close() error { return nil }

// TestF6_PowerCutLog cuts the power at every step of a log's life, some times
// each: what was acknowledged is there, the log opens, and goes on.
func TestF6_PowerCutLog(t *testing.T) {
	const tries = 4
	whole := newCutDisk(-1)
	synctest.Test(t, func(t *testing.T) { logOn(whole, t.TempDir()) })
	for left := range whole.steps {
		for try := range tries {
			synctest.Test(t, func(t *testing.T) { powerCut(t, left, try) })
		}
	}
	t.Logf("power cut before each of %d steps, %d times", whole.steps, tries)
}

func powerCut(t *testing.T, left, try int) {
	seed := uint64(left)<<8 | uint64(try)
	chance := rand.New(rand.NewPCG(seed, 6))
	d, dir := newCutDisk(left), t.TempDir()
	acknowledged := logOn(d, dir)
	for range 3 { // the start after a cut can be cut as well
		d = d.afterCut(chance)
		d.left = chance.IntN(40)
		acknowledged = max(acknowledged, logOn(d, dir))
	}
	d = d.afterCut(chance)
	l, err := OpenLog(LogConfig{Dir: dir, Host: "auth", Sign: sign, SegmentBytes: 2 << 10, Ballast: 64, disk: d.on})
	if err != nil {
		t.Fatalf("cut before step %d, seed %d: %v", left, seed, err)
	}
	defer l.Close()
	last := l.Acknowledged("h/1")
	if last < acknowledged {
		t.Errorf("cut before step %d, seed %d: %d of %d acknowledged events are left", left, seed, last, acknowledged)
	}
	if got, err := l.Append(t.Context(), "h/1", records(last+1, 1)); err != nil || got != last+1 {
		t.Errorf("cut before step %d, seed %d: the log does not go on: %d, %v", left, seed, got, err)
	}
}

// logOn appends some events until that fails or is enough, and returns the last
// that was acknowledged.
func logOn(d *cutDisk, dir string) uint64 {
	l, err := OpenLog(LogConfig{Dir: dir, Host: "auth", Sign: sign, SegmentBytes: 2 << 10, Ballast: 64, disk: d.on})
	if err != nil {
		return 0
	}
	defer l.Close()
	last := l.Acknowledged("h/1")
	for range 12 {
		got, err := l.Append(context.Background(), "h/1", records(last+1, 1))
		if err != nil {
			break
		}
		last = got
	}
	return last
}

// TestF6_PowerCutTail cuts the power while a start moves what was not signed out of
// the log: it is in the log or beside it, whatever came of the start.
func TestF6_PowerCutTail(t *testing.T) {
	const tries = 6
	torn := newCutDisk(-1)
	synctest.Test(t, func(t *testing.T) { logOn(torn, t.TempDir()) })
	names, err := listLog(torn)
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	name := names[len(names)-1].name
	in := torn.now[name]
	in.now = in.now[:len(in.now)-3]
	in.safe = in.now
	torn.safe = maps.Clone(torn.now)

	whole := torn.afterCut(rand.New(rand.NewPCG(0, 6)))
	before := whole.steps
	synctest.Test(t, func(t *testing.T) { logOn(whole, t.TempDir()) })
	tail := whole.aside()
	if len(tail) == 0 || !bytes.HasSuffix(in.now, tail) {
		t.Fatalf("%d bytes were cut, and they are not the end of the log", len(tail))
	}
	for left := range whole.steps - before {
		for try := range tries {
			seed := uint64(left)<<8 | uint64(try)
			chance := rand.New(rand.NewPCG(seed, 7))
			d := torn.afterCut(chance)
			d.left = left
			synctest.Test(t, func(t *testing.T) { logOn(d, t.TempDir()) })
			d = d.afterCut(chance)
			at := len(in.now) - len(tail)
			now := d.now[name]
			kept := now != nil && len(now.now) >= len(in.now) && bytes.Equal(now.now[at:len(in.now)], tail)
			if !kept && !bytes.Equal(d.aside(), tail) {
				t.Errorf("cut before step %d, seed %d: what was moved out of the log is nowhere", left, seed)
			}
		}
	}
}

// aside is what a start has moved out of the log.
func (d *cutDisk) aside() []byte {
	for name, in := range d.now {
		if strings.HasPrefix(name, cutPrefix) && !strings.HasSuffix(name, ".new") {
			return in.now
		}
	}
	return nil
}
