package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// checkFiles refuses files in which the log ends before what the database has
// applied. A damaged record in the middle of the log looks to etcd like a torn
// write at its end: it would cut the log there, start, and give the lost
// numbers to new changes, which the database then takes for old ones.
func checkFiles(log *zap.Logger, dir string) error {
	member := filepath.Join(dir, "member")
	applied, err := appliedIndex(filepath.Join(member, "snap", "db"))
	if err != nil || applied == 0 {
		return err
	}
	logged, err := loggedIndex(log, filepath.Join(member, "wal"))
	if err != nil {
		return err
	}
	if logged < applied {
		return fmt.Errorf("the log in %s ends at entry %d, the database has applied %d: the log is damaged or incomplete",
			filepath.Join(member, "wal"), logged, applied)
	}
	return nil
}

// appliedIndex is etcd's consistent index: the last entry in the database.
func appliedIndex(path string) (index uint64, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, fmt.Errorf("database %s: %w", path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		if meta == nil {
			return nil
		}
		if v := meta.Get([]byte("consistent_index")); len(v) == 8 {
			index = binary.BigEndian.Uint64(v)
		}
		return nil
	})
	return index, err
}

// loggedIndex is the last whole entry of the log.
func loggedIndex(log *zap.Logger, dir string) (uint64, error) {
	snaps, err := wal.ValidSnapshotEntries(log, dir)
	if err != nil {
		return 0, err
	}
	if len(snaps) == 0 {
		return 0, fmt.Errorf("the log in %s names no snapshot", dir)
	}
	last := snaps[len(snaps)-1]
	w, err := wal.OpenForRead(log, dir, last)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		return 0, err
	}
	if len(entries) == 0 {
		return last.GetIndex(), nil
	}
	return entries[len(entries)-1].GetIndex(), nil
}
