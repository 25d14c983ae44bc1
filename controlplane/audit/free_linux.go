package audit

import "syscall"

// free is what is left of the file system that a directory lies in, in bytes.
func free(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(min(st.Bavail, 1<<40)) * int64(st.Bsize), nil // Bsize has another type on other machines
}
