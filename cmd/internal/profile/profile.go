// Package profile keeps what a login brought, in tsh's layout: ~/.sally, or where
// SALLY_HOME or TELEPORT_HOME say. Nothing of another product is touched.
package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sallyport/sallyport"
)

const (
	dirMode  = 0o700
	fileMode = 0o600

	defaultPort = "443"
)

// Dir is a home directory of profiles.
type Dir string

func problem(kind error, fact, hint string) error {
	return &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}
}

// Home is ~/.sally unless SALLY_HOME or TELEPORT_HOME says otherwise.
func Home() (Dir, error) {
	for _, name := range []string{"SALLY_HOME", "TELEPORT_HOME"} {
		if dir := os.Getenv(name); dir != "" {
			path, err := filepath.Abs(dir)
			return Dir(path), err
		}
	}
	return usualHome()
}

func usualHome() (Dir, error) {
	dir, err := os.UserHomeDir()
	if err != nil {
		return "", problem(sallyport.ErrInvalid, "no home directory is known", "set SALLY_HOME")
	}
	return Dir(filepath.Join(dir, ".sally")), nil
}

// Usual says that d is where a program without SALLY_HOME and TELEPORT_HOME
// looks.
func (d Dir) Usual() bool {
	usual, err := usualHome()
	return err == nil && d == usual
}

// Profile is one gateway that the user has logged in to: <proxyhost>.yaml, with
// tsh's keys.
type Profile struct {
	WebProxyAddr  string   `yaml:"web_proxy_addr"`
	SSHProxyAddr  string   `yaml:"ssh_proxy_addr"`
	User          string   `yaml:"user"`
	Cluster       string   `yaml:"cluster"`
	TLSRouting    bool     `yaml:"tls_routing_enabled"`
	AuthConnector string   `yaml:"auth_connector"`
	CAPins        []string `yaml:"ca_pins,omitempty"`
}

// Name is the host part of the gateway's address, which names the profile's files.
func (f Profile) Name() string {
	host, _, err := net.SplitHostPort(f.WebProxyAddr)
	if err != nil {
		return f.WebProxyAddr
	}
	return host
}

// KeyDir is where the profile's keys are.
func (d Dir) KeyDir(f Profile) string { return filepath.Join(string(d), "keys", f.Name()) }

func (d Dir) KeyPath(f Profile, suffix string) string {
	return filepath.Join(d.KeyDir(f), f.User+suffix)
}

func (d Dir) CAsPath(f Profile) string {
	return filepath.Join(d.KeyDir(f), "cas", f.Cluster+".pem")
}

func (d Dir) SSHCertPath(f Profile) string {
	return filepath.Join(d.KeyDir(f), f.User+"-ssh", f.Cluster+"-cert.pub")
}

func (d Dir) DBDir(f Profile) string {
	return filepath.Join(d.KeyDir(f), f.User+"-db", f.Cluster)
}

func (d Dir) AppDir(f Profile) string {
	return filepath.Join(d.KeyDir(f), f.User+"-app", f.Cluster)
}

func (d Dir) KnownHosts() string { return filepath.Join(string(d), "known_hosts") }

// Check refuses names that would lead out of the profile's directories: they
// come from a gateway, or from a file.
func (f Profile) Check() error {
	for _, part := range []struct{ what, value string }{{"the host of a gateway", f.Name()}, {"a user's name", f.User}, {"a cluster's name", f.Cluster}} {
		if !ValidName(part.value) {
			return problem(sallyport.ErrInvalid, fmt.Sprintf("%q cannot be %s", part.value, part.what), "")
		}
	}
	return nil
}

// maxName leaves room for suffixes in a file's name of 255 bytes.
const maxName = 200

// ValidName says that s can be one part of a path, and one word of known_hosts
// and of ssh_config.
func ValidName(s string) bool {
	return s != "" && len(s) <= maxName && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\"'*?,!#%$`+"`", r)
	})
}

// Address completes what the user typed: "https://" and the port are optional.
func Address(s string) (string, error) {
	typed := s
	s = strings.TrimSuffix(strings.TrimPrefix(s, "https://"), "/")
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !ValidName(host) || !isHost(host) {
		return "", problem(sallyport.ErrInvalid, fmt.Sprintf("%q is not the address of a gateway", typed), "give --proxy=HOST or --proxy=HOST:PORT")
	}
	return net.JoinHostPort(host, port), nil
}

// isHost says that s is an IP address or made of what host names are made of
// (RFC 1123 section 2.1, and the underscore).
func isHost(s string) bool {
	other := strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._", r))
	})
	return !other || net.ParseIP(s) != nil
}

// HasPort says that an address as it was typed names its port.
func HasPort(s string) bool {
	_, _, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(s, "https://"), "/"))
	return err == nil
}

// Load returns the profile of a gateway's host, or the current one when
// host is "".
func (d Dir) Load(host string) (Profile, error) {
	if host == "" {
		b, err := os.ReadFile(d.current())
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "" {
			return Profile{}, ErrNotLoggedIn
		}
		if err != nil {
			return Profile{}, err
		}
		host = strings.TrimSpace(string(b))
	}
	if !ValidName(host) {
		return Profile{}, problem(sallyport.ErrInvalid, fmt.Sprintf("%q is not the name of a profile", host), "")
	}
	path := filepath.Join(string(d), host+".yaml")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Profile{}, ErrNotLoggedIn
	}
	if err != nil {
		return Profile{}, err
	}
	var f Profile
	if err := yaml.Unmarshal(b, &f); err != nil {
		return Profile{}, problem(sallyport.ErrInvalid, path+" is not a profile: "+err.Error(), "log in again: sally login --proxy="+host)
	}
	if err := f.Check(); err != nil {
		return Profile{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Named is the profile of a gateway as it was typed, with a port or without one:
// that of another port of the same host is another gateway's.
func (d Dir) Named(typed string) (Profile, error) {
	addr, err := Address(typed)
	if err != nil {
		return Profile{}, err
	}
	host, _, _ := net.SplitHostPort(addr)
	f, err := d.Load(host)
	switch {
	case errors.Is(err, sallyport.ErrInvalid):
		return Profile{}, err
	case err != nil:
		return Profile{}, problem(sallyport.ErrUnauthorized, "Not logged in to "+addr+".", "sally login --proxy="+addr)
	case HasPort(typed) && f.WebProxyAddr != addr:
		return Profile{}, problem(sallyport.ErrUnauthorized, fmt.Sprintf("Not logged in to %s, but to %s.", addr, f.WebProxyAddr), "sally login --proxy="+addr)
	}
	return f, nil
}

// Current is the current profile; ok is false when there is none.
func (d Dir) Current() (f Profile, ok bool) {
	f, err := d.Load("")
	return f, err == nil
}

// ErrNotLoggedIn is told as tsh tells it.
var ErrNotLoggedIn = &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "Not logged in.", Hint: "sally login --proxy=HOST"}

// Delete removes the profile, and is no longer the current one.
func (d Dir) Delete(f Profile) error {
	err := os.Remove(filepath.Join(string(d), f.Name()+".yaml"))
	current, cerr := os.ReadFile(d.current())
	if cerr == nil && strings.TrimSpace(string(current)) == f.Name() {
		err = errors.Join(err, os.Remove(d.current()))
	}
	return err
}

func (d Dir) current() string { return filepath.Join(string(d), "current-profile") }

// List returns all profiles, the current one first. Files that are no profiles
// are left out.
func (d Dir) List() ([]Profile, error) {
	current, err := d.Load("")
	if err != nil && !errors.Is(err, sallyport.ErrUnauthorized) {
		return nil, err
	}
	var out []Profile
	if err == nil {
		out = append(out, current)
	}
	files, err := os.ReadDir(string(d)) // in the order of their names
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, file := range files {
		host, ok := strings.CutSuffix(file.Name(), ".yaml")
		if !ok {
			continue
		}
		f, err := d.Load(host)
		if err == nil && f.Name() != current.Name() {
			out = append(out, f)
		}
	}
	return out, nil
}

// Save writes the profile and makes it the current one.
func (d Dir) Save(f Profile) error {
	if err := f.Check(); err != nil {
		return err
	}
	b, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(string(d), f.Name()+".yaml"), b); err != nil {
		return err
	}
	return WriteFile(d.current(), []byte(f.Name()+"\n"))
}

// Locked runs f while no other sally changes the home directory.
func (d Dir) Locked(f func() error) error {
	if err := os.MkdirAll(string(d), dirMode); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(string(d), ".lock"), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lockFile(lock); err != nil {
		return err
	}
	return f()
}
