//go:build unix && !linux

package logsink

// atOnce is the least that PIPE_BUF may be (POSIX, limits.h).
const atOnce = 512
