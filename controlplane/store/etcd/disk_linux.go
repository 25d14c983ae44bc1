package etcd

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocateBlocks leaves the file's size alone, which is bbolt's. That has its lock
// by flock(2), which closing another descriptor does not end.
func allocateBlocks(file string, end int64) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Fallocate(int(fd), unix.FALLOC_FL_KEEP_SIZE, 0, end)
		}
	})
	return errors.Join(failed, err)
}

func freeBytes(file string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(file, &st); err != nil {
		return 0, err
	}
	return int64(min(st.Bavail, 1<<40)) * int64(st.Bsize), nil // Bsize has another type on other machines
}
