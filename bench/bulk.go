package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
)

func writeRandom(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, n)
	return errors.Join(err, f.Close())
}

// upload gives a file to a remote cat.
func upload(c command, path string, mb int) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		cmd := c(ctx, "cat >/dev/null")
		cmd.Stdin = f
		_, err = output(cmd)
		return float64(mb), err
	}
}

// download takes a file from a remote cat. What comes is written nowhere.
func download(c command, path string, mb int) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return 0, err
		}
		defer null.Close()
		cmd := c(ctx, "cat "+path)
		cmd.Stdout = null
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("download: %w", err)
		}
		return float64(mb), nil
	}
}

// bulkMeasures are ssh's bytes per second.
func (w *world) bulkMeasures(z sizes) []comparison {
	path := w.path("random")
	made := false
	file := func(s side) side { // the file is made only when it is needed
		return func(ctx context.Context) (Sample, error) {
			if !made {
				if err := writeRandom(path, int64(z.megabytes)*1e6); err != nil {
					return nil, err
				}
				made = true
			}
			return s(ctx)
		}
	}
	var out []comparison
	for _, client := range []struct {
		name, title string
		command     command
		b           string
	}{
		{"openssh", "ssh with ProxyCommand sally proxy ssh", w.stockThrough, "ssh to sshd, same key exchange"},
		{"sally", "sally ssh", w.sallySSH, "ssh to sshd (sally ssh reaches no sshd by itself)"},
	} {
		for _, way := range []struct {
			name, title string
			move        func(command, string, int) func(context.Context) (float64, error)
		}{{"up", "client to server", upload}, {"down", "server to client", download}} {
			m := comparison{Measure: Measure{
				Name: "ssh-bytes/" + client.name + "-" + way.name, Title: "ssh bytes, " + client.name + ", " + way.title, A: client.title, B: client.b,
				Load:       fmt.Sprintf("cat of %d MB of random bytes, with connecting", z.megabytes),
				Quantities: bulkQuantities(),
			}}
			if w.sshMissing != nil {
				m.Missing = w.sshMissing.(missingPeer).name
			} else {
				m.a = file(w.counted(timed("rate", way.move(client.command, path, z.megabytes)), z.megabytes))
				m.b = file(timed("rate", way.move(w.stockDirect, path, z.megabytes)))
			}
			out = append(out, m)
		}
	}
	return out
}
