package upgrade

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

const clusterName = "gw.test"

// cluster is auth, gateway and agent, each in processes of its own, and somebody
// who may use everything.
type cluster struct {
	t               testing.TB
	dir, pin        string
	authAt, gateway string
	auth, gw, agent *service
	person          *person
	node            string
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) admin(args ...string) string {
	c.t.Helper()
	return c.person.run("sallyctl", append([]string{"--data-dir=" + c.path("auth")}, args...)...)
}

// token makes a join token and puts it into a file.
func (c *cluster) token(role string) string {
	c.t.Helper()
	var t struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(c.admin("tokens", "add", "--type="+role, "--single-use", "--format=json")), &t); err != nil {
		c.t.Fatal(err)
	}
	return write(c.t, c.path(role+".token"), t.Token+"\n")
}

// startCluster brings all three up, with a node, a database, and routes beside
// them.
func startCluster(t testing.TB, routes string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: shortDir(t), authAt: freePort(t), gateway: freePort(t), person: newPerson(t)}
	c.auth = startService(t, c.dir, "auth", fmt.Sprintf("version: 1\ncluster: %s\ndata_dir: %s\nroles: [auth]\nauth: {listen: [%q], second_factor: optional}\ngateway: {public_address: %q}\n", clusterName, c.path("auth"), c.authAt, c.gateway))
	var status struct {
		CAPins []string `json:"ca_pins"`
	}
	await(t, "auth", func() bool {
		out, err := c.person.output(t.Context(), "", "sallyctl", "--data-dir="+c.path("auth"), "status", "--format=json")
		return err == nil && json.Unmarshal([]byte(out), &status) == nil && len(status.CAPins) > 0
	})
	c.pin = status.CAPins[0]
	join := func(role string) string {
		return fmt.Sprintf("  join: {token_file: %q, ca_pin: %q}\n", c.token(role), c.pin)
	}
	c.gw = startService(t, c.dir, "gateway", fmt.Sprintf("version: 1\ndata_dir: %s\nroles: [gateway]\ngateway:\n  listen: [%q]\n  public_address: %q\n  auth: %q\n%s%s",
		c.path("gw"), c.gateway, c.gateway, c.authAt, join("gateway"), routes))
	await(t, "the gateway's port", func() bool {
		conn, err := net.Dial("tcp", c.gateway)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	_, port, _ := net.SplitHostPort(c.database().Addr)
	c.agent = startService(t, c.dir, "agent", fmt.Sprintf("version: 1\ndata_dir: %s\nroles: [agent]\nagent:\n  gateways: [%q]\n%s  ssh: {enabled: true}\n  databases: [{name: orders, protocol: postgres, address: %q}]\n",
		c.path("ag"), c.gateway, join("agent"), net.JoinHostPort("127.0.0.1", port)))
	c.login()
	for _, kind := range [][]string{{"ls"}, {"db", "ls"}} {
		await(t, strings.Join(kind, " "), func() bool {
			out, err := c.person.output(t.Context(), "", "sally", append(kind, "-f", "json")...)
			return err == nil && strings.TrimSpace(out) != "[]"
		})
	}
	c.node = strings.TrimSpace(c.person.run("sally", "ls", "-f", "names"))
	return c
}

// database starts a PostgreSQL that lets agents in.
func (c *cluster) database() *postgres.Server {
	c.t.Helper()
	c.admin("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", "--out="+c.path("pg"))
	read := func(suffix string) []byte {
		b, err := os.ReadFile(c.path("pg" + suffix))
		if err != nil {
			c.t.Fatal(err)
		}
		return b
	}
	dir, err := os.MkdirTemp("", "sallyport-upgrade-pg-")
	if err != nil {
		c.t.Fatal(err)
	}
	db, err := postgres.Start(dir, postgres.Options{Cert: read(".crt"), Key: read(".key"), ClientCA: read(".cas"),
		HBA: []string{"hostssl all all 127.0.0.1/32 cert"}, SQL: []string{"CREATE ROLE app LOGIN", "CREATE DATABASE app OWNER app"}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		db.Stop()
		os.RemoveAll(dir)
	})
	return db
}

// login makes a user who may use everything, and logs in.
func (c *cluster) login() {
	c.t.Helper()
	var link struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal([]byte(c.admin("users", "add", "--roles=access", "--logins="+loginName(c.t), "--db-users=app", "--db-names=app", "--format=json", "ann")), &link); err != nil {
		c.t.Fatal(err)
	}
	const password = "a long enough password"
	claim(c.t, strings.Replace(link.URL, "https://"+clusterName, "https://127.0.0.1", 1), password)
	file := write(c.t, filepath.Join(c.person.home, "password"), password+"\n")
	c.person.run("sally", "login", "--proxy="+c.gateway, "--ca-pin="+c.pin, "--user=ann", "--password-file="+file)
	write(c.t, filepath.Join(c.person.home, "ssh_config"), c.person.run("sally", "config"))
	write(c.t, filepath.Join(c.person.home, "jump_config"), c.person.run("sally", "config", "--jump"))
}

func loginName(t testing.TB) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return me.Username
}

func claim(t testing.TB, link, password string) {
	t.Helper()
	client := &http.Client{Timeout: runWait, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.PostForm(link, map[string][]string{"password": {password}, "again": {password}, "code": {""}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("claim: %s\n%s", resp.Status, b)
	}
}

// ssh is a command of OpenSSH's, with the user's configuration.
func (c *cluster) ssh(program string, args ...string) (string, []string) {
	return program, append([]string{"-F", filepath.Join(c.person.home, "ssh_config")}, args...)
}

func (c *cluster) at() string { return loginName(c.t) + "@" + c.node + "." + clusterName }

// shell is one session of OpenSSH, which stays open.
func (c *cluster) shell(cs *clients) { c.shellBy(cs, "one shell of OpenSSH", "ssh_config") }

// jumper is one through the gateway's jump server: it stays with the process that
// it came to.
func (c *cluster) jumper(cs *clients) { c.shellBy(cs, "one shell of ssh -J", "jump_config") }

func (c *cluster) shellBy(cs *clients, what, config string) {
	c.t.Helper()
	cmd := c.person.command(context.Background(), "ssh", "-F", filepath.Join(c.person.home, config), c.at(), "sh")
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	cs.add(what, func(ctx context.Context, n int64) error {
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		defer stop()
		if _, err := fmt.Fprintf(in, "sleep 0.05; echo turn %d\n", n); err != nil {
			return err
		}
		line, err := lines.ReadString('\n')
		return orOther(err, line, fmt.Sprintf("turn %d\n", n))
	}, func() error {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, lines)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("the shell's end: %w: %s", err, errs.String())
		}
		return nil
	})
}

// execs are short sessions, one after the other.
func (c *cluster) execs(cs *clients) {
	cs.add("ssh, a command", func(ctx context.Context, n int64) error {
		name, args := c.ssh("ssh", c.at(), fmt.Sprintf("echo %d", n))
		out, err := c.person.output(ctx, "", name, args...)
		return orOther(err, out, fmt.Sprintf("%d\n", n))
	}, nil)
}

// copies copies a file there and back, so slowly that upgrades come in between.
func (c *cluster) copies(cs *clients) {
	c.t.Helper()
	data := make([]byte, 4<<20)
	mathrand.NewChaCha8([32]byte{2}).Read(data)
	file, there, back := write(c.t, c.path("scp-file"), string(data)), c.path("scp-there"), c.path("scp-back")
	cs.add("scp", func(ctx context.Context, _ int64) error {
		// -O: the server has no sftp. -l is in Kbit/s.
		name, args := c.ssh("scp", "-O", "-q", "-l", "24000")
		_, err := c.person.output(ctx, "", name, append(args, file, c.at()+":"+there)...)
		if err == nil {
			_, err = c.person.output(ctx, "", name, append(args, c.at()+":"+there, back)...)
		}
		if err != nil {
			return err
		}
		got, err := os.ReadFile(back)
		return errors.Join(orOther(err, sum(got), sum(data)), os.Remove(back), os.Remove(there))
	}, nil)
}

// tables copies a table out and in.
func (c *cluster) tables(cs *clients) {
	c.t.Helper()
	c.person.run("sally", "db", "login", "--db-user=app", "--db-name=app", "orders")
	cs.addTable(c.person, "service="+clusterName+"-orders")
}

// canaries goes back with one, and on with another: what it has are streams of
// agents that have their tunnels with the old process.
func (c *cluster) canaries(cs *clients) {
	c.t.Helper()
	for _, end := range []string{"back", "finish"} {
		y := c.gw.canary("--canary=50%", "--watch=10m")
		await(c.t, "a canary", func() bool { return c.gw.canaryState() != nil })
		for range 2 {
			c.shell(cs)
		}
		cs.goOn()
		y.serving(1)
		last := c.gw.canary("--" + end)
		want := map[string]string{"back": "back", "finish": "done"}[end]
		if r := last.end(); last.err != nil || r.Outcome != want || r.Canary.New.Decided == 0 || r.Canary.New.Failed+uint64(r.Canary.Lost+r.Canary.Left) > 0 {
			c.t.Errorf("--%s: %v: %+v %+v\n%s", end, last.err, r, r.Canary, last.stderr)
		}
		if r := y.end(); r.Outcome == "done" {
			c.gw.generationsSeen = append(c.gw.generationsSeen, r.FromPID)
		}
		cs.goOn()
	}
}

// streams is how many the gateway's tunnels carry.
func (s *service) streams() (n int) {
	var st struct {
		Gateway struct {
			Tunnels []struct {
				Streams int `json:"streams"`
			} `json:"tunnels"`
		} `json:"gateway"`
	}
	out, _, err := s.command(context.Background(), "status")
	if err != nil || json.Unmarshal([]byte(out), &st) != nil {
		return -1
	}
	for _, t := range st.Gateway.Tunnels {
		n += t.Streams
	}
	return n
}

func needPeers(t testing.TB) {
	t.Helper()
	for _, name := range []string{"ssh", "scp", "psql", "curl"} {
		if _, err := exec.LookPath(name); err != nil {
			peers.Missing(t, name)
		}
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
}

// TestTunnels: people use a node, a database and a site while their gateway is
// upgraded again and again. The agent is another process, and is not told.
func TestTunnels(t *testing.T) {
	needPeers(t)
	s := startSite(t, 4<<20)
	c := startCluster(t, fmt.Sprintf("  routes:\n    - {names: [%s, localhost], to: [%q]}\n", webName, s.Listener.Addr()))
	cs := newClients(t)
	c.shell(cs)
	c.jumper(cs)
	c.execs(cs)
	c.copies(cs)
	c.tables(cs)
	c.canaries(cs)
	cs.browse(c.person, c.gateway, s)
	for n := range upgrades(t) {
		cs.goOn()
		r := c.gw.upgrade()
		t.Logf("upgrade %d: process %d to %d, %d relays, %.0f ms, stood still for %.1f ms", n+1, r.FromPID, r.ToPID, r.Relays, r.TookMS, r.StallMS)
	}
	cs.goOn()
	cs.end()
	await(t, "all streams end", func() bool { return c.gw.streams() == 0 })
	for _, pid := range c.gw.generationsSeen {
		await(t, fmt.Sprintf("process %d ends", pid), func() bool { return ended(pid) })
	}
}
