package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// module is a peer that is built from its source, outside of our own go.mod.
type module struct {
	path, version string
	programs      map[string]string // program: package within the module
	tags          string
	replace       string // a go.mod's replace line that the module needs and only a main module may have
}

// Versions are exact, so that results can be repeated.
var (
	frpModule = module{
		path: "github.com/fatedier/frp", version: "v0.70.0", tags: "noweb",
		programs: map[string]string{"frps": "/cmd/frps", "frpc": "/cmd/frpc"},
		replace:  "github.com/hashicorp/yamux => github.com/fatedier/yamux v0.0.0-20250825093530-d0154be01cd6",
	}
	chiselModule = module{path: "github.com/jpillora/chisel", version: "v1.12.1", programs: map[string]string{"chisel": ""}}
)

// buildWait is for a build with nothing in the caches.
const buildWait = 10 * time.Minute

// find returns the paths of the module's programs: those on the PATH, else
// those built before, else it builds them.
func (m module) find(ctx context.Context, cache string) (map[string]string, error) {
	paths := map[string]string{}
	for program := range m.programs {
		if path, err := exec.LookPath(program); err == nil {
			paths[program] = path
		}
	}
	if len(paths) == len(m.programs) {
		return paths, nil
	}
	dir := filepath.Join(cache, strings.ReplaceAll(m.path, "/", "_")+"@"+m.version)
	if !m.built(dir, paths) {
		ctx, cancel := context.WithTimeout(ctx, buildWait)
		defer cancel()
		if err := m.build(ctx, dir); err != nil {
			return nil, err
		}
	}
	if !m.built(dir, paths) {
		return nil, fmt.Errorf("%s: built, and not there", m.path)
	}
	return paths, nil
}

// built fills in the paths of a directory that has all programs.
func (m module) built(dir string, paths map[string]string) bool {
	for program := range m.programs {
		path := filepath.Join(dir, program)
		if s, err := os.Stat(path); err != nil || !s.Mode().IsRegular() {
			return false
		}
		paths[program] = path
	}
	return true
}

// build has a main module of its own. The checksums of what the peer needs are
// the peer's: its go.sum is within the module, which the checksum database
// answers for.
func (m module) build(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp("", "benchpeer")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(m.gomod()), 0o600); err != nil {
		return err
	}
	source, err := m.download(ctx, work)
	if err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(source, "go.sum"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	own, _ := os.ReadFile(filepath.Join(work, "go.sum")) // of the module itself, when the download wrote it
	if err := os.WriteFile(filepath.Join(work, "go.sum"), append(own, sums...), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for program, pkg := range m.programs {
		if _, err := m.tool(ctx, work, "build", "-mod=mod", "-trimpath", "-tags="+m.tags, "-o", filepath.Join(dir, program), m.path+pkg); err != nil {
			return err
		}
	}
	return nil
}

func (m module) gomod() string {
	text := fmt.Sprintf("module peer\n\ngo 1.26\n\nrequire %s %s\n", m.path, m.version)
	if m.replace != "" {
		text += "\nreplace " + m.replace + "\n"
	}
	return text
}

// download returns where the module's source is.
func (m module) download(ctx context.Context, work string) (string, error) {
	out, err := m.tool(ctx, work, "mod", "download", "-json", m.path+"@"+m.version)
	if err != nil {
		return "", err
	}
	var got struct{ Dir string }
	if err := json.Unmarshal(out, &got); err != nil || got.Dir == "" {
		return "", fmt.Errorf("%s: no source: %w", m.path, err)
	}
	return got.Dir, nil
}

func (m module) tool(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "CGO_ENABLED=0", "GOWORK=off")
	out, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", m.path, m.version, err)
	}
	return out, nil
}

// peer is the module as the results name it.
func (m module) peer(err error, paths map[string]string) Peer {
	p := Peer{Name: filepath.Base(m.path), Version: m.version}
	if err != nil {
		return Peer{Name: p.Name, Missing: true}
	}
	for _, path := range paths {
		if !strings.Contains(path, "@"+m.version) {
			p.Version = "on the PATH: " + filepath.Dir(path)
		}
	}
	return p
}
