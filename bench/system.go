package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Setting is one value of the system that the relays are measured under.
type Setting struct {
	Name   string `json:"name"`
	Was    string `json:"was,omitempty"`
	Wanted string `json:"wanted"`
	Error  string `json:"error,omitempty"` // why it could not be had
}

// wantedSettings are those of the kernel. bbr paces even the loopback; the others
// keep tens of thousands of short connections from running out of ports and of
// places to wait in.
var wantedSettings = [...][2]string{
	{"net/ipv4/tcp_congestion_control", "cubic"},
	{"net/ipv4/ip_local_port_range", "10000\t65500"},
	{"net/ipv4/tcp_max_syn_backlog", "65535"},
	{"net/ipv4/tcp_max_tw_buckets", "400000"},
	{"net/core/somaxconn", "65535"},
}

// wantedFiles is the limit of descriptors asked for; the system's own is taken
// where it is lower.
const wantedFiles = 65536

// prepareSystem sets what is wanted and returns what puts it back. What it may
// not set is in the settings, with the reason.
func prepareSystem(root string) (settings []Setting, restore func() error) {
	for _, w := range wantedSettings {
		settings = append(settings, set(root, w[0], w[1]))
	}
	limit := raiseFiles()
	return append(settings, limit), func() error {
		var errs []error
		for _, s := range settings {
			if s.Error == "" && s.Was != s.Wanted {
				errs = append(errs, os.WriteFile(filepath.Join(root, s.Name), []byte(s.Was), 0o644))
			}
		}
		return errors.Join(errs...)
	}
}

func set(root, name, value string) Setting {
	s := Setting{Name: name, Wanted: value}
	path := filepath.Join(root, name)
	b, err := os.ReadFile(path)
	if err != nil {
		s.Error = reason(err)
		return s
	}
	if s.Was = strings.TrimSpace(string(b)); s.Was == value {
		return s
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		s.Error = reason(err)
	}
	return s
}

// reason is the error without the path, which the name tells.
func reason(err error) string {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// raiseFiles lifts the limit of descriptors for this process and for what it
// starts. It ends with the process, so nothing puts it back. It must be package
// syscall's: that one also says to pass the limit on to children.
func raiseFiles() Setting {
	s := Setting{Name: "RLIMIT_NOFILE", Wanted: fmt.Sprint(wantedFiles)}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		s.Error = err.Error()
		return s
	}
	s.Was = fmt.Sprint(lim.Cur)
	most := lim
	most.Cur, most.Max = wantedFiles, max(lim.Max, wantedFiles)
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &most) == nil {
		return s
	}
	most = syscall.Rlimit{Cur: lim.Max, Max: lim.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &most); err != nil {
		s.Error = err.Error()
		return s
	}
	s.Error = fmt.Sprintf("only %d are allowed", lim.Max)
	return s
}

// files is how many descriptors a process that is started now may have.
func files() int {
	var lim syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) != nil {
		return 1024
	}
	return int(min(lim.Cur, 1<<20))
}
