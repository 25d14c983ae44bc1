package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sigv4"
	"github.com/sallyport/sallyport/test/keepalive"
	"github.com/sallyport/sallyport/test/leak"
)

const (
	patience = time.Minute // the most that anything may take, on a busy machine too
	cluster  = "gw.test"
	appHost  = "cloud.app.gw.test"
	reader   = "arn:aws:iam::123456789012:role/reader"
	local    = "arn:aws:iam::123456789012:role/local"
	external = "external-1"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	os.Exit(leak.CodeOf(m.Run(), "protocol/aws.(*"))
}

// own are the agent's keys, and lent those that the STS of these tests gives.
var (
	own  = sigv4.Keys{AccessKey: "AGENTKEY", Secret: "agent-secret"}
	lent = sigv4.Keys{AccessKey: "LENTKEY", Secret: "lent-secret"}
)

const token = "session-token"

// cloud is AWS on the loopback: STS, and services that say who has asked for what.
// Each request must be signed, for itself.
type cloud struct {
	*httptest.Server
	t testing.TB

	mu      sync.Mutex
	seen    []*http.Request
	bodies  []string
	assumed []string // forms
	refuse  bool     // STS says no
	answer  http.HandlerFunc
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{t: t}
	c.Server = httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(c.Close)
	return c
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client broke off
	}
	keys := own
	if r.Header.Get(sigv4.TokenHeader) == token {
		keys = lent
	}
	a, err := keys.Verify(r, time.Now(), func() (string, error) { return hashOf(string(body)), nil })
	if hash := r.Header.Get(sigv4.PayloadHeader); err == nil && len(hash) == 64 && hash != hashOf(string(body)) {
		err = fmt.Errorf("the body is not what was signed")
	}
	if err != nil {
		http.Error(w, "SignatureDoesNotMatch: "+err.Error(), http.StatusForbidden)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.Service == "sts" && keys == own {
		c.assumed = append(c.assumed, string(body))
		c.sts(w)
		return
	}
	c.seen, c.bodies = append(c.seen, r.Clone(context.Background())), append(c.bodies, string(body))
	if c.answer != nil {
		c.answer(w, r)
		return
	}
	fmt.Fprintf(w, "%s %s %s %s", keys.AccessKey, a.Service, a.Region, r.URL.RequestURI())
}

func (c *cloud) sts(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/xml")
	if c.refuse {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: arn:aws:iam::123456789012:user/agent is not authorized</Message></Error></ErrorResponse>`)
		return
	}
	fmt.Fprintf(w, `<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
		lent.AccessKey, lent.Secret, token, time.Now().Add(15*time.Minute).UTC().Format(time.RFC3339))
}

// last is the last request but STS's own, and its body.
func (c *cloud) last() (*http.Request, string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		c.t.Fatal("the cloud got nothing")
	}
	return c.seen[len(c.seen)-1], c.bodies[len(c.bodies)-1]
}

func (c *cloud) counts() (requests, assumed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen), len(c.assumed)
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

// rig is a server, and clients that come as from the door.
type rig struct {
	t      testing.TB
	server *Server
	cloud  *cloud
	id     sallyport.Identity

	mu       sync.Mutex
	denial   *sallyport.Problem
	refusal  *sallyport.Problem
	uses     []session.Use
	events   []sallyport.Event
	ended    []map[string]any
	cancels  []context.CancelCauseFunc
	options  sallyport.Options
	conns    []net.Conn
	finished sync.WaitGroup
}

func newRig(t testing.TB) *rig {
	t.Helper()
	c := newCloud(t)
	r := &rig{t: t, cloud: c, id: sallyport.Identity{Name: "alice", Cluster: cluster}, server: &Server{
		Cluster: cluster, Target: Target{URI: c.URL},
		Account: &Account{
			Config:  aws.Config{Credentials: credentials.NewStaticCredentialsProvider(own.AccessKey, own.Secret, ""), RetryMaxAttempts: 1},
			OwnRole: local, ExternalID: external, STS: c.URL, Log: slog.New(slog.DiscardHandler),
		},
	}}
	t.Cleanup(r.finished.Wait)
	return r
}

func (r *rig) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

func (r *rig) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uses = append(r.uses, use)
	if c.Refusal != nil {
		return nil, c.Refusal
	}
	if r.denial != nil {
		r.events = append(r.events, use.Denied)
		return nil, r.denial
	}
	sctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r.cancels = append(r.cancels, cancel)
	r.events = append(r.events, use.Start)
	return &session.Session{
		ID: "s1", Context: sctx, Options: r.options, Resource: c.Resource, Identity: c.Identity,
		Cancel: func(p *sallyport.Problem) { cancel(p) },
		Emit: func(e sallyport.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
		End: func(f map[string]any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ended = append(r.ended, f)
			cancel(context.Canceled)
		},
	}, nil
}

// end cancels all sessions.
func (r *rig) end(why *sallyport.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cancels {
		c(why)
	}
}

// over waits until all connections have ended: then everything is written down.
func (r *rig) over() {
	r.mu.Lock()
	for _, c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.finished.Wait()
}

func (r *rig) named(name string) (out []sallyport.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// dial makes a connection as the door would hand it over.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	near, far := tcpPair(r.t)
	r.mu.Lock()
	r.conns = append(r.conns, near)
	r.mu.Unlock()
	c := &session.Candidate{Identity: r.id, Gate: r, ALPN: "http/1.1", ClientAddr: netip.MustParseAddrPort("203.0.113.9:4711"), Refusal: r.refusal,
		Resource: sallyport.Resource{Kind: sallyport.KindApp, Name: "cloud", Protocol: sallyport.ProtocolAWS, Address: r.server.Target.URI, Labels: map[string]string{"env": "prod"}}}
	r.finished.Go(func() {
		defer far.Close()
		r.server.Serve(context.Background(), c, far)
	})
	return near
}

func tcpPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// keep makes a client whose requests go one after another on one connection.
func (r *rig) keep() *http.Client {
	conn := r.dial()
	conn.SetDeadline(time.Now().Add(patience))
	return keepalive.New(conn)
}

func (r *rig) client() *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return r.dial(), nil }, DisableCompression: true, MaxIdleConnsPerHost: 1}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// asked is a request as sally's port passes it on.
func asked(t testing.TB, service, region, role, body string) *http.Request {
	t.Helper()
	q, err := http.NewRequest("POST", "http://"+appHost+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", sigv4.Authorization{AccessKey: "SALLYKEY", Date: "20260102", Region: region, Service: service,
		SignedHeaders: []string{"host", "x-amz-date"}, Signature: strings.Repeat("0", 64)}.String())
	q.Header.Set(sigv4.DateHeader, "20260102T030405Z")
	q.Header.Set(sigv4.PayloadHeader, hashOf(body))
	if role != "" {
		q.Header.Set(RoleHeader, role)
	}
	return q
}

func (r *rig) do(c *http.Client, q *http.Request) (*http.Response, string) {
	r.t.Helper()
	resp, err := c.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}
