package access

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// use is what a TCP application asks for.
func use() session.Use {
	return session.Use{
		Start:  sallyport.Event{Name: "app.session.start", Code: "T2007I", Fields: map[string]any{"app_name": "echo"}},
		Denied: sallyport.Event{Name: "app.session.start", Code: "T2007E", Fields: map[string]any{"app_name": "echo"}},
		End:    sallyport.Event{Name: "app.session.end", Code: "T2011I"},
	}
}

// candidate is a client as the door hands it to a protocol, without a
// connection.
func (w *world) candidate(id sallyport.Identity) *session.Candidate {
	if id.NotAfter.IsZero() {
		id.NotBefore, id.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	if id.Fingerprint == "" {
		id.Fingerprint = "of " + id.Name
	}
	return &session.Candidate{Identity: id, Resource: w.known["tcp/echo"], ClientAddr: clientAddr, ConnectionID: "0102", Gate: w.door}
}

// TestOpen: events did not say where they stand in their session, nor the traits that
// templates of roles were filled with, nor the agent's version.
func TestOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		alice := user("alice")
		alice.Traits = map[string][]string{"logins": {"root"}}
		c := w.candidate(alice)
		c.Resource.Version = "1.2.3"
		s, err := c.Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		if w.door.Sessions() != 1 {
			t.Error("not registered")
		}
		start := w.spool.named("app.session.start")
		if len(start) != 1 {
			t.Fatalf("%d start events before Open returned", len(start))
		}
		want := sallyport.Event{
			Name: "app.session.start", Code: "T2007I", Time: time.Now(), Cluster: cluster, User: "alice", UserKind: "human",
			SessionID: s.ID, ServerID: agentID, Addr: clientAddr.String(), Success: yes(),
			Fields: map[string]any{"app_name": "echo", "connection_id": "0102", "with_mfa": "device-1", "user_roles": []string{"access"},
				"user_traits": map[string][]string{"logins": {"root"}}, "user_cluster_name": cluster, "private_key_policy": "none",
				"namespace": "default", "server_version": "1.2.3"},
		}
		want.UID = start[0].UID
		if diff := cmp.Diff(want, start[0]); diff != "" || len(want.UID) != 36 {
			t.Error(diff)
		}
		time.Sleep(3 * time.Second)
		s.Emit(sallyport.Event{Name: "app.session.request", Code: "T2009I"})
		s.End(map[string]any{"tx": int64(5)})
		s.End(map[string]any{"tx": int64(6)})
		end := w.spool.named("app.session.end")
		if len(end) != 1 || end[0].Fields["duration_ms"] != int64(3000) || end[0].Fields["tx"] != int64(5) || end[0].SessionID != s.ID {
			t.Errorf("end events %+v", end)
		}
		if w.spool.loose[start[0].UID] || w.spool.loose[end[0].UID] {
			t.Error("start or end did not wait for the spool")
		}
		if got := w.spool.named("app.session.request"); len(got) != 1 || got[0].SessionID != s.ID || got[0].User != "alice" ||
			got[0].Fields["ei"] != int64(1) || got[0].Fields["server_version"] != "1.2.3" {
			t.Errorf("session event %+v", got)
		}
		if e := end[0].Fields; e["ei"] != int64(2) || e["user_cluster_name"] != cluster || e["user_traits"] == nil {
			t.Errorf("end event %+v", e)
		}
		if w.door.Sessions() != 0 || s.Context.Err() == nil {
			t.Error("not released")
		}
		if len(w.spool.named("client.disconnect")) != 0 {
			t.Error("an orderly end was taken for a disconnect")
		}
	})
}

func TestDenials(t *testing.T) {
	bound := user("alice")
	bound.AllowedResources = []string{"/gw.test/db/echo", "/other.test/tcp/echo"}
	web := user("alice")
	web.Usage, web.BoundTo = sallyport.UsageWeb, "spiffe://gw.test/gateway/1"
	pinned := user("alice")
	pinned.PinnedAddr = "192.0.2.99"
	gateway := sallyport.Identity{Kind: sallyport.KindGateway, Name: gatewayID, Cluster: cluster}
	expired := user("alice")
	expired.NotBefore, expired.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	tests := []struct {
		name    string
		id      sallyport.Identity
		prepare func(*world)
		login   string
		kind    error
		words   string
	}{
		{"no role", user("alice"), func(w *world) { w.decider.set(deny("no role allows it")) }, "", sallyport.ErrDenied, "access to tcp echo denied: no role allows it"},
		{"other resources", bound, nil, "", sallyport.ErrDenied, "issued for other resources"},
		{"web certificate", web, nil, "", sallyport.ErrDenied, "web applications only"},
		{"pinned elsewhere", pinned, nil, "", sallyport.ErrDenied, "another address"},
		{"gateway", gateway, nil, "", sallyport.ErrDenied, "does not name a user"},
		{"expired", expired, nil, "", sallyport.ErrDenied, "expired"},
		{"locked login", user("alice"), func(w *world) {
			w.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{Login: "root"}}} })
		}, "root", sallyport.ErrDenied, `Login:"root"`},
		{"stale", user("alice"), func(w *world) {
			w.snap.err = &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth since Monday"}
		}, "", sallyport.ErrStaleSnapshot, "no contact"},
		{"strict and old", user("alice"), func(w *world) {
			w.snap.trust.IssuedAt = time.Now().Add(-6 * time.Minute)
			w.decider.set(allow(sallyport.Options{StrictLock: true}))
		}, "", sallyport.ErrStaleSnapshot, "no contact"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.prepare != nil {
				tt.prepare(w)
			}
			u := use()
			u.Login = tt.login
			s, err := w.candidate(tt.id).Open(t.Context(), u)
			var p *sallyport.Problem
			if s != nil || !errors.As(err, &p) || !errors.Is(err, tt.kind) || !strings.Contains(p.Fact, tt.words) {
				t.Fatalf("got %v, want %q", err, tt.words)
			}
			if got := w.spool.codes(); !slices.Equal(got, []string{"T2007E"}) {
				t.Fatalf("audited %v", got)
			}
			e := w.spool.events[0]
			if e.Success == nil || *e.Success || e.Fields["error"] != p.Fact || e.Login != tt.login || w.spool.loose[e.UID] {
				t.Errorf("denial %+v", e)
			}
			if w.door.Sessions() != 0 {
				t.Error("registered")
			}
		})
	}
}

// TestRefusedOpensNothing: whom the handshake has refused gets no session, also
// where nothing else speaks against it.
func TestRefusedOpensNothing(t *testing.T) {
	w := newWorld(t)
	c := w.candidate(user("alice"))
	c.Refusal = sallyport.Denied("this certificate is good for the gateway that holds it only", "")
	if s, err := c.Open(t.Context(), use()); s != nil || !errors.Is(err, c.Refusal) {
		t.Errorf("got %v, want %v", err, c.Refusal)
	}
	if got := w.spool.codes(); !slices.Equal(got, []string{"T2007E"}) || w.door.Sessions() != 0 {
		t.Errorf("audited %v, %d sessions", got, w.door.Sessions())
	}
}

// TestKubeWithoutGrant: a decision that allows a cluster and says nothing of its
// requests allows none of them.
func TestKubeWithoutGrant(t *testing.T) {
	w := newWorld(t)
	c := w.candidate(user("alice"))
	c.Resource = w.known["kube/prod"]
	s, err := c.Open(t.Context(), use())
	if err != nil {
		t.Fatal(err)
	}
	defer s.End(nil)
	if grant, p := s.Kube(); grant != nil || !errors.Is(p, sallyport.ErrDenied) {
		t.Errorf("grant %v, %v", grant, p)
	}
}

// TestFullSpool: what cannot be written down does not happen.
func TestFullSpool(t *testing.T) {
	w := newWorld(t)
	w.spool.err = &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "the audit spool is full"}
	s, err := w.candidate(user("alice")).Open(t.Context(), use())
	if s != nil || err == nil || err.Error() != "the audit spool is full" {
		t.Errorf("got %v", err)
	}
	w.spool.err = errors.New("write /var/lib/x: no space left on device")
	s, err = w.candidate(user("alice")).Open(t.Context(), use())
	if s != nil || err == nil || strings.Contains(err.Error(), "/var") {
		t.Errorf("got %v", err)
	}
	if w.door.Sessions() != 0 {
		t.Error("registered")
	}
}

// TestLocalAddr: events of nodes have the address that was reached there.
func TestLocalAddr(t *testing.T) {
	w := newWorld(t)
	for kind, want := range map[sallyport.Kind]any{sallyport.KindNode: "192.0.2.8:22", sallyport.KindTCP: nil} {
		c := w.candidate(user("alice"))
		c.Resource.Kind, c.LocalAddr = kind, netip.MustParseAddrPort("192.0.2.8:22")
		s, err := c.Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		s.End(nil)
		for _, e := range w.spool.events[len(w.spool.events)-2:] {
			if e.Fields["addr.local"] != want {
				t.Errorf("%s: %s has %v", kind, e.Name, e.Fields["addr.local"])
			}
		}
	}
	if a := localAddr(&net.TCPConn{}); a.IsValid() {
		t.Errorf("no connection has the address %v", a)
	}
}

// TestMaxSessions: a session above the bound was audited as a denial of the protocol's
// own, so nobody could tell a full role from a wrong one.
func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.decider.set(allow(sallyport.Options{MaxSessions: 2}))
		open := func(name string) (*session.Session, error) { return w.candidate(user(name)).Open(t.Context(), use()) }
		a, err := open("alice")
		if err != nil {
			t.Fatal(err)
		}
		b, err := open("alice")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open("alice"); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("third: %v", err)
		}
		if e := w.spool.named("session.rejected"); len(e) != 1 || e[0].Code != "T1006W" || e[0].User != "alice" || e[0].Success == nil || *e[0].Success ||
			e[0].Fields["reason"] != "max_sessions limit reached" || e[0].Fields["max"] != int64(2) || e[0].Fields["app_name"] != "echo" {
			t.Errorf("third: audited %+v", e)
		}
		if codes := w.spool.codes(); slices.Contains(codes, "T2007E") {
			t.Errorf("third: audited as a denial too: %v", codes)
		}
		c, err := open("bob")
		if err != nil {
			t.Error("another user's sessions were counted:", err)
		}
		a.End(nil)
		w.door.Elsewhere = func(user string) int64 { return map[string]int64{"alice": 1}[user] }
		if _, err := open("alice"); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("with one in an earlier process: %v", err)
		}
		if kinds, users := w.door.SessionsBy(); len(kinds) != 1 || users["alice"] != 1 || users["bob"] != 1 {
			t.Errorf("sessions by kind %v and user %v", kinds, users)
		}
		w.door.Elsewhere = nil
		d, err := open("alice")
		if err != nil {
			t.Error("a session that ended was counted:", err)
		}
		for _, s := range []*session.Session{b, c, d} {
			s.End(nil)
		}
	})
}

// TestMaxSessionsKinds: the connections of browsers and of kubectl are no sessions that
// max_sessions bounds. A page with two WebSockets did not work with max_sessions 2, and
// left no shell.
func TestMaxSessionsKinds(t *testing.T) {
	for _, kind := range []sallyport.Kind{sallyport.KindApp, sallyport.KindKube} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.decider.set(allow(sallyport.Options{MaxSessions: 1}))
				w.door.Elsewhere = func(string) int64 { return 0 }
				open := func(kind sallyport.Kind) *session.Session {
					t.Helper()
					c := w.candidate(user("alice"))
					c.Resource.Kind = kind
					s, err := c.Open(t.Context(), use())
					if err != nil {
						t.Fatalf("one of kind %s: %v", kind, err)
					}
					return s
				}
				all := []*session.Session{open(kind), open(sallyport.KindNode), open(kind)}
				if kinds, users := w.door.SessionsBy(); kinds[string(kind)] != 2 || users["alice"] != 1 {
					t.Errorf("sessions by kind %v and user %v", kinds, users)
				}
				for _, s := range all {
					s.End(nil)
				}
				if _, users := w.door.SessionsBy(); len(users) != 0 {
					t.Errorf("sessions by user %v after their ends", users)
				}
			})
		})
	}
}

// TestWebCertificate: the option that ends sessions with their certificates cut what a
// browser ran after ten minutes, of a web session of hours.
func TestWebCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.decider.set(allow(sallyport.Options{DisconnectExpiredCert: true}))
		for usage, goesOn := range map[sallyport.Usage]bool{sallyport.UsageWeb: true, "": false} {
			id := user("alice")
			id.Usage, id.NotBefore, id.NotAfter = usage, time.Now(), time.Now().Add(10*time.Minute)
			c := w.candidate(id)
			c.Resource.Kind = sallyport.KindApp
			s, err := c.Open(t.Context(), use())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if on := s.Context.Err() == nil; on != goesOn {
				t.Errorf("usage %q: it goes on: %v", usage, on)
			}
			s.End(nil)
		}
	})
}

// TestEnds: everything that ends a running session ends it at once, and says why.
func TestEnds(t *testing.T) {
	lock := func(l sallyport.LockTarget) func(*world, *session.Session) {
		return func(w *world, _ *session.Session) {
			w.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: l, Message: "left us"}} })
		}
	}
	tests := []struct {
		name    string
		options sallyport.Options
		life    time.Duration // of the certificate
		act     func(*world, *session.Session)
		after   time.Duration // from the act to the end; -1: it goes on
		words   string
	}{
		{name: "lock of the user", act: lock(sallyport.LockTarget{User: "alice"}), words: `lock targeting User:"alice" is in force: left us`},
		{name: "lock of the role", act: lock(sallyport.LockTarget{Role: "access"}), words: "lock targeting Role"},
		{name: "lock of the device", act: lock(sallyport.LockTarget{MFA: "device-1"}), words: "lock targeting MFADevice"},
		{name: "lock of the agent", act: lock(sallyport.LockTarget{ServerID: agentID}), words: "lock targeting ServerID"},
		{name: "lock of the login", act: lock(sallyport.LockTarget{Login: "root"}), words: "lock targeting Login"},
		{name: "lock of another", act: lock(sallyport.LockTarget{User: "eve"}), after: -1},
		{name: "role that denies", act: func(w *world, _ *session.Session) {
			w.decider.set(deny("role access denies it"))
			w.snap.change(func(*sallyport.Trust) {})
		}, words: "role access denies it"},
		{name: "role that still allows", act: func(w *world, _ *session.Session) { w.snap.change(func(*sallyport.Trust) {}) }, after: -1},
		{name: "expiry", options: sallyport.Options{DisconnectExpiredCert: true}, life: 90 * time.Second, after: 90 * time.Second, words: "expired at"},
		{name: "expiry, kept", life: 90 * time.Second, after: -1},
		{name: "expiry, by a role that came later", life: 90 * time.Second, act: func(w *world, _ *session.Session) {
			w.decider.set(func(sallyport.AccessRequest) sallyport.Decision {
				return sallyport.Decision{Allowed: true, Options: sallyport.Options{DisconnectExpiredCert: true}, Revision: 8}
			})
			w.snap.change(func(*sallyport.Trust) {})
		}, after: 90 * time.Second, words: "expired at"},
		{name: "longest session", options: sallyport.Options{MaxSessionTTL: 15 * time.Minute}, after: 15 * time.Minute, words: "lasted 15m0s"},
		{name: "expiry before the longest session", options: sallyport.Options{DisconnectExpiredCert: true, MaxSessionTTL: 15 * time.Minute},
			life: 95 * time.Second, after: 95 * time.Second, words: "expired at"},
		{name: "longest session before expiry", options: sallyport.Options{DisconnectExpiredCert: true, MaxSessionTTL: 95 * time.Second},
			life: 15 * time.Minute, after: 95 * time.Second, words: "lasted 1m35s"},
		{name: "lock after another change", act: func(w *world, s *session.Session) {
			w.snap.change(func(*sallyport.Trust) {})
			synctest.Wait()
			lock(sallyport.LockTarget{User: "alice"})(w, s)
		}, words: "lock targeting User"},
		{name: "stale view", act: func(w *world, _ *session.Session) { w.snap.grow(staleProblem(nil)) }, after: -1},
		{name: "stale view, strict locks", options: sallyport.Options{StrictLock: true}, act: func(w *world, _ *session.Session) { w.snap.grow(staleProblem(nil)) },
			after: recheck, words: "no contact with auth"},
		{name: "old view, strict locks", options: sallyport.Options{StrictLock: true}, after: 5*time.Minute + recheck, words: "no contact with auth since"},
		{name: "cancelled by the protocol", act: func(_ *world, s *session.Session) { s.Cancel(sallyport.Denied("no input", "")) }, words: "no input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.decider.set(allow(tt.options))
				id := user("alice")
				if tt.life > 0 {
					id.NotBefore, id.NotAfter = time.Now(), time.Now().Add(tt.life)
				}
				u := use()
				u.Login = "root"
				s, err := w.candidate(id).Open(t.Context(), u)
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if tt.act != nil {
					tt.act(w, s)
				}
				select {
				case <-s.Context.Done():
				case <-time.After(30 * time.Minute):
				}
				took := time.Since(start)
				var why *sallyport.Problem
				errors.As(context.Cause(s.Context), &why)
				s.End(nil)
				if tt.after < 0 {
					if why != nil {
						t.Errorf("ended after %s: %v", took, why)
					}
					return
				}
				if why == nil || !strings.Contains(why.Fact, tt.words) {
					t.Fatalf("cause %v, want %q", why, tt.words)
				}
				if took < tt.after || took > tt.after+time.Second {
					t.Errorf("ended after %s, want %s", took, tt.after)
				}
				if e := w.spool.named("client.disconnect"); len(e) != 1 || e[0].Fields["reason"] != why.Fact || e[0].SessionID != s.ID {
					t.Errorf("disconnect events %+v", e)
				}
			})
		})
	}
}

// TestChangeDuringStart: a lock that arrives while the start is written ends
// the session all the same.
func TestChangeDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.door.Events = lockingSpool{w}
		s, err := w.candidate(user("alice")).Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		<-s.Context.Done()
		s.End(nil)
	})
}

// TestChangeDuringDecision: a lock that arrives when locks have been looked at, and
// before there is a session, ends it at once.
func TestChangeDuringDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var once sync.Once
		w.decider.set(func(sallyport.AccessRequest) sallyport.Decision {
			once.Do(func() {
				w.snap.change(func(t *sallyport.Trust) {
					t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}}
				})
			})
			return sallyport.Decision{Allowed: true, Revision: 7}
		})
		s, err := w.candidate(user("alice")).Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s.Context.Err() == nil {
			t.Error("the session goes on until somebody looks again")
		}
		s.End(nil)
	})
}

type lockingSpool struct{ *world }

func (l lockingSpool) Emit(ctx context.Context, e sallyport.Event, durable bool) error {
	if e.Code == "T2007I" {
		l.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}} })
	}
	return l.spool.Emit(ctx, e, durable)
}

func TestShutdownEndsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		s, err := w.candidate(user("alice")).Open(ctx, use())
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		<-s.Context.Done()
		if why := context.Cause(s.Context); why.Error() != "the agent is shutting down" {
			t.Errorf("cause %v", why)
		}
		s.End(nil)
		if len(w.spool.named("app.session.end")) != 1 {
			t.Error("the end is not in the log")
		}
	})
}

// TestDeafProtocol: a protocol that does not watch its session loses the
// connection a second after the lock, and its session is ended for it.
func TestDeafProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.alice()
		tc, done := w.dial(t.Context(), call{kind: sallyport.KindTCP, name: "echo", cert: &cert},
			func(ctx context.Context, c *session.Candidate, conn net.Conn) error {
				if _, err := c.Open(ctx, use()); err != nil {
					return err
				}
				_, err := conn.Read(make([]byte, 1))
				return err
			})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		w.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}} })
		<-done
		if took := time.Since(start); took != letGo {
			t.Errorf("cut after %s", took)
		}
		if w.door.Sessions() != 0 || len(w.spool.named("app.session.end")) != 1 {
			t.Error("the session was left open")
		}
		tc.Close()
	})
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.decider.set(allow(sallyport.Options{ClientIdleTimeout: time.Minute}))
		s, err := w.candidate(user("alice")).Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		conn, _ := session.Idle(s, far)
		go func() {
			for {
				if _, err := conn.Read(make([]byte, 8)); err != nil {
					return
				}
			}
		}()
		for range 3 {
			time.Sleep(50 * time.Second)
			near.Write([]byte("still here"))
		}
		if s.Context.Err() != nil {
			t.Fatal("ended although the client was busy")
		}
		start := time.Now()
		<-s.Context.Done()
		if took := time.Since(start); took != time.Minute || !strings.Contains(context.Cause(s.Context).Error(), "no input for 1m0s") {
			t.Errorf("after %s: %v", took, context.Cause(s.Context))
		}
		conn.Close()
		near.Close()
		s.End(nil)
	})
}

func TestAllow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.decider.set(func(r sallyport.AccessRequest) sallyport.Decision {
			return sallyport.Decision{Allowed: r.Action == sallyport.ActionConnect, Reason: "no " + string(r.Action), Revision: 7}
		})
		s, err := w.candidate(user("alice")).Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		if p := s.Allow(sallyport.ActionConnect); p != nil {
			t.Error(p)
		}
		p := s.Allow(sallyport.ActionForwardLocal)
		if p == nil || !strings.Contains(p.Fact, "no forward-local") {
			t.Errorf("got %v", p)
		}
		s.End(nil)
		if e := w.spool.events[1]; e.Code != "T2007E" || e.Fields["action"] != "forward-local" {
			t.Errorf("denial %+v", e)
		}
	})
}

func TestDecisionCache(t *testing.T) {
	w := newWorld(t)
	ask := func(change func(*sallyport.AccessRequest), revision uint64) {
		r := sallyport.AccessRequest{Identity: user("alice"), Resource: w.known["tcp/echo"], Action: sallyport.ActionConnect}
		r.Identity.Fingerprint = "f"
		change(&r)
		w.door.decide(r, revision)
	}
	same := func(*sallyport.AccessRequest) {}
	asked := func(want int, what string) {
		t.Helper()
		if w.decider.asked != want {
			t.Errorf("%s: asked %d times, want %d", what, w.decider.asked, want)
		}
	}
	ask(same, 7)
	ask(same, 7)
	asked(1, "the same again")
	ask(func(r *sallyport.AccessRequest) { r.Now, r.ClientAddr = time.Now(), clientAddr.Addr() }, 7)
	asked(1, "later, from elsewhere")
	for i, change := range []func(*sallyport.AccessRequest){
		func(r *sallyport.AccessRequest) { r.Identity.Fingerprint = "g" },
		func(r *sallyport.AccessRequest) { r.Resource.Name = "other" },
		func(r *sallyport.AccessRequest) { r.Resource.Kind = sallyport.KindDatabase },
		func(r *sallyport.AccessRequest) { r.Resource.Labels = map[string]string{"env": "prod"} },
		func(r *sallyport.AccessRequest) { r.Login = "root" },
		func(r *sallyport.AccessRequest) { r.DBUser = "root" },
		func(r *sallyport.AccessRequest) { r.DBName = "root" },
		func(r *sallyport.AccessRequest) { r.Action = sallyport.ActionX11 },
	} {
		ask(change, 7)
		asked(2+i, "another question")
	}
	n := w.decider.asked
	ask(func(r *sallyport.AccessRequest) { r.Identity.Fingerprint = "" }, 7)
	ask(func(r *sallyport.AccessRequest) { r.Identity.Fingerprint = "" }, 7)
	asked(n+2, "a certificate without a fingerprint")
	ask(same, 6)
	ask(same, 6)
	asked(n+4, "an answer by another policy than asked for")
	w.decider.set(func(sallyport.AccessRequest) sallyport.Decision {
		return sallyport.Decision{Allowed: true, Revision: 9, Fleeting: true}
	})
	ask(same, 9)
	ask(same, 9)
	asked(n+6, "a fleeting answer")
}

func TestCacheIsBounded(t *testing.T) {
	var c cache
	for i := range 5 * generation {
		c.put(key{byte(i), byte(i >> 8), byte(i >> 16)}, sallyport.Decision{})
		if n := len(c.decisions.new) + len(c.decisions.old); n > 2*generation {
			t.Fatalf("%d decisions kept", n)
		}
		c.get(key{}) // in use: must survive
	}
	if _, ok := c.get(key{}); !ok {
		t.Error("a decision in use was forgotten")
	}
}

// TestA37_KeysDoNotRunTogether: fields that touch do not make one question of two.
func TestA37_KeysDoNotRunTogether(t *testing.T) {
	pairs := [][2]sallyport.AccessRequest{
		{{Login: "ab", DBUser: "c"}, {Login: "a", DBUser: "bc"}},
		{{DBUser: "ab"}, {DBUser: "a", DBName: "b"}},
		{{Login: "root"}, {DBUser: "root"}},
		{{AWSRole: "arn:a"}, {AWSRole: "arn:b"}},
		{{DBName: "x"}, {AWSRole: "x"}},
		{{DBName: "x", Action: "connect"}, {DBName: "xconnect"}},
		{{Login: "a\x00\x00\x00\x01b"}, {Login: "a", DBUser: "b"}},
		{{Resource: sallyport.Resource{Labels: map[string]string{"a": "b"}}}, {Resource: sallyport.Resource{Labels: map[string]string{"ab": ""}}}},
	}
	for i, p := range pairs {
		if keyOf(p[0], 1) == keyOf(p[1], 1) {
			t.Errorf("pair %d has one key", i)
		}
	}
}

// FuzzA37_Key: two questions have one key only when they are the same.
func FuzzA37_Key(f *testing.F) {
	f.Add("a", "b", "c", "ab", "", "c")
	f.Fuzz(func(t *testing.T, a, b, c, x, y, z string) {
		p := sallyport.AccessRequest{Login: a, DBUser: b, DBName: c}
		q := sallyport.AccessRequest{Login: x, DBUser: y, DBName: z}
		same := a == x && b == y && c == z
		if (keyOf(p, 1) == keyOf(q, 1)) != same {
			t.Fatalf("%q %q %q and %q %q %q: same %v", a, b, c, x, y, z, same)
		}
		if bytes.Equal(appendField(appendField(nil, a), b), appendField(appendField(nil, x), y)) != (a == x && b == y) {
			t.Fatal("fields run together")
		}
	})
}

// TestRotatedCA: when a CA goes, its users are strangers at the next connection.
func TestRotatedCA(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	w.snap.change(func(tr *sallyport.Trust) { tr.UserCAs = []*x509.Certificate{newAuthority(t, "user CA").cert} })
	tc, done := w.dial(t.Context(), call{kind: sallyport.KindTCP, name: "echo", cert: &cert}, nil)
	if err := talk(tc); !alerted(err) {
		t.Errorf("told %v", err)
	}
	if o := <-done; o.candidate != nil {
		t.Error("let in")
	}
}

func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b)
	cert := w.alice()
	for b.Loop() {
		tc, done := w.dial(b.Context(), call{kind: sallyport.KindTCP, name: "echo", cert: &cert}, nil)
		if err := talk(tc); err != nil {
			b.Fatal(err)
		}
		<-done
	}
}

// TestUnrecordedEnds: a session of which something cannot be written down ends,
// but not for the size of its terminal. Its end is told all the same when it can be.
func TestUnrecordedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s, err := w.candidate(user("alice")).Open(t.Context(), use())
		if err != nil {
			t.Fatal(err)
		}
		full := &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "full"}
		w.spool.fail(full)
		s.Emit(sallyport.Event{Name: "resize", Code: "T2002I"})
		if s.Context.Err() != nil {
			t.Errorf("ended by a resize: %v", context.Cause(s.Context))
		}
		s.Emit(sallyport.Event{Name: "app.session.request", Code: "T2009I"})
		why := context.Cause(s.Context)
		if !errors.Is(why, full) || why.Error() != "the session ended: the audit log takes no more events" {
			t.Errorf("%v", why)
		}
		w.spool.fail(nil)
		s.Emit(sallyport.Event{Name: "app.session.request", Code: "T2009I"})
		s.End(nil)
		if got, want := w.spool.codes(), []string{"T2007I", "T2009I", "T3006I", "T2011I"}; !slices.Equal(got, want) {
			t.Errorf("audited %v, want %v", got, want)
		}
		if !slices.Equal(w.spool.late, []string{"T2009I"}) {
			t.Errorf("without a wait: %v, want what came after the end alone", w.spool.late)
		}
	})
}
