package logsink

// atOnce is PIPE_BUF.
const atOnce = 4096
