package attack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/controlplane/client"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	upWait   = 90 * time.Second
	callWait = 30 * time.Second

	// stage is the most that a stranger may take for one stage, and slack what
	// a busy machine may add: with it the time is below the 30 seconds that are the
	// next longer bound of any.
	stage = 10 * time.Second
	slack = 15 * time.Second

	// atOnce is how soon what nobody waits for is closed, on a busy machine too:
	// before its stage is over.
	atOnce = stage - time.Second
)

func TestMain(m *testing.M) {
	code := m.Run()
	if d := running; d != nil {
		if err := d.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		os.RemoveAll(d.dir)
	}
	os.Exit(code)
}

// demo is the one that all tests of the package attack.
type demo struct {
	dir  string // of all that belongs to it
	data string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}

	Proxy      string `json:"proxy"`
	Cluster    string `json:"cluster"`
	CAPin      string `json:"ca_pin"`
	User       string `json:"user"`
	Password   string `json:"password"`
	TOTPSecret string `json:"totp_secret"`
	Resources  []struct {
		Kind   string   `json:"kind"`
		Name   string   `json:"name"`
		Logins []string `json:"logins"`
	} `json:"resources"`

	mu   sync.Mutex
	step int64 // of the one-time code that was used last
}

var (
	running *demo
	shared  = sync.OnceValues(func() (d *demo, err error) {
		d, err = start()
		running = d
		return d, err
	})
)

// target returns the demo, and starts it when it is the first to ask.
func target(t testing.TB) *demo {
	t.Helper()
	if testing.Short() {
		t.Skip("starts the programs")
	}
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	d, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.done:
		t.Fatalf("the demo has ended:\n%s", d.out.last(40))
	default:
	}
	t.Cleanup(func() {
		if text := d.out.String(); strings.Contains(text, "DATA RACE") || strings.Contains(text, "this is a bug") || strings.Contains(text, "bug while serving") {
			t.Errorf("the demo said:\n%s", d.out.last(60))
		}
	})
	return d
}

func start() (*demo, error) {
	dir, err := os.MkdirTemp("", "spa")
	if err != nil {
		return nil, err
	}
	d := &demo{dir: dir, data: filepath.Join(dir, "data"), out: &output{}, done: make(chan struct{})}
	for _, name := range []string{"sallyport", "sallyctl"} {
		args := []string{"build", "-buildvcs=false", "-o", filepath.Join(dir, name), "../../cmd/" + name}
		if underRace {
			args = append([]string{"build", "-race"}, args[1:]...)
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return d, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	file := filepath.Join(dir, "ready.json")
	d.cmd = exec.Command(filepath.Join(dir, "sallyport"), "demo", "--debug", "--listen", "127.0.0.1:0", "--data", d.data, "--databases", "postgres", "--ready-json", file)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66")
	if err := d.cmd.Start(); err != nil {
		return d, err
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	for deadline := time.Now().Add(upWait); ; time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, d) == nil {
			return d, nil
		}
		select {
		case <-d.done:
			return d, fmt.Errorf("the demo ended:\n%s", d.out.last(40))
		default:
		}
		if time.Now().After(deadline) {
			return d, fmt.Errorf("the demo is not up after %s:\n%s", upWait, d.out.last(40))
		}
	}
}

func (d *demo) stop() error {
	if d.cmd == nil || d.cmd.Process == nil {
		return nil
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
		return nil
	case <-time.After(30 * time.Second):
		d.cmd.Process.Kill()
		<-d.done
		return errors.New("the demo did not stop within 30 s of SIGTERM")
	}
}

func (d *demo) name(kind string) string {
	for _, r := range d.Resources {
		if r.Kind == kind {
			return r.Name
		}
	}
	return ""
}

// serverName is the SNI of the demo's resource of a kind.
func (d *demo) serverName(kind string) string {
	return d.name(kind) + "." + kind + "." + d.Cluster
}

// output keeps what the demo said.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) last(n int) string {
	lines := strings.Split(o.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// await polls until a condition of another process holds.
func await(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

// status is what the admin socket tells.
type status struct {
	Goroutines int `json:"goroutines"`
	Gateway    struct {
		Relays   int               `json:"relays"`
		Waiting  int               `json:"waiting"`
		HalfOpen int               `json:"half_open"`
		Outcomes map[string]uint64 `json:"outcomes"`
		Tunnel   map[string]uint64 `json:"tunnel_outcomes"`
		Tunnels  []struct {
			Agent   string `json:"agent"`
			Parked  int    `json:"parked"`
			Streams int    `json:"streams"`
		} `json:"tunnels"`
	} `json:"gateway"`
	Agent struct {
		Sessions int               `json:"sessions"`
		Streams  int               `json:"streams"`
		Refused  map[string]uint64 `json:"refused"`
	} `json:"agent"`
}

// parked are the connections in the pools of all tunnels.
func (s status) parked() (n int) {
	for _, tu := range s.Gateway.Tunnels {
		n += tu.Parked
	}
	return n
}

func (d *demo) status(t testing.TB) status {
	t.Helper()
	hc := http.Client{Timeout: callWait, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.data, "admin.sock"))
	}}}
	resp, err := hc.Get("http://admin/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// figures are what must come back to where it was (I5). Parked connections are
// taken out: the pool follows the demand and shrinks slowly.
type figures struct{ descriptors, goroutines int }

func (d *demo) figures(t testing.TB) figures {
	t.Helper()
	for {
		s := d.status(t)
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if parked := s.parked(); parked == d.status(t).parked() { // else the pool has changed between the two
			return figures{len(fds) - 2*parked, s.Goroutines - parked} // both ends are here; one goroutine waits at the agent's
		}
	}
}

// leavesNothing checks at the test's end that descriptors and goroutines are
// back where they were at its beginning.
func (d *demo) leavesNothing(t testing.TB) {
	t.Helper()
	const some = 12 // kept-alive connections of auth's clients, timers
	before := d.figures(t)
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		var now figures
		for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			now = d.figures(t)
			if now.descriptors <= before.descriptors+some && now.goroutines <= before.goroutines+some {
				return
			}
		}
		t.Errorf("left behind: %+v before, %+v after; gateway %+v", before, now, d.status(t).Gateway)
	})
}

// memory is the resident size of the demo in bytes.
func (d *demo) memory(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// holder is somebody with keys and certificates.
type holder struct {
	name string
	tls  tls.Certificate
	ssh  ssh.Signer // with its certificate; nil without
	key  ed25519.PrivateKey
}

func newKeys(t testing.TB) (tlsKey *ecdsa.PrivateKey, tlsPub []byte, sshKey ed25519.PrivateKey, sshPub []byte) {
	t.Helper()
	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if tlsPub, err = x509.MarshalPKIXPublicKey(tlsKey.Public()); err != nil {
		t.Fatal(err)
	}
	_, sshKey, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(sshKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	return tlsKey, tlsPub, sshKey, bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub))
}

// visitor is a client of the web origin.
func (d *demo) visitor() *http.Client {
	return &http.Client{Timeout: callWait, Transport: &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

func (d *demo) public() sallyportv1connect.PublicServiceClient {
	return sallyportv1connect.NewPublicServiceClient(d.visitor(), "https://"+d.Proxy)
}

// login gets certificates for as long as ttl; 0 for the most.
func (d *demo) login(t testing.TB, user, password, code string, ttl time.Duration) *holder {
	t.Helper()
	tlsKey, tlsPub, sshKey, sshPub := newKeys(t)
	resp, err := d.public().Login(context.Background(), connect.NewRequest(&sallyportv1.LoginRequest{
		User: user, Password: password, Otp: code, SshPublicKey: sshPub, TlsPublicKey: tlsPub, TtlSeconds: int64(ttl / time.Second)}))
	if err != nil {
		t.Fatalf("login of %s: %v", user, err)
	}
	h := &holder{name: user, tls: tls.Certificate{Certificate: [][]byte{resp.Msg.GetTlsCertificate()}, PrivateKey: tlsKey}, key: sshKey}
	h.ssh = certified(t, sshKey, string(resp.Msg.GetSshCertificate()))
	return h
}

func certified(t testing.TB, key ed25519.PrivateKey, line string) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(pub.(*ssh.Certificate), signer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// code is a one-time code that has not been used.
func (d *demo) code(t testing.TB) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		now := time.Now().Unix() / 30
		if step := max(d.step+1, now); step <= now+1 {
			d.step = step
			code, err := totp.GenerateCode(d.TOTPSecret, time.Unix(step*30, 0))
			if err != nil {
				t.Fatal(err)
			}
			return code
		}
		time.Sleep(time.Second) // until the clock reaches a fresh step
	}
}

var admins = struct {
	sync.Mutex
	holder *holder
}{}

// admin is the demo's administrator, logged in once for all tests.
func (d *demo) admin(t testing.TB) *holder {
	t.Helper()
	admins.Lock()
	defer admins.Unlock()
	if admins.holder == nil {
		admins.holder = d.login(t, d.User, d.Password, d.code(t), 0)
	}
	return admins.holder
}

// dialer reaches auth with a certificate, through the gateway.
func (d *demo) dialer(cert *tls.Certificate) *client.Dialer {
	dl := &client.Dialer{Addresses: func() []string { return []string{d.Proxy} }, Cluster: d.Cluster, Pins: []string{d.CAPin}}
	if cert != nil {
		dl.Certificate = func() (*tls.Certificate, error) { return cert, nil }
	}
	return dl
}

func (d *demo) adminAPI(h *holder) sallyportv1connect.AdminServiceClient {
	return sallyportv1connect.NewAdminServiceClient(d.dialer(&h.tls).HTTP(client.ProtocolAuth), client.BaseURL)
}

// user makes a user and logs him in.
func (d *demo) user(t testing.TB, name string, roles []string, traits map[string][]string) *holder {
	t.Helper()
	u := &sallyportv1.User{Name: name, Roles: roles, Traits: map[string]*sallyportv1.StringList{}}
	for k, v := range traits {
		u.Traits[k] = &sallyportv1.StringList{Values: v}
	}
	admin := d.adminAPI(d.admin(t))
	resp, err := admin.CreateUser(context.Background(), connect.NewRequest(&sallyportv1.CreateUserRequest{User: u}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin.DeleteUser(context.Background(), connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: name}))
	})
	const password = "quite a long password"
	page, err := d.visitor().PostForm(resp.Msg.GetClaimUrl(), url.Values{"password": {password}, "again": {password}})
	if err != nil {
		t.Fatal(err)
	}
	page.Body.Close()
	if page.StatusCode != http.StatusOK {
		t.Fatalf("claim: %s", page.Status)
	}
	return d.login(t, name, password, "", 0)
}

// hostFile is what a host keeps on disk: a thief of the directory has it.
type hostFile struct {
	ID             string   `json:"id"`
	TLSKey         []byte   `json:"tls_key"`
	SSHKey         []byte   `json:"ssh_key"`
	Certificate    []byte   `json:"certificate"`
	SSHCertificate string   `json:"ssh_certificate"`
	HostCAs        [][]byte `json:"host_cas"`
}

// stolen is a host's identity: "agent" or "gateway".
func (d *demo) stolen(t testing.TB, kind string) (*holder, hostFile) {
	t.Helper()
	return stolenFrom(t, filepath.Join(d.data, kind, "host.json"))
}

func stolenFrom(t testing.TB, path string) (*holder, hostFile) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f hostFile
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(f.TLSKey)
	if err != nil {
		t.Fatal(err)
	}
	sk, err := x509.ParsePKCS8PrivateKey(f.SSHKey)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{name: f.ID, tls: tls.Certificate{Certificate: [][]byte{f.Certificate}, PrivateKey: key}, key: sk.(ed25519.PrivateKey)}
	h.ssh = certified(t, h.key, f.SSHCertificate)
	return h, f
}
