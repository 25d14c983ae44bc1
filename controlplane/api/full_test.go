package api

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// filling is a store that is full when it is told so.
type filling struct {
	store.Store
	full bool
}

var errFull = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store is full"}

func (f *filling) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	for _, op := range ops {
		if f.full && !op.Delete && !op.Check && !op.Reserve {
			return 0, errFull
		}
	}
	return f.Store.Apply(ctx, ops...)
}

func (f *filling) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	if f.full {
		return 0, errFull
	}
	return f.Store.Grant(ctx, ttl)
}

// TestFullStore: in a store full of records nobody could be locked, and auth did not
// start any more. Nothing that an agent or a user can do uses what is kept.
func TestFullStore(t *testing.T) {
	w, ctx := the(), t.Context()
	f := &filling{Store: w.store}
	full := &world{store: f, sealer: w.sealer, log: w.log, tokens: join.New(f, nil), inventory: inventory.New(inventory.Config{Store: f})}
	open := func() (admin sallyportv1connect.AdminServiceClient) {
		t.Helper()
		var err error
		if full.keys, err = ca.Open(ctx, ca.Config{Store: f, Sealer: w.sealer, Cluster: cluster}); err != nil {
			t.Fatal(err)
		}
		if full.users, err = login.New(login.Config{Store: f, Sealer: w.sealer, Issuer: cluster, Cost: login.Cost{Time: 1, Memory: 64, Threads: 1}}); err != nil {
			t.Fatal(err)
		}
		server, err := full.serverOn(ctx, f, w.log)
		if err != nil {
			t.Fatalf("auth does not start: %v", err)
		}
		return sallyportv1connect.NewAdminServiceClient(inProcess{server.Handler(nil), localAdminCaller()}.client(), base)
	}
	admin := open()
	id := uuid.NewString()[:8]
	versions := map[string]string{"role": "v7", "lock": "v2", "user": "v2"}
	put := func(kind, name, spec string, overwrite bool) error {
		doc := fmt.Sprintf(`{"kind":%q,"version":%q,"metadata":{"name":%q},"spec":%s}`, kind, versions[kind], name+"-"+id, spec)
		_, err := admin.PutDocument(ctx, connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: overwrite}))
		return err
	}
	remove := func(kind, name string) error {
		_, err := admin.DeleteDocument(ctx, connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name + "-" + id}))
		return err
	}
	removeHost := func(id string, want int) error {
		resp, err := admin.RemoveHost(ctx, connect.NewRequest(&sallyportv1.RemoveHostRequest{Id: id, Force: true}))
		if err == nil && len(resp.Msg.GetNames()) != want {
			err = fmt.Errorf("freed %q", resp.Msg.GetNames())
		}
		return err
	}
	announce := func(host string, list ...sallyport.Resource) error {
		_, err := full.inventory.Announce(ctx, host, list, nil)
		return err
	}
	agents := []string{uuid.NewString(), uuid.NewString()}
	shared := sallyport.Resource{Kind: sallyport.KindDatabase, Name: "shared-" + id, Protocol: "postgres", Group: "g"}
	own, other := shared, shared
	own.Name, own.Group, other.Description = "own-"+id, "", "another"
	err := errors.Join(put("role", "spare", "{}", false), put("user", "mallory", `{"roles":["access"]}`, false), put("lock", "old", `{"target":{"user":"x"}}`, false))
	for _, host := range agents {
		_, joined := full.inventory.Join(ctx, inventory.Host{ID: host, Kind: sallyport.KindAgent, Name: "a"}, []byte(host))
		err = errors.Join(err, joined, announce(host, shared))
	}
	_, token, created := full.tokens.Create(ctx, join.Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent}})
	if err := errors.Join(err, created, announce(agents[0], shared, own)); err != nil {
		t.Fatal(err)
	}

	f.full = true
	admin = open()
	for what, do := range map[string]func() error{
		"a role":         func() error { return put("role", "more", "{}", false) },
		"a user":         func() error { return put("user", "more", `{"roles":["access"]}`, false) },
		"a user's roles": func() error { return put("user", "mallory", `{"roles":["editor"]}`, true) },
		"an agent's new name": func() error {
			return announce(agents[1], shared, sallyport.Resource{Kind: "db", Name: "new-" + id, Protocol: "postgres"})
		},
		"an agent's new words":                     func() error { return announce(agents[1], other) },
		"an agent's giving up of what another has": func() error { return announce(agents[1]) },
		"a try to log in": func() error {
			_, err := full.users.Login(ctx, login.Attempt{User: "mallory-" + id, Password: password})
			return err
		},
		"a token": func() error {
			_, err := admin.CreateToken(ctx, connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}}))
			return err
		},
	} {
		if err := do(); !errors.Is(err, sallyport.ErrUnavailable) && connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("%s uses what is kept for locks: %v", what, err)
		}
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"a lock", func() error { return put("lock", "new", `{"target":{"user":"mallory"}}`, false) }},
		{"another lock in its place", func() error { return put("lock", "new", `{"target":{"user":"m"},"message":"no"}`, true) }},
		{"removing a lock", func() error { return remove("lock", "old") }},
		{"removing a user", func() error { return remove("user", "mallory") }},
		{"removing a role", func() error { return remove("role", "spare") }},
		{"removing a token", func() error {
			_, err := admin.DeleteToken(ctx, connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: token.Name}))
			return err
		}},
		{"an agent's giving up of its own", func() error { return announce(agents[0], shared) }},
		{"removing a host, whose name another has", func() error { return removeHost(agents[0], 1) }},
		{"removing the other", func() error { return removeHost(agents[1], 1) }},
	} {
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	f.full = false
	if err := remove("lock", "new"); err != nil {
		t.Error(err)
	}
}
