package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileRateBar is of a copy's bytes per second, to stock OpenSSH straight to sshd.
const fileRateBar = 0.80

// sameCipher is what sally config puts first: AES-GCM, which processors do.
const sameCipher = "aes128-gcm@openssh.com"

// fileTool is a stock program that copies one file.
type fileTool struct {
	name    string
	command func(ctx context.Context, way []string, host string, c copied) *exec.Cmd
}

// copied is one copy: a local file and a remote one.
type copied struct {
	local, remote string
	up            bool
}

var fileTools = [...]fileTool{
	{"scp", func(ctx context.Context, way []string, host string, c copied) *exec.Cmd {
		from, to := c.local, host+":"+c.remote
		if !c.up {
			from, to = to, from
		}
		return exec.CommandContext(ctx, "scp", append(way, "-q", from, to)...)
	}},
	{"sftp", func(ctx context.Context, way []string, host string, c copied) *exec.Cmd {
		batch := fmt.Sprintf("put %s %s\n", c.local, c.remote)
		if !c.up {
			batch = fmt.Sprintf("get %s %s\n", c.remote, c.local)
		}
		cmd := exec.CommandContext(ctx, "sftp", append(way, "-q", "-b", "-", host)...)
		cmd.Stdin = bytes.NewReader([]byte(batch))
		return cmd
	}},
}

// fileWay is one way to a server that takes files: options of scp and sftp.
type fileWay struct {
	title   string
	options []string
	host    string
}

func (w *world) filesThrough() fileWay {
	return fileWay{"ProxyCommand sally proxy ssh, as sally config writes it", []string{"-F", w.path("ssh_config"), "-o", "BatchMode=yes"}, w.login + "@" + w.node + "." + cluster}
}

// filesDirect has the key exchange that the way through has (see stockDirect),
// and OpenSSH's own choice of a cipher, or the one given.
func (w *world) filesDirect(cipher string) fileWay {
	host, port, _ := net.SplitHostPort(w.sshd.addr)
	d := fileWay{"straight to sshd, same key exchange", []string{"-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "KexAlgorithms=curve25519-sha256",
		"-o", "UserKnownHostsFile=" + w.sshd.known, "-i", w.sshd.keyFile, "-P", port}, w.login + "@" + host}
	if cipher != "" {
		d.title += " and cipher"
		d.options = append(d.options, "-c", cipher)
	}
	return d
}

// fileMeasures are copies of one file by stock programs.
func (w *world) fileMeasures(z sizes) []comparison {
	var out []comparison
	for _, tool := range fileTools {
		for _, way := range []struct {
			name, title string
			up          bool
		}{{"up", "client to server", true}, {"down", "server to client", false}} {
			for _, peer := range []struct{ name, cipher string }{{"sshd", ""}, {"sshd-gcm", sameCipher}} {
				if tool.name != "scp" && (peer.cipher != "" || z.quick) {
					continue // the same protocol, by the same library
				}
				m := comparison{Measure: Measure{
					Name:  fmt.Sprintf("files/%s-%s-%s", tool.name, way.name, peer.name),
					Title: fmt.Sprintf("%s, %s", tool.name, way.title), A: tool.name + " with ProxyCommand sally proxy ssh",
					Load: fmt.Sprintf("one file of %d MB, with connecting", z.fileMegabytes), Quantities: bulkQuantities(),
				}}
				m.Quantities[0].Ratio = fileRateBar
				if peer.cipher != "" {
					m.Title, m.Quantities[0].Ratio = m.Title+", same cipher", 0
				}
				w.fileSides(&m, tool, way.up, peer.cipher, z.fileMegabytes)
				out = append(out, m)
			}
		}
	}
	return out
}

func (w *world) fileSides(m *comparison, tool fileTool, up bool, cipher string, mb int) {
	if _, err := lookPeer(tool.name); w.sshMissing != nil || err != nil {
		m.B, m.Missing = tool.name+" straight to sshd", tool.name
		if w.sshMissing != nil {
			m.Missing = w.sshMissing.(missingPeer).name
		}
		return
	}
	through, direct := w.filesThrough(), w.filesDirect(cipher)
	m.B = tool.name + " " + direct.title
	place := &filePlace{mb: mb, near: w.dir}
	m.open = place.open
	m.a = w.counted(w.copying(place, tool, through, up), mb)
	m.b = w.copying(place, tool, direct, up)
}

// copying is a side: one copy, whose target is removed before and checked after.
func (w *world) copying(p *filePlace, tool fileTool, way fileWay, up bool) side {
	return func(ctx context.Context) (Sample, error) {
		to := filepath.Join(p.dir, "to")
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		c := copied{local: filepath.Join(p.dir, "from"), remote: to, up: up}
		if !up {
			c.local, c.remote = c.remote, c.local
		}
		s, err := timed("rate", func(ctx context.Context) (float64, error) {
			cmd := tool.command(ctx, append([]string(nil), way.options...), way.host, c)
			cmd.Env, cmd.Dir = w.env(), w.dir
			_, err := output(cmd)
			return float64(p.mb), err
		})(ctx)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(to)
		if err != nil {
			return nil, err
		}
		if info.Size() != int64(p.mb)*1e6 {
			return nil, fmt.Errorf("%d bytes of %d MB arrived", info.Size(), p.mb)
		}
		return s, nil
	}
}

// filePlace is where the file and its copy are: in memory, where there is room,
// so that a disk that is slower than both sides does not make them equal.
type filePlace struct {
	mb   int
	near string // where there is no such place
	dir  string
}

const inMemory = "/dev/shm"

func (p *filePlace) open(context.Context) (closed func(), err error) {
	if p.dir, err = os.MkdirTemp(cmp.Or(p.memory(), p.near), "sallybench"); err != nil {
		return nil, err
	}
	closed = func() { os.RemoveAll(p.dir) }
	if err := writeRandom(filepath.Join(p.dir, "from"), int64(p.mb)*1e6); err != nil {
		closed()
		return nil, err
	}
	return closed, nil
}

// memory is the directory in memory, or "".
func (p *filePlace) memory() string {
	var fs unix.Statfs_t
	if err := unix.Statfs(inMemory, &fs); err != nil || int64(fs.Bavail)*int64(fs.Bsize) < 3*int64(p.mb)*1e6 {
		return ""
	}
	return inMemory
}
