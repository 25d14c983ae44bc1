package crash

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/dial"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// state is where a thing stands, as far as was acknowledged.
type state int

const (
	asked   state = iota // to be made: it may be there or not
	made                 // it is there
	leaving              // asked to be removed: it may be there or not
	gone                 // it is not there
)

// book is what was acknowledged.
type book struct {
	mu       sync.Mutex
	things   map[string]map[string]state // kind -> name -> state
	logins   int
	sessions int
	working  time.Time // when a session last worked
}

// much says that enough was acknowledged to prove something.
func (b *book) much() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, all := range b.things {
		n += len(all)
	}
	return n >= 60 && b.logins >= 2 && b.sessions >= 20
}

func newBook() *book { return &book{things: map[string]map[string]state{}} }

func (b *book) set(kind, name string, s state) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.things[kind] == nil {
		b.things[kind] = map[string]state{}
	}
	b.things[kind][name] = s
}

func (b *book) count(f func(b *book)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// refused says that an answer came, and that it was no: a fault of the test or
// of auth, which a killed process is no excuse for.
func refused(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeInternal:
		return true
	}
	return false
}

// maker makes things of one kind, and removes three of four.
type maker struct {
	kind           string
	create, remove func(ctx context.Context, name string) error
}

func makers(admin sallyportv1connect.AdminServiceClient) []maker {
	return []maker{
		{"user", func(ctx context.Context, name string) error {
			_, err := admin.CreateUser(ctx, connect.NewRequest(&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: name, Roles: []string{"access"}}}))
			return err
		}, func(ctx context.Context, name string) error {
			_, err := admin.DeleteUser(ctx, connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: name}))
			return err
		}},
		{"role", func(ctx context.Context, name string) error {
			_, err := admin.PutDocument(ctx, connect.NewRequest(&sallyportv1.PutDocumentRequest{
				Document: fmt.Sprintf(`{"kind":"role","version":"v7","metadata":{"name":%q},"spec":{"allow":{"logins":["nobody"],"node_labels":{"x":"y"}}}}`, name)}))
			return err
		}, func(ctx context.Context, name string) error {
			_, err := admin.DeleteDocument(ctx, connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "role", Name: name}))
			return err
		}},
		{"token", func(ctx context.Context, name string) error {
			_, err := admin.CreateToken(ctx, connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}, Value: secretOf(name), TtlSeconds: 48 * 3600}))
			return err
		}, func(ctx context.Context, name string) error {
			_, err := admin.DeleteToken(ctx, connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: secretOf(name)}))
			return err
		}},
	}
}

// secretOf is a token's secret by the name that the book has for it.
func secretOf(name string) string { return "a-chosen-secret-of-many-letters-" + name }

// run makes and removes until ctx is done. After a call without an answer it
// waits a little: a process is being killed.
func (m maker) run(ctx context.Context, t testing.TB, b *book) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("%s-%d", m.kind, i)
		b.set(m.kind, name, asked)
		if err := m.call(m.create, name); err != nil {
			m.failed(ctx, t, "create", name, err)
			continue
		}
		b.set(m.kind, name, made)
		if i%4 == 0 {
			continue
		}
		b.set(m.kind, name, leaving)
		if err := m.call(m.remove, name); err != nil {
			m.failed(ctx, t, "remove", name, err)
			continue
		}
		b.set(m.kind, name, gone)
	}
}

func (m maker) call(f func(context.Context, string) error, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), oneCall)
	defer cancel()
	return f(ctx, name)
}

func (m maker) failed(ctx context.Context, t testing.TB, what, name string, err error) {
	if refused(err) {
		t.Errorf("%s %s: %v", what, name, err)
	}
	rest(ctx)
}

// rest lets a process that was killed start again.
func rest(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// person logs in and uses a resource.
type person struct {
	c        *cluster
	name     string
	password string
	key      *ecdsa.PrivateKey

	mu    sync.Mutex
	cert  *tls.Certificate
	roots *x509.CertPool
}

func newPerson(c *cluster, name string) *person {
	c.t.Helper()
	p := &person{c: c, name: name, password: "a long enough password"}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		c.t.Fatal(err)
	}
	c.person(p.name, p.password)
	return p
}

func (p *person) login(ctx context.Context) error {
	pub, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		return err
	}
	edPub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	sshPub, err := ssh.NewPublicKey(edPub)
	if err != nil {
		return err
	}
	web := p.c.web()
	defer web.CloseIdleConnections()
	r, err := sallyportv1connect.NewPublicServiceClient(web, "https://"+p.c.gateway).Login(ctx, connect.NewRequest(&sallyportv1.LoginRequest{
		User: p.name, Password: p.password, TlsPublicKey: pub, SshPublicKey: bytes.TrimSpace(ssh.MarshalAuthorizedKey(sshPub))}))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	for _, a := range r.Msg.GetAuthorities() {
		for _, der := range a.GetCertificates() {
			ca, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			roots.AddCert(ca)
		}
	}
	p.mu.Lock()
	p.cert, p.roots = &tls.Certificate{Certificate: [][]byte{r.Msg.GetTlsCertificate()}, PrivateKey: p.key}, roots
	p.mu.Unlock()
	return nil
}

// use opens a session, and hears what it says.
func (p *person) use(ctx context.Context) error {
	p.mu.Lock()
	d := &dial.Dialer{Proxy: p.c.gateway, Cluster: clusterName, Roots: p.roots, Certificate: func() (*tls.Certificate, error) { return p.cert, nil }}
	p.mu.Unlock()
	conn, err := d.DialResource(ctx, sallyport.KindTCP, "echo", alpn.TCP1)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(oneCall))
	said := []byte("do you hear me?")
	if _, err := conn.Write(said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(conn, heard); err != nil {
		return err
	}
	if !bytes.Equal(heard, said) {
		return errors.New("heard something else")
	}
	return nil
}

// logins log people in, one after the other, until ctx is done. A login that a
// killed process did not finish stays counted as a try: with one person alone
// there would soon be too many.
func logins(ctx context.Context, people []*person, b *book) {
	for i := 0; ctx.Err() == nil; i++ {
		if p := people[i%len(people)]; p.try(p.login) == nil {
			b.count(func(b *book) { b.logins++ })
		}
		rest(ctx)
	}
}

// sessions opens sessions until ctx is done.
func (p *person) sessions(ctx context.Context, b *book) {
	for ctx.Err() == nil {
		if p.try(p.use) != nil {
			rest(ctx)
			continue
		}
		b.count(func(b *book) { b.sessions, b.working = b.sessions+1, time.Now() })
	}
}

func (p *person) try(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), oneCall)
	defer cancel()
	return f(ctx)
}
