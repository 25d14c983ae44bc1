package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	peer "github.com/sallyport/sallyport/tools/peers/postgres"
)

// TestDatabaseTrust: which servers the agent logs in to.
func TestDatabaseTrust(t *testing.T) {
	addr := theServer(t).Addr
	_, port, _ := net.SplitHostPort(addr)
	other := dbtest.NewAuthority("somebody else's").Pool
	for name, c := range map[string]struct {
		target database.Target
		roots  func() *x509.CertPool
		want   string // "" when it is to be trusted
	}{
		"default":               {database.Target{Address: addr}, roots(dbtest.DBCA.Pool), ""},
		"own name":              {database.Target{Address: addr, ServerName: "db.internal"}, roots(dbtest.DBCA.Pool), ""},
		"wrong name":            {database.Target{Address: addr, ServerName: "other.internal"}, roots(dbtest.DBCA.Pool), "is not trusted"},
		"name not in it":        {database.Target{Address: "localhost:" + port}, roots(dbtest.DBCA.Pool), "is not trusted"},
		"full, wrong CA":        {database.Target{Address: addr, TLS: database.VerifyFull}, roots(other), "is not trusted"},
		"second CA":             {database.Target{Address: addr, Roots: dbtest.DBCA.Pool}, roots(other), ""},
		"only a configured CA":  {database.Target{Address: addr, Roots: dbtest.DBCA.Pool}, nil, ""},
		"no CA at all":          {database.Target{Address: addr}, nil, "is not trusted"},
		"nil pool":              {database.Target{Address: addr}, roots(nil), "is not trusted"},
		"verify-ca, wrong name": {database.Target{Address: addr, TLS: database.VerifyCA, ServerName: "other.internal"}, roots(dbtest.DBCA.Pool), ""},
		"verify-ca, wrong CA":   {database.Target{Address: addr, TLS: database.VerifyCA}, roots(other), "is not trusted"},
		"insecure":              {database.Target{Address: addr, TLS: database.Insecure}, nil, ""},
		"unknown mode":          {database.Target{Address: addr, TLS: "prefer"}, roots(dbtest.DBCA.Pool), "cannot be served"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(r *rig) { r.server.Target, r.server.Roots = c.target, c.roots })
			conn, err := r.connect("alice")
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				conn.Close(context.Background())
				return
			}
			wantFatal(t, err, stateUnableToConnect, c.want)
			if err := r.Result(); err == nil {
				t.Error("no error")
			}
			if e := r.gate.Await(t, "db.session.end", 1); e.Fields["error"] == nil {
				t.Errorf("%v", e.Fields)
			}
		})
	}
}

func roots(p *x509.CertPool) func() *x509.CertPool {
	return func() *x509.CertPool { return p }
}

// wantFatal checks what a client was told, and that no insider's address is in
// it.
func wantFatal(t *testing.T, err error, state, text string) {
	t.Helper()
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatalf("no ErrorResponse: %v", err)
	}
	if e.Code != state || e.Severity != "FATAL" || !strings.Contains(e.Message, text) {
		t.Errorf("%s %s, want %s %s", e.Code, e.Message, state, text)
	}
	if all := e.Message + e.Detail + e.Hint; strings.Contains(all, "127.0.0.1") {
		t.Errorf("tells an address: %s", all)
	}
}

// TestDatabaseRefuses: the server's rules keep the agent out.
func TestDatabaseRefuses(t *testing.T) {
	r := newRig(t)
	_, err := r.connect("alice", "user=byPassword")
	wantFatal(t, err, stateNotAuthorized, "asks for a password")
	if e, _ := errors.AsType[*pgconn.PgError](err); e == nil || !strings.Contains(e.Hint, `hostssl orders byPassword <address of the agent> cert`) {
		t.Errorf("hint: %v", e)
	}
	_, err = r.connect("alice", "database=nobodys")
	wantFatal(t, err, stateNotAuthorized, `does not accept user "alice" for database "nobodys"`)
	_, err = r.connect("alice", "user=nosuch")
	wantFatal(t, err, "28000", `role "nosuch" does not exist`)

	// A certificate for another name than the one it logs in as.
	r = newRig(t, func(r *rig) {
		r.server.Certificate = func(context.Context, string, string) (*tls.Certificate, error) {
			return new(dbtest.DBCA.Pair("mallory")), nil
		}
	})
	_, err = r.connect("alice")
	wantFatal(t, err, "28000", `certificate authentication failed for user "alice"`)
}

func TestDatabaseRejectsTheCertificate(t *testing.T) {
	wrong := dbtest.NewAuthority("databases") // the same name, another key
	r := newRig(t, func(r *rig) {
		r.server.Certificate = func(context.Context, string, string) (*tls.Certificate, error) {
			return new(wrong.Pair("alice")), nil
		}
	})
	_, err := r.connect("alice")
	wantFatal(t, err, stateNotAuthorized, "rejected the agent's certificate")
}

func TestNoCertificate(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.server.Certificate = func(context.Context, string, string) (*tls.Certificate, error) {
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "no contact with auth since 12:00", Hint: "wait"}
		}
	})
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "no contact with auth since 12:00")
	r = newRig(t, func(r *rig) {
		r.server.Certificate = func(context.Context, string, string) (*tls.Certificate, error) {
			return nil, errors.New("secret at 127.0.0.1")
		}
	})
	_, err = r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "cannot be served")
}

func TestDatabaseWithoutTLS(t *testing.T) {
	s := started(t)(peer.Start("", peer.Options{}))
	t.Cleanup(s.Stop)
	r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: s.Addr, TLS: database.Insecure} })
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "does not offer TLS")
}

// TestDatabaseThatHangs: one that accepts and says nothing.
func TestDatabaseThatHangs(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	r := newRig(t, func(r *rig) {
		r.server.Target.Address = l.Addr().String()
		r.server.Bounds.Connect = 50 * time.Millisecond
	})
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "no answer in time")

	// A lock does not wait for it.
	r = newRig(t, func(r *rig) { r.server.Target.Address = l.Addr().String() })
	conn := r.dialRaw("alice")
	conn.send(startupBytes(protocol30, "user=alice"))
	r.gate.Await(t, "db.session.start", 1)
	within(t, "the lock", func() {
		r.gate.Lock()
		if e := conn.fatal(); e.Code != stateEnded || e.Message != "user alice is locked: on leave" {
			t.Errorf("%+v", e)
		}
	})
}

func TestUnknownHost(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Target.Address = "no-such-host.invalid:5432" })
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "is not reachable")
}
