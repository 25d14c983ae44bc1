package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
)

// protocolSSH is what nodes are asked for.
const protocolSSH = alpn.SSH1

// command is one that a client program is to run.
type command func(ctx context.Context, remote string) *exec.Cmd

// stockThrough is OpenSSH's client by ProxyCommand, as sally config writes it.
func (w *world) stockThrough(ctx context.Context, remote string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ssh", "-F", w.path("ssh_config"), "-o", "BatchMode=yes", w.login+"@"+w.node+"."+cluster, remote)
	cmd.Env, cmd.Dir = w.env(), w.dir
	return cmd
}

// stockDirect is the same client straight to sshd, held to the key exchange that
// it agrees on with Sallyport's node: the sntrup761x25519 that two OpenSSH 9
// prefer takes hundreds of milliseconds of CPU in some builds, and would be
// taken for a merit of ours.
func (w *world) stockDirect(ctx context.Context, remote string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(w.sshd.addr)
	cmd := exec.CommandContext(ctx, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "KexAlgorithms=curve25519-sha256",
		"-o", "UserKnownHostsFile="+w.sshd.known,
		"-i", w.sshd.keyFile, "-p", port, w.login+"@"+host, remote)
	cmd.Env, cmd.Dir = w.env(), w.dir
	return cmd
}

// sallySSH is our own client.
func (w *world) sallySSH(ctx context.Context, remote string) *exec.Cmd {
	return w.sally(ctx, "ssh", w.login+"@"+w.node, remote)
}

// execs runs "true" n times, one after the other, each with a connection and a
// client process of its own.
func execs(c command, n int) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		for i := range n {
			if err := runOnce(ctx, c); err != nil {
				return 0, fmt.Errorf("number %d of %d: %w", i+1, n, err)
			}
		}
		return float64(n), nil
	}
}

func runOnce(ctx context.Context, c command) error {
	ctx, cancel := context.WithTimeout(ctx, runWait)
	defer cancel()
	began := time.Now()
	_, err := output(c(ctx, "true"))
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("not ended after %s: %w", time.Since(began).Round(time.Second), err)
	}
	return err
}

// connect opens an SSH connection within this process.
type connect func(ctx context.Context) (*ssh.Client, error)

// inside returns how x/crypto/ssh connects through Sallyport by dataplane/dial.
func (w *world) inside() (connect, error) {
	d, err := w.dialer()
	if err != nil {
		return nil, err
	}
	signer, err := w.signer()
	if err != nil {
		return nil, err
	}
	authority, err := w.hostAuthority()
	if err != nil {
		return nil, err
	}
	cfg := ssh.ClientConfig{User: w.login, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: authority}
	return func(ctx context.Context) (*ssh.Client, error) {
		conn, err := d.DialResource(ctx, sallyport.KindNode, w.node, protocolSSH)
		if err != nil {
			return nil, err
		}
		return speakSSH(conn, cfg)
	}, nil
}

// straight returns how the same client connects to sshd.
func (w *world) straight() connect {
	cfg := ssh.ClientConfig{User: w.login, Auth: []ssh.AuthMethod{ssh.PublicKeys(w.sshd.key)}, HostKeyCallback: ssh.FixedHostKey(w.sshd.host)}
	return func(ctx context.Context) (*ssh.Client, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.sshd.addr)
		if err != nil {
			return nil, err
		}
		return speakSSH(conn, cfg)
	}
}

// speakSSH owns conn. Sessions of a benchmark are short, so one deadline is for
// all of it.
func speakSSH(conn net.Conn, cfg ssh.ClientConfig) (*ssh.Client, error) {
	conn.SetDeadline(time.Now().Add(runWait))
	c, chans, reqs, err := ssh.NewClientConn(conn, "peer:0", &cfg)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, chans, reqs), nil
}

// phases are how long the parts of one execution take.
type phases struct {
	ready time.Duration // until the connection is authenticated
	start time.Duration // from then until the server has started the command
	run   time.Duration // from then to its exit status: the login shell and what it reads first are in it
}

func execOnce(ctx context.Context, to connect) (p phases, err error) {
	began := time.Now()
	lap := func() time.Duration {
		now := time.Now()
		defer func() { began = now }()
		return now.Sub(began)
	}
	c, err := to(ctx)
	if err != nil {
		return p, err
	}
	defer c.Close()
	p.ready = lap()
	s, err := c.NewSession()
	if err != nil {
		return p, err
	}
	defer s.Close()
	if err := s.Start("true"); err != nil {
		return p, err
	}
	p.start = lap()
	err = s.Wait()
	p.run = lap()
	return p, err
}

// execInside is the first sign of life of an agent.
func (w *world) execInside(ctx context.Context) error {
	to, err := w.inside()
	if err != nil {
		return err
	}
	_, err = execOnce(ctx, to)
	return err
}

// execsInside is execs without a client process, by several workers at once. Of
// the phases it gives the means.
func execsInside(to connect, n, workers int) side {
	return func(ctx context.Context) (Sample, error) {
		var mu sync.Mutex
		var sum phases // guarded by mu
		began := time.Now()
		err := spread(ctx, n, workers, func(ctx context.Context) error {
			p, err := execOnce(ctx, to)
			mu.Lock()
			defer mu.Unlock()
			sum.ready, sum.start, sum.run = sum.ready+p.ready, sum.start+p.start, sum.run+p.run
			return err
		})
		ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(n) }
		return Sample{"rate": float64(n) / time.Since(began).Seconds(), "ready_ms": ms(sum.ready), "start_ms": ms(sum.start), "run_ms": ms(sum.run)}, err
	}
}

// spread does something n times by workers at once and stops at the first fault.
func spread(ctx context.Context, n, workers int, do func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := do(ctx); err != nil {
				return fmt.Errorf("number %d of %d: %w", i+1, n, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// sshMeasures are the executions per second.
func (w *world) sshMeasures(z sizes) []comparison {
	rate := Quantity{Key: "rate", Title: "executions", Unit: "/s", More: true}
	quantities := []Quantity{rate, gatewayCPU("execution"), agentCPU("execution")}
	load := func(n, workers int) string {
		return fmt.Sprintf("%d executions of \"true\", each on a connection of its own, %d at a time", n, workers)
	}
	measure := func(name, title, a, b string, n, workers int) comparison {
		m := comparison{Measure: Measure{Name: "ssh-exec/" + name, Title: title, A: a, B: b, Load: load(n, workers), Quantities: quantities}}
		if w.sshMissing != nil {
			m.Missing = w.sshMissing.(missingPeer).name
		}
		return m
	}
	stock := measure("openssh", "SSH execution, stock OpenSSH", "ssh with ProxyCommand sally proxy ssh", "ssh to sshd, same key exchange", z.execs, 1)
	stock.a = w.counted(timed("rate", execs(w.stockThrough, z.execs)), z.execs)
	stock.b = timed("rate", execs(w.stockDirect, z.execs))

	own := measure("sally", "SSH execution, sally ssh", "sally ssh", "ssh to sshd (sally ssh reaches no sshd by itself)", z.execs, 1)
	own.a = w.counted(timed("rate", execs(w.sallySSH, z.execs)), z.execs)
	own.b = stock.b

	one := measure("client", "SSH execution, one client program", "x/crypto/ssh by dataplane/dial", "x/crypto/ssh to sshd", z.execs, 1)
	many := measure("parallel", "SSH execution, several at once", "x/crypto/ssh by dataplane/dial", "x/crypto/ssh to sshd", z.parallelExecs, z.workers)
	for _, m := range []*comparison{&one, &many} {
		m.Quantities = append(slices.Clone(quantities),
			Quantity{Key: "ready_ms", Title: "until the connection is authenticated", Unit: " ms"},
			Quantity{Key: "start_ms", Title: "from then until the command is started", Unit: " ms"},
			Quantity{Key: "run_ms", Title: "from then to its exit status (the login shell's own start is in it)", Unit: " ms"})
	}
	if w.sshMissing == nil {
		through, err := w.inside()
		if err != nil {
			through = func(context.Context) (*ssh.Client, error) { return nil, err }
		}
		one.a = w.counted(execsInside(through, z.execs, 1), z.execs)
		one.b = execsInside(w.straight(), z.execs, 1)
		many.a = w.counted(execsInside(through, z.parallelExecs, z.workers), z.parallelExecs)
		many.b = execsInside(w.straight(), z.parallelExecs, z.workers)
	}
	return []comparison{stock, own, one, many}
}

// counted adds the CPU of gateway and agent per thing done.
func (w *world) counted(s side, n int) side { return withCPU(s, float64(n), w.watched) }

func gatewayCPU(what string) Quantity {
	return Quantity{Key: "gateway_cpu_us", Title: "CPU of the gateway per " + what, Unit: "µs"}
}

func agentCPU(what string) Quantity {
	return Quantity{Key: "agent_cpu_us", Title: "CPU of the agent per " + what, Unit: "µs"}
}
