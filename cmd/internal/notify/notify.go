// Package notify tells the service manager how a process does: sd_notify(3),
// without its library.
package notify

import (
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Variable of the environment that names the manager's socket.
const Variable = "NOTIFY_SOCKET"

// Variables by which a manager says that it wants to hear from the process every
// so often, and which process that is (sd_watchdog_enabled(3)).
const (
	WatchdogVariable    = "WATCHDOG_USEC"
	WatchdogPIDVariable = "WATCHDOG_PID"
)

// sendWithin bounds a message: a manager that does not read must not stop us.
const sendWithin = time.Second

// Manager is who started the process. The zero value is nobody, to whom
// everything may be said.
type Manager struct {
	socket string
}

// New makes a manager of what Variable holds: a path, or "@" and a name of the
// abstract space.
func New(socket string) Manager {
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return Manager{}
	}
	return Manager{socket}
}

// Listens says that there is one.
func (m Manager) Listens() bool { return m.socket != "" }

// Ready says that the process serves.
func (m Manager) Ready() error { return m.say("READY=1") }

// Reloading says that the process is about to become another, in configuration
// or in program; Ready ends that. systemd compares the time with its own clock.
func (m Manager) Reloading() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	return m.say("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Microseconds()))
}

// Main says that pid is the service's main process from now on, and serves.
// Only the main process so far is believed (NotifyAccess=main).
func (m Manager) Main(pid int) error { return m.say(fmt.Sprintf("MAINPID=%d", pid), "READY=1") }

// Status says how it goes, in a word for people.
func (m Manager) Status(text string) error { return m.say("STATUS=" + text) }

// Alive says that the process works, for a manager with a watchdog.
func (m Manager) Alive() error { return m.say("WATCHDOG=1") }

// Watchdog is the time without a word after which the manager takes the process
// for dead: what its two variables say, 0 for never. After an upgrade the manager
// watches another process than it has named, whose number is pid: any is right.
func (m Manager) Watchdog(usec, pid string, upgraded bool) time.Duration {
	n, err := strconv.ParseUint(usec, 10, 63)
	if err != nil || !m.Listens() || pid != "" && pid != strconv.Itoa(os.Getpid()) && !upgraded {
		return 0
	}
	return time.Duration(min(n, uint64(math.MaxInt64/time.Microsecond))) * time.Microsecond
}

// Stopping says that the end is meant.
func (m Manager) Stopping() error { return m.say("STOPPING=1") }

func (m Manager) say(lines ...string) error {
	if m.socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(sendWithin)); err != nil {
		return err
	}
	_, err = c.Write([]byte(strings.Join(lines, "\n")))
	return err
}
