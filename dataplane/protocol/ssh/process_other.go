//go:build unix && !linux

package ssh

import (
	"os"
	"syscall"
)

// ownProcess has nothing here: the process is waited for by a thread.
type ownProcess struct{}

func prepareWatch(*syscall.SysProcAttr) {}

// tie has nothing to tie with here.
func tie(*syscall.SysProcAttr) {}

// deliver starts children.
func deliver(births <-chan func()) {
	for birth := range births {
		birth()
	}
}

func sealDescriptors() {}

func (*ownProcess) watch(*syscall.SysProcAttr) {}

// await returns when the process is dead and reaped.
func (*ownProcess) await(p *process) {
	state, _ := p.os.Wait() // an error leaves no state
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.reaped = state, true
}

func (*ownProcess) close() {}

// killAs refuses what it cannot do with the rights of the account.
func killAs(uid uint32, pid int, sig syscall.Signal) error {
	if uint32(os.Geteuid()) != uid {
		return syscall.EPERM
	}
	return syscall.Kill(pid, sig)
}
