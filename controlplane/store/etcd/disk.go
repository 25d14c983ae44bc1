package etcd

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/sallyport/sallyport"
)

const (
	// diskAhead is what the database has on the disk beyond its pages. What etcd
	// writes by itself (history that it drops, leases that end) comes out of it too.
	diskAhead = 16 << 20

	// logFile is how long a file of etcd's log is. The next one is made as soon as one
	// is begun, and when that fails etcd ends the process at its end, room or not.
	logFile = 16 << 20

	// logBeyond is what the last entries of such a file may take behind its end, where
	// it has no blocks by itself: what is under way at once.
	logBeyond = 4 << 20

	// snapEvery is after how many entries etcd writes a snapshot, of some kilobytes,
	// and ends the process when it cannot. So without snapRoom no change leads there.
	snapEvery = 10_000
	snapSoon  = snapEvery / 100 // changes under way and etcd's own
	snapRoom  = 1 << 20

	// diskFloor is what others must have left of the file system for ordinary
	// changes: the log's next file and snapshots are made of that.
	diskFloor = logFile + logFile/2

	// diskAgain is what opening takes, besides what closing has given back.
	diskAgain = 2 * diskFloor
)

// Both are refused before etcd hears of it.
var (
	errDiskFull = errors.New("no space left for the store's database")
	errLogEnds  = errors.New("there was no space for the next file of the store's log")
)

func init() { wal.SegmentSizeBytes = logFile } // 64 MB would have to be free each time

// disk keeps room for the database on its file system. bbolt makes its file longer
// without blocks behind it, and etcd ends the whole process, in the middle of
// everybody's connections, when one cannot be written. So the blocks are taken
// beforehand, and a change that could need others is refused.
type disk struct {
	file   string        // of the database; "" for a cluster's, which others look after
	size   func() int64  // of the last commit
	commit func()        // what etcd would write within a moment
	ends   func() bool   // etcd's log has no next file
	index  func() uint64 // of the last entry that etcd has applied
	log    *slog.Logger

	allocate func(file string, end int64) error // blocks for all bytes before end
	free     func(file string) (int64, error)   // bytes of its file system

	mu       sync.Mutex
	end      int64 // the database has blocks before it; math.MaxInt64: that cannot be known here
	underway int64 // bytes of changes that have begun and not ended
	unseen   int64 // those, and of changes that have ended what the size may not show
	last     int64 // bytes of changes since there is no next file of the log
	logged   int64 // bytes of changes since the log's last file had room beyond its end
	told     bool  // that it is full
}

// enter admits a change of so many bytes. leave is called when it has ended.
func (d *disk) enter(bytes int64, ordinary bool) (leave func(), err error) {
	if d.file == "" {
		return func() {}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ends() {
		// It is known at the beginning of the last file, of which others have a part too.
		if ordinary || d.last+bytes > logFile/2 {
			return nil, unavailable(errLogEnds)
		}
		d.last += bytes
	}
	if !d.fits(bytes, ordinary) {
		if !d.told {
			d.told = true
			d.log.Error("the store's disk is full: changes are refused", "file", d.file)
		}
		return nil, unavailable(errDiskFull)
	}
	if ordinary && d.told {
		d.told = false
		d.log.Info("the store's disk has room again", "file", d.file)
	}
	d.underway += bytes
	d.unseen += bytes
	return func() { d.leave(bytes) }, nil
}

func (d *disk) leave(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.underway -= bytes
}

// fits is called with the lock held. The size is of the last commit, of a moment
// ago: what has begun since is counted here, and only when it matters a commit is
// waited for.
func (d *disk) fits(bytes int64, ordinary bool) bool {
	free, err := d.free(d.file)
	if err != nil {
		free = math.MaxInt64
	}
	if ordinary && free < diskFloor+d.underway {
		return false
	}
	if !d.logFits(bytes, free) {
		return false
	}
	need := func() int64 { return d.size() + d.unseen + bytes + pagesAnew }
	if need()+diskAhead/2 <= d.end {
		return true
	}
	d.commit()
	d.unseen = d.underway
	if need()+diskAhead/2 > d.end {
		d.extend()
	}
	return need() <= d.end
}

// logFits says whether etcd's log has room for the change, and looks only when the
// disk is nearly full, or the log may have come to another file.
func (d *disk) logFits(bytes, free int64) bool {
	d.logged += bytes + stepCost
	if free >= diskAgain && d.logged < logFile/4 {
		return true
	}
	beyond := d.roomBeyond()
	for try := 0; !beyond && free < diskFloor && try < 10; try++ {
		time.Sleep(time.Millisecond) // etcd may be between two files
		beyond = d.roomBeyond()
	}
	if beyond {
		d.logged = 0
	}
	if free >= diskFloor {
		return true
	}
	snap := free >= snapRoom || d.index()+snapSoon < d.snapAt()
	return beyond && snap && d.underway+bytes <= logBeyond/2
}

// roomBeyond takes blocks beyond the end of the log's last file, and of the next one,
// which keeps them when it becomes the last.
func (d *disk) roomBeyond() bool {
	dir := filepath.Join(filepath.Dir(d.file), "..", "wal")
	last := ""
	for _, name := range namesIn(dir) {
		switch filepath.Ext(name) {
		case ".tmp":
			_ = d.allocate(filepath.Join(dir, name), logFile+logBeyond) // it matters when it is the last
		case ".wal":
			last = name
		}
	}
	err := d.allocate(filepath.Join(dir, last), logFile+logBeyond)
	return err == nil || errors.Is(err, errors.ErrUnsupported)
}

// snapAt is the entry after which etcd writes its next snapshot. A snapshot's name
// ends with the entry that it was written after.
func (d *disk) snapAt() uint64 {
	at := uint64(snapEvery)
	for _, name := range namesIn(filepath.Dir(d.file)) {
		stem, snapshot := strings.CutSuffix(name, ".snap")
		_, index, ok := strings.Cut(stem, "-")
		if n, err := strconv.ParseUint(index, 16, 64); snapshot && ok && err == nil {
			at = max(at, n+snapEvery)
		}
	}
	return at
}

// namesIn is sorted.
func namesIn(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// extend takes what there is, up to diskAhead.
func (d *disk) extend() {
	for ahead := int64(diskAhead); ahead >= diskAhead/16; ahead /= 2 {
		end := d.size() + d.unseen + pagesAnew + ahead
		if end <= d.end {
			return
		}
		err := d.allocate(d.file, end)
		switch {
		case err == nil:
			d.end = end
			return
		case errors.Is(err, errors.ErrUnsupported):
			d.end = math.MaxInt64
			return
		}
	}
}

// Room says whether there is enough on the disk to close the store and to open it
// again, also in another process: what etcd gives back meanwhile others may take.
func (s *Store) Room() error {
	d := &s.disk
	if d.file == "" {
		return nil
	}
	if free, err := d.free(d.file); err == nil && free < diskAgain {
		return unavailable(errDiskFull)
	}
	return nil
}

// renewed is called when the database is in a new file, which has no more blocks
// than pages.
func (d *disk) renewed() {
	if d.file == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end = 0
	d.extend()
}

// nextFile is what etcd takes for the next file of its log. It removes it when it
// closes; made anew then, it keeps its room for opening on a disk that others have
// filled meanwhile, and before opening, so that etcd need not look for room. (It
// gives the blocks of the last file back for a moment, and a next file made at that
// moment could take them: such a log cannot be opened.)
func nextFile(dir string) string { return filepath.Join(dir, "etcd", "member", "wal", "0.tmp") }

// keepNext makes sure of the next file's room. A store that is not there yet has none.
func keepNext(dir string) error {
	next := nextFile(dir)
	if _, err := os.Stat(filepath.Dir(next)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// After a crash it is the one of the two names that etcd had come to, and may
	// have been begun.
	if other := filepath.Join(filepath.Dir(next), "1.tmp"); !exists(next) && exists(other) {
		if err := os.Rename(other, next); err != nil {
			return err
		}
	}
	if begun(next) {
		if err := os.Remove(next); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(next, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Close(), allocateBlocks(next, logFile))
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// begun says that something was written to a file of the log, which begins with the
// length of its first record.
func begun(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 8)
	n, _ := io.ReadFull(f, head)
	return !bytes.Equal(head[:n], make([]byte, n))
}

func logEnds(err error) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store's disk was full when its log needed room", Cause: err,
		Hint: "make room on the disk of auth's data directory, then run sallyport upgrade, or start it again"}
}

func diskFull(err error) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store's disk is full", Hint: "make room on the disk of auth's data directory", Cause: err}
}
