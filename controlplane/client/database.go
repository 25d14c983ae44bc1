package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
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

	// keepEvery is how often certificates past half their life are looked for.
	keepEvery = 10 * time.Minute
)

// databaseCertificates holds one client certificate per database and user, on
// disk and in memory, so that no session asks auth.
type databaseCertificates struct {
	host  *Host
	group singleflight.Group
	wake  chan struct{} // a session saw one past half its life

	mu    sync.Mutex
	certs map[databaseUser]*tls.Certificate
	due   map[databaseUser]bool // used past half its life
}

type databaseUser struct{ database, user string }

// databaseRecord is one certificate on disk.
type databaseRecord struct {
	Database    string `json:"database"`
	User        string `json:"user"`
	Certificate []byte `json:"certificate"`
}

// open reads what is on disk.
func (d *databaseCertificates) open(h *Host) error {
	d.host, d.wake = h, make(chan struct{}, 1)
	d.certs, d.due = map[databaseUser]*tls.Certificate{}, map[databaseUser]bool{}
	return d.loadAll()
}

// loadAll reads what is on disk, over what is held, and removes what is not
// good any more.
func (d *databaseCertificates) loadAll() error {
	h := d.host
	dir := filepath.Join(h.cfg.Dir, databaseDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if d.load(path) {
			continue
		}
		if err := h.files.remove(path); err != nil {
			return err
		}
	}
	return nil
}

func (d *databaseCertificates) load(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	var r databaseRecord
	found, err := readJSON(path, &r)
	key := databaseUser{r.Database, r.User}
	if err != nil || !found || path != d.path(key) || len(d.certs) >= maxDatabaseCertificates {
		return false
	}
	c, err := d.certificate(r.Certificate, key.user)
	if err != nil || time.Now().After(c.Leaf.NotAfter) {
		return false
	}
	d.certs[key] = c
	return true
}

// DatabaseCertificate meets access.Credentials.
func (h *Host) DatabaseCertificate(ctx context.Context, database, user string) (*tls.Certificate, error) {
	return h.database.get(ctx, databaseUser{database, user})
}

func (d *databaseCertificates) get(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
	cert, now := d.held(key), time.Now()
	switch {
	case cert == nil || now.After(cert.Leaf.NotAfter):
		return d.fetch(ctx, key)
	case now.After(halfLife(cert.Leaf)):
		d.renewSoon(key)
	}
	return cert, nil
}

func (d *databaseCertificates) renewSoon(key databaseUser) {
	d.mu.Lock()
	d.due[key] = true
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *databaseCertificates) held(key databaseUser) *tls.Certificate {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.certs[key]
}

// fetch asks auth, once for all who wait for the same.
func (d *databaseCertificates) fetch(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
	c := d.group.DoChan(key.database+"\x00"+key.user, func() (any, error) {
		// Not the first one's context: the others wait too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseCallTimeout)
		defer cancel()
		return d.issue(ctx, key)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-c:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*tls.Certificate), nil
	}
}

func (d *databaseCertificates) issue(ctx context.Context, key databaseUser) (*tls.Certificate, error) {
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
	return cert, d.store(key, cert)
}

// store keeps a certificate. When there are too many, those that have ended make
// room, and then the oldest of a user whom the snapshot does not name: one person
// who may be anybody in a database must not take it from the others. Without room
// the certificate is good, and not kept.
func (d *databaseCertificates) store(key databaseUser, cert *tls.Certificate) error {
	var named map[databaseUser]bool
	if d.full(key) {
		named, _ = d.named()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fullLocked(key) {
		if room, err := d.makeRoomLocked(named); err != nil || !room {
			return err
		}
	}
	if err := d.host.files.writeJSON(d.path(key), databaseRecord{key.database, key.user, cert.Certificate[0]}); err != nil {
		return err
	}
	d.certs[key] = cert
	delete(d.due, key)
	return nil
}

func (d *databaseCertificates) full(key databaseUser) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fullLocked(key)
}

// fullLocked says that there is no room for the user's certificate, and none held
// that it would replace.
func (d *databaseCertificates) fullLocked(key databaseUser) bool {
	_, held := d.certs[key]
	return !held && len(d.certs) >= maxDatabaseCertificates
}

// makeRoomLocked drops what has ended, or else the oldest that is not among the named.
// Without named, which is when others have filled the store meanwhile, it drops no
// more.
func (d *databaseCertificates) makeRoomLocked(named map[databaseUser]bool) (room bool, err error) {
	if err := d.dropEndedLocked(); err != nil || len(d.certs) < maxDatabaseCertificates {
		return err == nil, err
	}
	var oldest databaseUser
	for key, c := range d.certs {
		if !named[key] && (!room || c.Leaf.NotBefore.Before(d.certs[oldest].Leaf.NotBefore)) {
			oldest, room = key, named != nil
		}
	}
	if !room {
		return false, nil
	}
	if err := d.host.files.remove(d.path(oldest)); err != nil {
		return false, err
	}
	delete(d.certs, oldest)
	delete(d.due, oldest)
	return true, nil
}

func (d *databaseCertificates) dropEndedLocked() error {
	now := time.Now()
	for key, c := range d.certs {
		if now.After(c.Leaf.NotAfter) {
			if err := d.host.files.remove(d.path(key)); err != nil {
				return err
			}
			delete(d.certs, key)
			delete(d.due, key)
		}
	}
	return nil
}

func (d *databaseCertificates) certificate(der []byte, user string) (*tls.Certificate, error) {
	leaf, err := d.host.keys.leaf(der)
	if err != nil {
		return nil, err
	}
	if leaf.Subject.CommonName != user {
		return nil, errors.New("the certificate names another user")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: d.host.keys.tls, Leaf: leaf}, nil
}

// path hides names in a hash: they are users' words and may hold anything.
func (d *databaseCertificates) path(key databaseUser) string {
	sum := sha256.Sum256([]byte(key.database + "\x00" + key.user))
	return filepath.Join(d.host.cfg.Dir, databaseDir, hex.EncodeToString(sum[:16])+".json")
}

// keep gets certificates for all users that roles name, whenever the snapshot
// or the assignment changes, so that the first session of each needs no auth
// either; and renews those in use that are past half their life.
func (d *databaseCertificates) keep(ctx context.Context) error {
	return retrying(ctx, d.host.cfg.Log, "keep database certificates", func(ctx context.Context, progress func()) error {
		if err := d.host.untilGood(ctx); err != nil {
			return err
		}
		tick := time.NewTicker(keepEvery)
		defer tick.Stop()
		for {
			snapshot, assignment := d.host.keeper.Changed(), d.host.AssignmentChanged()
			if err := d.keepOnce(ctx); err != nil {
				return err
			}
			progress()
			select {
			case <-ctx.Done():
				return nil
			case <-snapshot:
			case <-assignment:
			case <-d.wake:
			case <-tick.C:
			}
		}
	})
}

// keepOnce goes on after a refusal, which is of one user, and ends when auth
// cannot be reached.
func (d *databaseCertificates) keepOnce(ctx context.Context) error {
	for key := range d.worthKeeping() {
		if c := d.held(key); c != nil && time.Now().Before(halfLife(c.Leaf)) {
			continue
		}
		_, err := d.fetch(ctx, key)
		switch {
		case errors.Is(err, sallyport.ErrUnavailable) || ctx.Err() != nil:
			return err
		case err != nil:
			d.host.cfg.Log.Debug("no database certificate in advance", "database", key.database, "user", key.user, "error", err)
		}
	}
	return nil
}

// worthKeeping are the users that the snapshot names, and those used lately, of
// databases that this agent serves.
func (d *databaseCertificates) worthKeeping() map[databaseUser]bool {
	out, served := d.named()
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.due {
		if served[key.database] {
			out[key] = true
		}
	}
	return out
}

// named are the users that the snapshot names, of databases that this agent serves.
func (d *databaseCertificates) named() (out map[databaseUser]bool, served map[string]bool) {
	out, served = map[databaseUser]bool{}, map[string]bool{}
	trust, _ := d.host.keeper.Trust()
	for _, r := range d.host.Resources() {
		if r.Kind != sallyport.KindDatabase {
			continue
		}
		served[r.Name] = true
		if trust == nil {
			continue
		}
		for _, user := range trust.DatabaseUsers[r.Name] {
			out[databaseUser{r.Name, user}] = true
		}
	}
	return out, served
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}
