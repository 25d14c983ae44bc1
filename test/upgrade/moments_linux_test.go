package upgrade

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCanaryBreaksComingBack: a canary that was good until its connections were to
// come back, and breaks then, is no program for the rest. It was upgraded to.
func TestCanaryBreaksComingBack(t *testing.T) {
	t.Parallel() // it waits more than it works
	for way, want := range map[string]string{"panic": "ended by itself", "hang": "did not give all its connections back"} {
		t.Run(way, func(t *testing.T) {
			g := startTriedAt(t, 0)
			before := g.pid()
			g.failing("canary.new.return=" + way)
			y := g.canary("--canary=50%", "--watch=10m")
			await(t, "a canary", func() bool { return g.canaryState() != nil })
			g.echo.attend(canaryTries)
			state := y.serving(1)
			finish := g.canary("--finish")
			r := y.end()
			<-finish.done
			if r.Outcome != "back" || !strings.Contains(r.Problem, want) || finish.err == nil || !strings.Contains(finish.stderr, want) {
				t.Errorf("%+v\n%v: %s", r, finish.err, finish.stderr)
			}
			g.servesAs(before)
			if way == "hang" { // as the hint says
				if r.Canary.Left == 0 {
					t.Errorf("%+v", r.Canary)
				}
				_ = syscall.Kill(state.PID, syscall.SIGKILL)
			}
			await(t, "the end of the canary", func() bool { return ended(state.PID) })
		})
	}
}

// TestCanaryBackComingBack: --back counts also while a canary's connections come back
// to be upgraded; it was heard, and nothing came of it.
func TestCanaryBackComingBack(t *testing.T) {
	t.Parallel() // it waits more than it works
	g := startTriedAt(t, 0)
	before := g.pid()
	g.failing("canary.new.returned#1=sleep:8s")
	y := g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.attend(canaryTries)
	y.serving(1)
	g.canary("--finish")
	await(t, "its connections come back", func() bool { s := g.canaryState(); return s != nil && s.Phase == "coming back" })
	g.canary("--back")
	if r := y.end(); r.Outcome != "back" || r.Canary.Left+r.Canary.Lost > 0 {
		t.Errorf("%+v", r)
	}
	g.servesAs(before)
}

// TestEndAtCommit: who wants the service to end, and asks the old process when the
// work is just another's, is heard. Only a process that stays in the other's place
// passed it on, and the service went on for ever.
func TestEndAtCommit(t *testing.T) {
	t.Parallel() // it waits more than it works
	g := startTriedAt(t, 0, "SALLYPORT_FAILPOINTS=handover.old.leave=sleep:15s")
	old := g.pid()
	told := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	t.Cleanup(func() { cancel(); <-told })
	go func() {
		defer close(told)
		_, _, _ = g.command(ctx, "upgrade") // nothing is asked but the process's log
	}()
	await(t, "the commit", func() bool { return strings.Contains(g.said(), "sallyport has taken over") })
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatalf("process %d has ended before it was asked to: %v", old, err)
	}
	<-g.done
	await(t, "the end of the new process", func() bool { _, err := g.status(); return err != nil })
}

// TestDrainGateway: what a drain of a gateway waits for: people in the jump server,
// who were passed over; and not the way of an agent to auth, for which it waited for
// ever.
func TestDrainGateway(t *testing.T) {
	needPeers(t)
	c := startCluster(t, "")
	cs := newClients(t)
	c.jumper(cs)
	cs.goOn()
	if out, stderr, err := c.gw.command(t.Context(), "drain", "--timeout=1s", "--notice=0s"); err == nil || !strings.Contains(stderr, "1 jump connection") {
		t.Fatalf("%v\n%s\n%s", err, out, stderr)
	}
	cs.goOn()
	cs.end()
	if out, stderr, err := c.gw.command(t.Context(), "drain", "--timeout=1m", "--notice=0s"); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, stderr)
	}
}

// TestStopWithRemnants: who stops or restarts a service ends the sessions of its old
// processes too, and their ends are in auth's log after the next start. The spools
// were closed before the old processes were told, and what those had to say was lost.
func TestStopWithRemnants(t *testing.T) {
	needPeers(t)
	for name, tt := range map[string]struct {
		config  string // of OpenSSH
		events  string // its start and its end
		service func(*cluster) *service
	}{
		"agent":   {"ssh_config", "session.start,session.end", func(c *cluster) *service { return c.agent }},
		"gateway": {"jump_config", "port", func(c *cluster) *service { return c.gw }},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, "")
			cmd := c.person.command(t.Context(), "ssh", "-F", filepath.Join(c.person.home, tt.config), c.at(), "echo here; cat")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "here\n" {
				t.Fatalf("%q, %v", line, err)
			}
			s := tt.service(c)
			r := s.upgrade()
			if ended(r.FromPID) {
				t.Fatal("the old process has not stayed for its session")
			}
			if err := syscall.Kill(r.ToPID, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for _, pid := range []int{r.FromPID, r.ToPID} {
				await(t, fmt.Sprintf("the end of process %d", pid), func() bool { return ended(pid) })
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the session has ended as if nothing had been")
			}
			config, err := os.ReadFile(s.config)
			if err != nil {
				t.Fatal(err)
			}
			startService(t, c.dir, name+"-again", string(config))
			await(t, "the session's start and end in the log", func() bool {
				codes := map[string]string{} // an event may be told twice when its owner ends, with one uid
				for line := range strings.Lines(c.admin("audit", "search", "--event="+tt.events)) {
					var e struct{ Event, Code, UID string }
					err := json.Unmarshal([]byte(line), &e)
					if before := codes[e.Event+e.Code]; err != nil || e.UID == "" || before != "" && before != e.UID {
						t.Fatalf("%v: %s", err, line)
					}
					codes[e.Event+e.Code] = e.UID
				}
				return len(codes) == 2
			})
		})
	}
}
