package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/api"
)

const (
	// reloadAnswer is how long sallyport reload waits: for one that runs, and its own.
	reloadAnswer = 2*reloadWait + 20*time.Second

	// maxAnswer bounds what a running process says.
	maxAnswer = 64 << 20
)

// serveReload reloads for the admin socket's caller.
func (n *node) serveReload(w http.ResponseWriter, r *http.Request) {
	uid, ok := api.LocalAdmin(r.Context())
	if !ok {
		http.Error(w, "only root and the owner of the process may reload it", http.StatusForbidden)
		return
	}
	report, err := n.reload(r.Context(), "local-admin:"+uid)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
	}
	_ = json.NewEncoder(w).Encode(report) // who has gone away reads the log
}

type reloadCmd struct {
	Config  string `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration of the running sallyport; says where its data directory is."`
	DataDir string `name:"data-dir" env:"SALLY_DATA_DIR" help:"Data directory of the running sallyport, instead of --config."`
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
}

// Run asks the process on its admin socket. The process reads the file that it
// was started with.
func (c *reloadCmd) Run(p *program) error {
	dir, err := dataDir(c.Config, c.DataDir)
	if err != nil {
		return err
	}
	var report reloadReport
	if err := askAdmin(p.ctx, dir, question{method: http.MethodPost, path: "/reload", within: reloadAnswer}, &report); err != nil {
		return err
	}
	if c.Format != "text" {
		if err := output.Write(p.stdout, c.Format, &report); err != nil {
			return err
		}
	}
	if report.Problem != "" {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: report.Problem + "\nnothing was changed", Hint: report.Hint}
	}
	if c.Format == "text" {
		return report.print(p.stdout)
	}
	return nil
}

func (r *reloadReport) print(w io.Writer) error {
	var b strings.Builder
	if len(r.Changed) == 0 && r.Certificates == 0 {
		b.WriteString("Reloaded: nothing has changed.\n")
	} else {
		fmt.Fprintf(&b, "Reloaded: %s.\n", orText(strings.Join(r.Changed, ", "), "gateway.certificates"))
	}
	if d := r.Routes; d != nil && d.Added+d.Changed+d.Removed > 0 {
		fmt.Fprintf(&b, "Routes: %d added, %d changed, %d removed, %d as they were.\n", d.Added, d.Changed, d.Removed, d.Kept)
	}
	if r.Certificates > 0 {
		fmt.Fprintf(&b, "Certificates: %d changed.\n", r.Certificates)
	}
	if len(r.NeedsRestart) > 0 {
		fmt.Fprintf(&b, "NOT in effect yet: %s.\n", r.waiting())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// waiting names what the reload did not take, and by what it takes effect: an upgrade
// cuts nothing, a restart does.
func (r *reloadReport) waiting() string {
	fields := strings.Join(r.NeedsRestart, ", ")
	if slices.Contains(r.NeedsRestart, "roles") || slices.Contains(r.NeedsRestart, "data_dir") {
		return fields + ", by a restart" // an upgrade is refused as long as these differ
	}
	return fields + ", by sallyport upgrade or a restart"
}

// dataDir is where the admin socket is: as told, or as the configuration says.
// A configuration with faults still says it: the process is to tell them.
func dataDir(file, told string) (string, error) {
	if told != "" {
		return told, nil
	}
	if dir := plainDataDir(file); dir != "" {
		return dir, nil
	}
	c, err := loadConfig(file)
	if err == nil {
		return c.DataDir, nil
	}
	if dir := looseDataDir(file); dir != "" {
		return dir, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: err.Error(), Hint: "name what the running sallyport was started with: --config=FILE, or --data-dir=DIR of a demo", Cause: err}
	}
	return "", err
}

// looseDataDir finds data_dir in a file that is no good otherwise, when there is
// a socket in it.
func looseDataDir(file string) string {
	data, err := os.ReadFile(file)
	if err != nil || len(data) > maxConfig {
		return ""
	}
	dir := defaultData
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "data_dir:"); ok {
			value, _, _ = strings.Cut(value, " #")
			dir = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(file), dir)
	}
	if _, err := os.Stat(filepath.Join(dir, adminSocket)); err != nil {
		return ""
	}
	return dir
}

// question is something to ask a running process.
type question struct {
	method, path string
	within       time.Duration
}

// askAdmin asks the process of a data directory on its admin socket.
func askAdmin(ctx context.Context, dir string, q question, answer any) error {
	socket, err := sock.Path(dir, adminSocket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, q.within)
	defer cancel()
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer hc.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, q.method, "http://admin"+q.path, nil)
	if err != nil {
		return err
	}
	resp, err := hc.Do(req)
	if err != nil {
		at := filepath.Join(dir, adminSocket)
		if errors.Is(err, os.ErrPermission) {
			return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: at + ": permission denied", Hint: "use the account that sallyport runs as, or root", Cause: err}
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("the sallyport on %s has not answered within %v; what was asked may still be done", at, q.within),
				Hint: "sallyport status tells what came of it, or its log", Cause: err}
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("interrupted before the sallyport on %s has answered; what was asked may still be done", at),
				Hint: "sallyport status tells what came of it, or its log", Cause: err}
		}
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "no sallyport answers on " + at, Hint: "is it running? sallyport start", Cause: err}
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "application/json" {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("the sallyport that runs answers %s: %s", resp.Status, strings.TrimSpace(string(text)))}
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer)
}
