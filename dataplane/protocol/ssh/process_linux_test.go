package ssh

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestSignalRights: a signal goes out with the rights of the account, so that
// nobody ends a program of somebody else through the agent.
func TestSignalRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to have somebody else's program")
	}
	const stranger, owner = 54321, 54323
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner, Gid: owner}, Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := killAs(stranger, -cmd.Process.Pid, syscall.SIGTERM); !errors.Is(err, syscall.EPERM) {
		t.Errorf("a stranger's signal: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("the process is not root any more")
	}
	if err := killAs(owner, -cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Errorf("the owner's signal: %v", err)
	}
}
