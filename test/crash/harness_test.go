package crash

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/tools/peers/port"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	patience = 90 * time.Second // race builds on a busy machine
	stopWait = 30 * time.Second // as the unit of the operator's guide says
	oneCall  = 30 * time.Second

	clusterName = "gw.test"
)

// binary makes the program once, with failpoints, and with the race detector
// when the tests have it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sallyport-crash-")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-buildvcs=false", "-tags", "failpoints"}
	if underRace {
		args = append(args, "-race")
	}
	path := filepath.Join(dir, "sallyport")
	if out, err := exec.Command("go", append(args, "-o", path, "../../cmd/sallyport")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// output keeps the end of what a process printed.
type output struct {
	mu sync.Mutex
	b  []byte
}

const maxOutput = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	o.b = o.b[max(0, len(o.b)-maxOutput):]
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

// process is one role; it may be started and killed many times.
type process struct {
	t    testing.TB
	role string
	args []string
	out  output

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs the program. points are failpoints, or "".
func (p *process) start(points string) {
	p.t.Helper()
	path, err := binary()
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(path, p.args...)
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.Env = append(os.Environ(), "SALLYPORT_FAILPOINTS="+points, "GORACE=halt_on_error=1 exitcode=66")
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
}

func (p *process) running() (*exec.Cmd, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd, p.done
}

// kill ends the process in the middle of whatever it does.
func (p *process) kill() {
	cmd, done := p.running()
	_ = cmd.Process.Kill() // it may have ended at a failpoint
	<-done
}

// ended says that the process has ended, and how.
func (p *process) ended() bool {
	_, done := p.running()
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// stop ends the process in order.
func (p *process) stop() {
	cmd, done := p.running()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-done:
	case <-time.After(stopWait):
		p.t.Errorf("%s did not stop within %s", p.role, stopWait)
		p.kill()
	}
}

// cluster is auth, gateway and agent as processes of their own.
type cluster struct {
	t       testing.TB
	dir     string
	authAt  string
	gateway string
	proc    map[string]*process
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	if _, err := binary(); err != nil { // before there are ports: it may take longer than they are kept
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sp") // short, for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir, authAt: freePort(t), gateway: freePort(t), proc: map[string]*process{}}
	for _, role := range []string{"auth", "gateway", "agent"} {
		c.proc[role] = &process{t: t, role: role, args: []string{"start", "-c", filepath.Join(dir, role+".yaml")}}
	}
	t.Cleanup(func() {
		for _, role := range []string{"agent", "gateway", "auth"} {
			p := c.proc[role]
			p.stop()
			if out := p.out.String(); strings.Contains(out, "DATA RACE") || t.Failed() {
				t.Errorf("%s said last:\n%s", role, out[max(0, len(out)-6000):])
			}
		}
		os.RemoveAll(dir)
	})
	c.write("auth.yaml", fmt.Sprintf("version: 1\ncluster: %s\ndata_dir: auth\nroles: [auth]\nauth: {listen: [%q], second_factor: optional}\ngateway: {public_address: %q}\n", clusterName, c.authAt, c.gateway))
	return c
}

func freePort(t testing.TB) string {
	t.Helper()
	address, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (c *cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *cluster) write(name, text string) string {
	c.t.Helper()
	path := c.path(name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// await polls a condition of another process until it holds.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// admin is the API on auth's own machine.
func (c *cluster) admin() (sallyportv1connect.AdminServiceClient, func()) {
	path := c.path("auth", "admin.sock")
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}, DisableKeepAlives: true} // as sallyctl does
	return sallyportv1connect.NewAdminServiceClient(&http.Client{Transport: client.Again(tr), Timeout: oneCall}, "http://admin"), tr.CloseIdleConnections
}

// status waits for auth, and returns its pin.
func (c *cluster) status() string {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	var pin string
	await(c.t, "auth answers", func() bool {
		r, err := admin.GetStatus(c.t.Context(), connect.NewRequest(&sallyportv1.GetStatusRequest{}))
		if err == nil && len(r.Msg.GetCaPins()) > 0 {
			pin = r.Msg.GetCaPins()[0]
		}
		return pin != ""
	})
	return pin
}

// configure writes what gateway and agent start with: tokens for one use.
func (c *cluster) configure() {
	c.t.Helper()
	pin := c.status()
	c.write("gateway.yaml", fmt.Sprintf("version: 1\ndata_dir: gateway\nroles: [gateway]\ngateway:\n  listen: [%q]\n  public_address: %q\n  auth: %q\n  join: {token_file: %q, ca_pin: %q}\n",
		c.gateway, c.gateway, c.authAt, c.token("gateway"), pin))
	echo := c.echoServer()
	c.write("agent.yaml", fmt.Sprintf("version: 1\ndata_dir: agent\nroles: [agent]\nagent:\n  gateways: [%q]\n  join: {token_file: %q, ca_pin: %q}\n  tcp: [{name: echo, address: %q}]\n",
		c.gateway, c.token("agent"), pin, echo))
}

func (c *cluster) token(role string) string {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	r, err := admin.CreateToken(c.t.Context(), connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{role}, SingleUse: true}))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.write(role+".token", r.Msg.GetSecret()+"\n")
}

// echoServer says what it hears.
func (c *cluster) echoServer() string {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	var conns sync.WaitGroup
	accepting := make(chan struct{})
	c.t.Cleanup(func() {
		l.Close()
		<-accepting
		conns.Wait()
	})
	go func() {
		defer close(accepting)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { echo(conn) })
		}
	}()
	return l.Addr().String()
}

func echo(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		conn.SetDeadline(time.Now().Add(patience))
		n, err := conn.Read(buf)
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// web is the gateway's web origin.
func (c *cluster) web() *http.Client {
	return &http.Client{Timeout: oneCall, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
}

// person makes somebody with a password.
func (c *cluster) person(name, password string) {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	r, err := admin.CreateUser(c.t.Context(), connect.NewRequest(&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: name, Roles: []string{"access"}}}))
	if err != nil {
		c.t.Fatal(err)
	}
	link, err := url.Parse(r.Msg.GetClaimUrl())
	if err != nil {
		c.t.Fatal(err)
	}
	link.Host = c.gateway
	web := c.web()
	defer web.CloseIdleConnections()
	await(c.t, "the account is claimed", func() bool {
		resp, err := web.PostForm(link.String(), url.Values{"password": {password}, "again": {password}, "code": {""}})
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// events are all of some names that the audit log has, by their ids.
func (c *cluster) events(names ...string) map[string]event {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	const page = 10_000
	out := map[string]event{}
	req := &sallyportv1.SearchEventsRequest{Names: names, Limit: page}
	for {
		r, err := admin.SearchEvents(c.t.Context(), connect.NewRequest(req))
		if err != nil {
			c.t.Fatal(err)
		}
		before := len(out)
		for i, line := range r.Msg.GetEvents() {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				c.t.Fatal(err)
			}
			out[e.UID] = e
			if i == 0 { // the oldest: go on before it
				req.To = timestamppb.New(e.Time.Add(time.Millisecond))
			}
		}
		if len(r.Msg.GetEvents()) < page || len(out) == before {
			return out
		}
	}
}

// event is what the tests read of one.
type event struct {
	UID     string    `json:"uid"`
	Time    time.Time `json:"time"`
	Name    string    `json:"event"`
	User    string    `json:"user"`
	Success *bool     `json:"success"`
	Subject string    `json:"name"` // of what was made
}

// killed says that the process has ended by SIGKILL.
func killed(p *process) bool {
	if !p.ended() {
		return false
	}
	cmd, _ := p.running()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}
