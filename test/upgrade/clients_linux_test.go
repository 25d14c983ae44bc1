package upgrade

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

// clients work, each in turns, until they are told to stop. A turn that has
// begun is always ended: what it moves is compared.
type clients struct {
	t     testing.TB
	stop  chan struct{}
	once  sync.Once
	tasks sync.WaitGroup
	all   []*client
}

type client struct {
	name  string
	turns atomic.Int64
	fault atomic.Pointer[error]
}

func newClients(t testing.TB) *clients {
	c := &clients{t: t, stop: make(chan struct{})}
	t.Cleanup(c.end)
	return c
}

// add begins to work. turn is one of its turns; last, which may be nil, is what
// is done after them.
func (c *clients) add(name string, turn func(ctx context.Context, n int64) error, last func() error) {
	one := &client{name: name}
	c.all = append(c.all, one)
	c.tasks.Go(func() {
		err := c.work(one, turn)
		if last != nil {
			if lerr := last(); err == nil {
				err = lerr
			}
		}
		if err != nil {
			one.fault.Store(&err)
		}
	})
}

func (c *clients) work(one *client, turn func(ctx context.Context, n int64) error) error {
	for {
		select {
		case <-c.stop:
			return nil
		default:
		}
		n := one.turns.Load()
		ctx, cancel := context.WithTimeout(context.Background(), runWait)
		err := turn(ctx, n)
		cancel()
		if err != nil {
			return fmt.Errorf("turn %d: %w", n, err)
		}
		one.turns.Add(1)
	}
}

// goOn waits until each client has begun and ended another turn.
func (c *clients) goOn() {
	c.t.Helper()
	before := make([]int64, len(c.all))
	for i, one := range c.all {
		before[i] = one.turns.Load()
	}
	for i, one := range c.all {
		await(c.t, one.name+" goes on", func() bool {
			if err := one.fault.Load(); err != nil {
				c.t.Fatalf("%s: %v", one.name, *err)
			}
			return one.turns.Load() >= before[i]+2
		})
	}
}

// end stops all, and tells what went wrong.
func (c *clients) end() {
	c.once.Do(func() {
		close(c.stop)
		c.tasks.Wait()
		for _, one := range c.all {
			if err := one.fault.Load(); err != nil {
				c.t.Errorf("%s: %v", one.name, *err)
			}
			c.t.Logf("%-28s %6d turns", one.name, one.turns.Load())
		}
	})
}

// site is a web server behind the gateway: short answers, long ones, WebSockets.
type site struct {
	*httptest.Server
	big  []byte
	hash string
}

func startSite(t testing.TB, size int) *site {
	t.Helper()
	s := &site{big: make([]byte, size)}
	mathrand.NewChaCha8([32]byte{1}).Read(s.big)
	s.hash = sum(s.big)
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { w.Write(s.big) })
	mux.HandleFunc("/hash", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.WriteString(w, sum(b))
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(1 << 20)
		for {
			kind, b, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	s.Server = httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"*.example.com", "localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

const webName = "web.example.com"

// curl talks to the site through the gateway.
func curl(p *person, gateway string, path string, more ...string) func(ctx context.Context) (string, error) {
	_, port, _ := net.SplitHostPort(gateway)
	return func(ctx context.Context) (string, error) {
		args := append([]string{"-sSk", "--fail", "--resolve", webName + ":" + port + ":127.0.0.1", "https://" + webName + ":" + port + path}, more...)
		return p.output(ctx, "", "curl", args...)
	}
}

// browse adds those who use the site: curl in short and in long, up and down,
// wrk, and a WebSocket that stays.
func (c *clients) browse(p *person, gateway string, s *site) {
	c.t.Helper()
	short := curl(p, gateway, "/hello")
	c.add("curl, a short answer", func(ctx context.Context, _ int64) error {
		out, err := short(ctx)
		return orOther(err, out, "hello\n")
	}, nil)
	long := curl(p, gateway, "/big", "--limit-rate", fmt.Sprint(len(s.big)/2))
	c.add("curl, a download", func(ctx context.Context, _ int64) error {
		out, err := long(ctx)
		return orOther(err, sum([]byte(out)), s.hash)
	}, nil)
	up := curl(p, gateway, "/hash", "--limit-rate", fmt.Sprint(len(s.big)/2), "-X", "POST", "--data-binary", "@"+write(c.t, p.home+"/big", string(s.big)))
	c.add("curl, an upload", func(ctx context.Context, _ int64) error {
		out, err := up(ctx)
		return orOther(err, out, s.hash)
	}, nil)
	c.addWebSocket(gateway)
	c.addWrk(p, gateway)
}

func orOther(err error, got, want string) error {
	if err == nil && got != want {
		err = fmt.Errorf("%d bytes came, or others than were sent: %.80q", len(got), got)
	}
	return err
}

// addWebSocket keeps one WebSocket, on which everything comes back as it was sent.
func (c *clients) addWebSocket(gateway string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, gateway)
		},
	}
	conn, _, err := websocket.Dial(ctx, "wss://"+webName+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		c.t.Fatal(err)
	}
	conn.SetReadLimit(1 << 20)
	c.add("one WebSocket", func(ctx context.Context, n int64) error {
		sent := make([]byte, 1+n*7919%(256<<10))
		mathrand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(sent)
		// The server reads while it writes nothing, and the other way about.
		if err := conn.Write(ctx, websocket.MessageBinary, sent); err != nil {
			return err
		}
		_, got, err := conn.Read(ctx)
		return orOther(err, string(got), string(sent))
	}, func() error {
		defer transport.CloseIdleConnections()
		return conn.Close(websocket.StatusNormalClosure, "")
	})
}

// addWrk opens and uses connections as fast as it can.
func (c *clients) addWrk(p *person, gateway string) {
	c.t.Helper()
	if _, err := exec.LookPath("wrk"); err != nil {
		peers.Missing(c.t, "wrk")
	}
	_, port, _ := net.SplitHostPort(gateway)
	c.add("wrk", func(ctx context.Context, _ int64) error {
		// It asks for the name that it resolves, and this one needs nobody to resolve it.
		out, err := p.output(ctx, "", "wrk", "-t1", "-c8", "-d1s", "--timeout=60s", "https://localhost:"+port+"/hello")
		if err == nil && (strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") || !strings.Contains(out, "requests in")) {
			err = fmt.Errorf("wrk says:\n%s", out)
		}
		return err
	}, nil)
}

// rows is how many a COPY moves: some megabytes.
const rows = 60000

// addTable copies a table of a database in and out.
func (c *clients) addTable(p *person, database string) {
	c.t.Helper()
	var want bytes.Buffer
	for i := range rows {
		fmt.Fprintf(&want, "%d\t%s\n", i+1, sum(fmt.Append(nil, i)))
	}
	p.run("psql", database, "-Atqc", "create table t(a int, b text)")
	c.add("psql, COPY", func(ctx context.Context, _ int64) error {
		if _, err := p.output(ctx, "truncate t;\n\\copy t from stdin\n"+want.String()+"\\.\n", "psql", "-Atq", "-v", "ON_ERROR_STOP=1", database); err != nil {
			return err
		}
		out, err := p.output(ctx, "", "psql", "-Atq", database, "-c", `\copy (select * from t order by a) to stdout`)
		return orOther(err, sum([]byte(out)), sum(want.Bytes()))
	}, nil)
}

const dbName = "db.example.com"

// startDatabase starts a PostgreSQL that is used by TLS, and tells its address.
func startDatabase(t testing.TB) string {
	t.Helper()
	cert := certificate(t)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sallyport-upgrade-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	db, err := postgres.Start(dir, postgres.Options{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		HBA: []string{"hostssl all all 127.0.0.1/32 trust"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Stop)
	return db.Addr
}

// TestStaticRoutes: people use a site and a database behind a gateway that is upgraded again
// and again.
func TestStaticRoutes(t *testing.T) {
	needPeers(t)
	s := startSite(t, 8<<20)
	gateway := freePort(t)
	dir := shortDir(t)
	g := startService(t, dir, "gateway", fmt.Sprintf(`version: 1
roles: [gateway]
data_dir: %s/data
gateway:
  listen: [%q]
  routes:
    - {names: [%s, localhost], to: [%q]}
    - {names: [%s], to: [%q]}
`, dir, gateway, webName, s.Listener.Addr(), dbName, startDatabase(t)))
	c, p := newClients(t), newPerson(t)
	c.browse(p, gateway, s)
	_, port, _ := net.SplitHostPort(gateway)
	c.addTable(p, "host="+dbName+" hostaddr=127.0.0.1 port="+port+" sslmode=require user=postgres dbname=postgres")
	for n := range upgrades(t) {
		c.goOn()
		r := g.upgrade()
		t.Logf("upgrade %d: process %d to %d, %d relays, %.0f ms, stood still for %.1f ms", n+1, r.FromPID, r.ToPID, r.Relays, r.TookMS, r.StallMS)
		await(t, fmt.Sprintf("process %d ends", r.FromPID), func() bool { return ended(r.FromPID) })
	}
	c.goOn()
	c.end()
	if ended(g.pid()) {
		t.Error("the last process has ended")
	}
}
