package logsink

import "golang.org/x/sys/unix"

// atOnce is PIPE_BUF.
const atOnce = 4096

// writeNow writes what there is room for, whether or not the file is one that waits: it
// is shared with other processes, whose flags these are too. Pipes and sockets can do
// so since Linux 6.4; the error before is an errors.ErrUnsupported.
func writeNow(fd int, p []byte) (int, error) {
	return unix.Pwritev2(fd, [][]byte{p}, -1, unix.RWF_NOWAIT)
}
