package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/singleflight"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	databaseDir = "db-certificates"

	// maxDatabaseCertificates bounds memory and disk: users are named by
	// people who may reach the database, but still by people.
	maxDatabaseCertificates = 4096
	databaseCallTimeout     = 10 * time.Second
)

// databaseCertificates holds one client certificate per database and user, on
// disk and in memory, so that no session asks auth.
type databaseCertificates struct {
	host  *Host
	group singleflight.Group

	mu    sync.Mutex
	certs map[databaseUser]*tls.Certificate
}

type databaseUser struct{ database, user string }

// databaseRecord is one certificate on disk.
type databaseRecord struct {
	Database    string `json:"database"`
	User        string `json:"user"`
	Certificate []byte `json:"certificate"`
}

func (d *databaseCertificates) init(h *Host) {
	d.host = h
	d.certs = map[databaseUser]*tls.Certificate{}
}

// DatabaseCertificate meets access.Credentials.
func (h *Host) DatabaseCertificate(ctx context.Context, database, user string) (*tls.Certificate, error) {
	return h.database.get(ctx, databaseUser{database, user})
}

func (d *databaseCertificates) get(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
	cert := d.held(key)
	now := time.Now()
	switch {
	case cert == nil || now.After(cert.Leaf.NotAfter):
		return d.fetch(ctx, key)
	case now.After(halfLife(cert.Leaf)):
		go d.refresh(key)
	}
	return cert, nil
}

// refresh runs in the background of a session that already has a certificate.
// The flight is shared, so that a busy user makes one call.
func (d *databaseCertificates) refresh(key databaseUser) {
	ctx, cancel := context.WithTimeout(context.Background(), databaseCallTimeout)
	defer cancel()
	if _, err := d.fetch(ctx, key); err != nil {
		d.host.cfg.Log.Debug("renew a database certificate", "database", key.database, "user", key.user, "error", err)
	}
}

// held looks in memory, then on disk.
func (d *databaseCertificates) held(key databaseUser) *tls.Certificate {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.certs[key]; c != nil {
		return c
	}
	var r databaseRecord
	found, err := readJSON(d.path(key), &r)
	if err != nil || !found || r.Database != key.database || r.User != key.user {
		return nil
	}
	c, err := d.certificate(r.Certificate, key.user)
	if err != nil {
		return nil
	}
	d.certs[key] = c
	return c
}

func (d *databaseCertificates) fetch(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
	v, err, _ := d.group.Do(key.database+"\x00"+key.user, func() (any, error) { return d.issue(ctx, key) })
	if err != nil {
		return nil, err
	}
	return v.(*tls.Certificate), nil
}

func (d *databaseCertificates) issue(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, databaseCallTimeout)
	defer cancel()
	pub, err := x509.MarshalPKIXPublicKey(d.host.keys.tls.Public())
	if err != nil {
		return nil, err
	}
	resp, err := d.host.api.IssueDatabaseCertificate(ctx, connect.NewRequest(&sallyportv1.IssueDatabaseCertificateRequest{
		Database: key.database, DatabaseUser: key.user, TlsPublicKey: pub}))
	if err != nil {
		return nil, problem(err)
	}
	cert, err := d.certificate(resp.Msg.GetCertificate(), key.user)
	if err != nil {
		return nil, fmt.Errorf("auth's answer: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.certs) >= maxDatabaseCertificates {
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "this agent holds certificates for too many database users"}
	}
	if err := writeJSON(d.path(key), databaseRecord{key.database, key.user, resp.Msg.GetCertificate()}); err != nil {
		return nil, err
	}
	d.certs[key] = cert
	return cert, nil
}

func (d *databaseCertificates) certificate(der []byte, user string) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if leaf.Subject.CommonName != user {
		return nil, errors.New("the certificate names another user")
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(d.host.keys.tls.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: d.host.keys.tls, Leaf: leaf}, nil
}

// path hides names in a hash: they are users' words and may hold anything.
func (d *databaseCertificates) path(key databaseUser) string {
	sum := sha256.Sum256([]byte(key.database + "\x00" + key.user))
	return filepath.Join(d.host.cfg.Dir, databaseDir, hex.EncodeToString(sum[:16])+".json")
}

// prefetch gets certificates for all users that roles name, whenever the
// snapshot or the assignment changes, so that the first session of each needs
// no auth either.
func (d *databaseCertificates) prefetch(ctx context.Context) error {
	for {
		snapshot, assignment := d.host.keeper.Changed(), d.host.AssignmentChanged()
		d.prefetchOnce(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-snapshot:
		case <-assignment:
		}
	}
}

func (d *databaseCertificates) prefetchOnce(ctx context.Context) {
	trust, _ := d.host.keeper.Trust()
	if trust == nil {
		return
	}
	for _, r := range d.host.Resources() {
		if r.Kind != sallyport.KindDatabase {
			continue
		}
		for _, user := range trust.DatabaseUsers[r.Name] {
			if _, err := d.get(ctx, databaseUser{r.Name, user}); err != nil {
				d.host.cfg.Log.Debug("prefetch a database certificate", "database", r.Name, "user", user, "error", err)
				return
			}
		}
	}
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}
