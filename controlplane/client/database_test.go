package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/login"
)

// database is an agent that serves one.
func (w *world) database(t *testing.T) (h *Host, db string) {
	t.Helper()
	db = "db-" + uuid.NewString()[:8]
	return w.host(t, w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindDatabase, Name: db, Protocol: "postgres", Labels: map[string]string{"only": db}})), db
}

// TestDatabasePrefetch: users that roles name have a certificate before the
// first session, and keep it while auth is away and over a restart.
func TestDatabasePrefetch(t *testing.T) {
	w := the()
	h, db := w.database(t)
	stop := run(t, h)
	heard(t, h)
	w.put(t, "role", "reads-"+db, `{"allow":{"db_labels":{"only":"`+db+`"},"db_users":["reader"],"db_names":["*"]}}`)
	link, err := w.users.CreateUser(t.Context(), login.User{Name: "u-" + db, Roles: []string{"reads-" + db}}, 0)
	if err != nil || link.Token == "" {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.users.DeleteUser(context.Background(), "u-"+db) })
	path := h.database.path(databaseUser{db, "reader"})
	until(t, "prefetch", func() <-chan struct{} { return tick(t) }, func() bool { _, err := os.Stat(path); return err == nil })
	stop()
	w.gone(t)
	again, err := OpenHost(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := again.DatabaseCertificate(t.Context(), db, "reader")
	if err != nil || cert.Leaf.Subject.CommonName != "reader" {
		t.Errorf("auth away: %v", err)
	}
	start := time.Now()
	if _, err := again.DatabaseCertificate(t.Context(), db, "writer"); !errors.Is(err, sallyport.ErrUnavailable) || time.Since(start) > soon {
		t.Errorf("one that is not there: %v", err)
	}
}

// tick closes in a moment: for what tells nobody, such as a file.
func tick(t testing.TB) <-chan struct{} {
	c := make(chan struct{})
	timer := time.AfterFunc(20*time.Millisecond, func() { close(c) })
	t.Cleanup(func() { timer.Stop() })
	return c
}

// TestDatabaseOneCall: many sessions of a user at once ask auth once, and one
// that gives up does not take the others' answer away.
func TestDatabaseOneCall(t *testing.T) {
	w := the()
	h, db := w.database(t)
	if _, err := h.announceOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := len(w.certificatesOf(t, db))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.DatabaseCertificate(gone, db, "alice"); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("gone: %v", err)
	}
	var wg sync.WaitGroup
	certs := make([]*tls.Certificate, 20)
	for i := range certs {
		wg.Go(func() {
			c, err := h.DatabaseCertificate(t.Context(), db, "alice")
			if err != nil {
				t.Error(err)
			}
			certs[i] = c
		})
	}
	wg.Wait()
	if n := len(w.certificatesOf(t, db)) - before; n < 1 || n > 2 {
		t.Errorf("%d certificates were issued", n)
	}
}

// certificatesOf lists what the log says was issued for a database.
func (w *world) certificatesOf(t *testing.T, db string) (out []sallyport.Event) {
	t.Helper()
	for _, e := range w.events(t, "cert.create") {
		if e.Fields["db_service"] == db {
			out = append(out, e)
		}
	}
	return out
}

// TestA06_DatabaseOfOthers: only databases that this agent serves.
func TestA06_DatabaseOfOthers(t *testing.T) {
	w := the()
	_, db := w.database(t)
	other, _ := w.database(t)
	if _, err := other.announceOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := other.DatabaseCertificate(t.Context(), db, "alice"); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("another's database: %v", err)
	}
}

// aged gives the host a database certificate from long ago.
func (w *world) agedDatabase(t *testing.T, h *Host, key databaseUser, age time.Duration) {
	t.Helper()
	old, err := ca.Open(t.Context(), ca.Config{Store: w.store, Sealer: w.sealer, Cluster: cluster, Now: func() time.Time { return time.Now().Add(-age) }})
	if err != nil {
		t.Fatal(err)
	}
	tlsPub, _, err := h.keys.public()
	if err != nil {
		t.Fatal(err)
	}
	c, err := old.IssueDatabaseClient(tlsPub, key.user)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := h.database.certificate(c.X509, key.user)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.database.store(key, cert); err != nil {
		t.Fatal(err)
	}
}

// TestDatabaseRenew: a certificate past half its life is used as it is and
// renewed behind the session; one that has ended is asked for.
func TestDatabaseRenew(t *testing.T) {
	w := the()
	h, db := w.database(t)
	run(t, h)
	heard(t, h)
	half, ended := databaseUser{db, "half"}, databaseUser{db, "ended"}
	w.agedDatabase(t, h, half, ca.DatabaseClientTTL*3/4)
	w.agedDatabase(t, h, ended, ca.DatabaseClientTTL*2)
	old := h.database.held(half)
	got, err := h.DatabaseCertificate(t.Context(), db, "half")
	if err != nil || got != old {
		t.Errorf("past half its life: another certificate, or %v", err)
	}
	until(t, "renewal", func() <-chan struct{} { return tick(t) }, func() bool { return h.database.held(half) != old })
	got, err = h.DatabaseCertificate(t.Context(), db, "ended")
	if err != nil || time.Now().After(got.Leaf.NotAfter) {
		t.Errorf("ended: %v", err)
	}
}

// TestDatabaseDisk: what is on disk and not good is removed at the start.
func TestDatabaseDisk(t *testing.T) {
	w := the()
	h, db := w.database(t)
	other, _ := w.database(t)
	good, ended := databaseUser{db, "good"}, databaseUser{db, "ended"}
	w.agedDatabase(t, h, good, time.Hour)
	w.agedDatabase(t, h, ended, ca.DatabaseClientTTL*2)
	w.agedDatabase(t, other, databaseUser{db, "stolen"}, 0)
	dir := filepath.Join(h.cfg.Dir, databaseDir)
	read := func(path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, data := range map[string][]byte{
		"garbage.json": []byte("x"), "renamed.json": read(h.database.path(good)), "half.json.new": []byte("{"),
		filepath.Base(h.database.path(databaseUser{db, "stolen"})): read(other.database.path(databaseUser{db, "stolen"})), // another key's
		filepath.Base(h.database.path(databaseUser{db, "root"})):   read(h.database.path(good)),                           // another user's
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := OpenHost(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.database.held(good) == nil || len(again.database.certs) != 1 {
		t.Errorf("held: %v", again.database.certs)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v %v", entries, err)
	}
}

// TestDatabaseBound: users that people name do not fill the disk; those that
// have ended make room.
func TestDatabaseBound(t *testing.T) {
	w := the()
	h, db := w.database(t)
	w.agedDatabase(t, h, databaseUser{db, "held"}, 0)
	w.agedDatabase(t, h, databaseUser{db, "ended"}, ca.DatabaseClientTTL*2)
	held := h.database.held(databaseUser{db, "held"})
	for i := range maxDatabaseCertificates - 2 {
		h.database.certs[databaseUser{db, fmt.Sprint(i)}] = held // no file each, for time's sake
	}
	if err := h.database.store(databaseUser{db, "room"}, held); err != nil {
		t.Errorf("with an ended one: %v", err)
	}
	if err := h.database.store(databaseUser{db, "next"}, held); err != nil || h.database.held(databaseUser{db, "next"}) == nil || len(h.database.certs) != maxDatabaseCertificates {
		t.Errorf("full: %v, %d certificates", err, len(h.database.certs))
	}
	if err := h.database.store(databaseUser{db, "held"}, held); err != nil {
		t.Errorf("one that was held: %v", err)
	}
	if err := h.database.store(databaseUser{db, "held"}, held); err != nil {
		t.Errorf("one that is held: %v", err)
	}
}

// TestDatabaseFull: one person who may be anybody in a database filled the store, and
// then nobody else got a certificate for as long as those lived.
func TestDatabaseFull(t *testing.T) {
	w := the()
	h, db := w.database(t)
	run(t, h)
	heard(t, h)
	w.put(t, "role", "reads-"+db, `{"allow":{"db_labels":{"only":"`+db+`"},"db_users":["reader"],"db_names":["*"]}}`)
	if _, err := w.users.CreateUser(t.Context(), login.User{Name: "u-" + db, Roles: []string{"reads-" + db}}, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.users.DeleteUser(context.Background(), "u-"+db) })
	reader := databaseUser{db, "reader"}
	until(t, "prefetch", func() <-chan struct{} { return tick(t) }, func() bool { return h.database.held(reader) != nil })
	w.agedDatabase(t, h, reader, time.Hour) // the oldest of all, and named
	w.agedDatabase(t, h, databaseUser{db, "old"}, time.Minute)
	seed, err := h.DatabaseCertificate(t.Context(), db, "seed")
	if err != nil {
		t.Fatal(err)
	}
	h.database.mu.Lock()
	for i := 0; len(h.database.certs) < maxDatabaseCertificates; i++ {
		h.database.certs[databaseUser{db, fmt.Sprint("made-up-", i)}] = seed
	}
	h.database.mu.Unlock()
	if _, err := h.DatabaseCertificate(t.Context(), db, "alice"); err != nil {
		t.Fatal(err)
	}
	if h.database.held(databaseUser{db, "alice"}) == nil || h.database.held(databaseUser{db, "old"}) != nil || h.database.held(reader) == nil {
		t.Errorf("alice %v, old %v, reader %v", h.database.held(databaseUser{db, "alice"}) != nil, h.database.held(databaseUser{db, "old"}) != nil, h.database.held(reader) != nil)
	}
	if _, err := os.Stat(h.database.path(databaseUser{db, "old"})); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of what was dropped: %v", err)
	}
	// With nobody to drop the certificate is given and not kept.
	h.database.mu.Lock()
	room, err := h.database.makeRoomLocked(func() map[databaseUser]bool {
		all := map[databaseUser]bool{}
		for key := range h.database.certs {
			all[key] = true
		}
		return all
	}())
	h.database.mu.Unlock()
	if room || err != nil {
		t.Errorf("all named: %v %v", room, err)
	}
}
