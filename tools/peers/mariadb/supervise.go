package mariadb

import (
	"os/exec"
	"runtime"
)

// supervise starts the server and waits for its end. It stays on the thread
// that started the server, because that thread's death would be taken for ours
// (tieToUs).
func (s *Server) supervise(cmd *exec.Cmd, started chan<- error, done chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(done)
	tieToUs(cmd.SysProcAttr)
	err := cmd.Start()
	started <- err
	if err == nil {
		cmd.Wait()
	}
}
